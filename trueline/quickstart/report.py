"""The quickstart's report: one HTML file that opens offline, with plots as inline SVG and no script.

    write_report(results, path)      results: the dictionary that stages.evaluate_stage() also keeps as results.json

Left out: measuring anything. Every figure shown here was computed by the stages; this file only lays it out.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.store import write_atomic
from trueline.study.page import INK, STYLE, half, new_figure, percent, to_svg

COLOURS = {"human": "#8a8f98", "sft": "#4c78d0", "best-of-n": "#d98a29", "dpo": "#2f9e6e"}
TITLES = {"human": "Human docstring", "sft": "SFT", "best-of-n": "Best-of-n", "dpo": "DPO"}


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the page. `results` is what results.json holds."""
    write_atomic(path, page(results))


def page(results: Mapping[str, Any]) -> str:
    """The whole HTML text."""
    plots = [
        ("Judge score on held-out functions", score_plot(results), "Mean and 95% interval over prompts."),
        ("Reward against distance", frontier_plot(results), "Each point is a policy: KL from SFT and judge score."),
        (
            "Is the reward model honest?",
            calibration_plot(results),
            "Share of pairs it gets right, by its own confidence.",
        ),
        ("Training", curves_plot(results), "Smoothed over the run."),
    ]
    figures = "\n".join(
        f"<figure><figcaption><b>{html.escape(title)}</b><br><small>{html.escape(note)}</small></figcaption>{svg}</figure>"
        for title, svg, note in plots
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trueline quickstart</title><style>{STYLE}</style></head><body><main>
<header><h1>Trueline quickstart</h1><p class="lead">{headline(results)}</p>{quality_note(results)}</header>
<h2>Result</h2>{summary_table(results)}
<p class="note">{html.escape(legend(results))}</p>
<div class="plots">{figures}</div>
<h2>Can the judge be gamed?</h2>{gaming_table(results)}
<h2>Side by side</h2><p class="note">{len(results["examples"])} held-out functions, drawn by seed {results["seed"]}.</p>
{examples(results)}
<h2>How it was made</h2>{stage_table(results)}
<details><summary>Data, settings and machine</summary>{settings(results)}</details>
<h2>Next, on your own data</h2><ol>{"".join(f"<li><code>{html.escape(c)}</code></li>" for c in results["next_commands"])}</ol>
</main></body></html>
"""


def headline(results: Mapping[str, Any]) -> str:
    """One sentence that says who won, with the interval, and admits it when nobody did."""
    gain = results["models"]["dpo"]["gain_over_sft"]
    low, high = gain["interval"]
    tests = results["num_test"]
    where = f"on {tests:,} functions of packages that no model had seen"
    if low > 0:
        return f"DPO beats SFT by <b>{gain['mean']:+.2f}</b> judge points (95% interval {low:+.2f} to {high:+.2f}) {where}."
    if high < 0:
        return f"DPO is <b>worse</b> than SFT by {gain['mean']:+.2f} judge points ({low:+.2f} to {high:+.2f}) {where}."
    return f"DPO and SFT <b>cannot be told apart</b>: {gain['mean']:+.2f} judge points ({low:+.2f} to {high:+.2f}) {where}."


def quality_note(results: Mapping[str, Any]) -> str:
    return "".join(f'<p class="note">{html.escape(text)}</p>' for text in results.get("notes", ()))


def summary_table(results: Mapping[str, Any]) -> str:
    """One row per model, one column per figure."""
    head = (
        "<tr><th>Model</th><th>Judge score</th><th>Wins against SFT</th><th>Wins against human</th><th>KL from SFT</th>"
        "<th>Name words spoken of</th><th>same, other function</th><th>Recall of unseen words, above chance</th><th>Words</th></tr>"
    )
    body = []
    for name, m in results["models"].items():
        cells = [
            f'<span class="dot" style="background:{COLOURS[name]}"></span>{TITLES[name]}',
            f"{m['judge']['mean']:.2f} <small>± {half(m['judge']['interval']):.2f}</small>",
            rate(m.get("wins_against_sft")),
            rate(m.get("wins_against_human")),
            f"{m['kl']['mean']:.2f} <small>± {1.96 * m['kl']['se']:.2f}</small>" if m.get("kl") else "–",
            percent(m["grounding"]),
            percent(m["grounding_other"]),
            recall(m) if name != "human" else "–",
            f"{m['words']:.1f}",
        ]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f'<div class="scroll"><table class="numbers">{head}{"".join(body)}</table></div>'


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean, and the reward model in one sentence."""
    rm = results["reward_model"]
    return (
        f"SFT and DPO decode greedily; best-of-n takes what the reward model likes best of {results['best_of']} samples. "
        "Judge score: the PEP 257 rule, 0 to 10. Wins count ties as half; intervals are 95%. KL in nats per response, on "
        "sampled responses at their temperature. Name words: share of the function's name that its summary speaks of; beside it "
        "the same against another function's name. Recall: content words of the human docstring that occur in neither name nor "
        "arguments; above chance: minus the same against other functions' docstrings. "
        f"Reward model: {percent(rm['accuracy'])} of {rm['num_pairs']:,} held-out noisy choices, "
        f"{percent(rm['accuracy_clean'])} of the judge's own order, calibration error {rm['ece']:.3f}."
    )


def gaming_table(results: Mapping[str, Any]) -> str:
    """Texts that try to please the rule, and what it gives them."""
    rows = "".join(
        f"<tr><td>{html.escape(g['attempt'])}</td><td><q>{html.escape(g['text'])}</q></td><td>{g['score']:.2f}</td></tr>"
        for g in results["gaming"]
    )
    return (
        '<p class="note">Texts that try to please the rule without documenting anything, scored for the same function as the '
        "honest one on top.</p>"
        f'<div class="scroll"><table><tr><th>Attempt</th><th>Text</th><th>Score</th></tr>{rows}</table></div>'
    )


def examples(results: Mapping[str, Any]) -> str:
    """Prompts with the summaries of all models side by side."""
    blocks = []
    for example in results["examples"]:
        rows = "".join(
            f'<tr><td><span class="dot" style="background:{COLOURS[name]}"></span>{TITLES[name]}</td>'
            f"<td>{html.escape(text)}</td><td>{score:.2f}</td></tr>"
            for name, (text, score) in example["summaries"].items()
        )
        blocks.append(
            f'<section class="example"><h3><code>{html.escape(example["signature"])}</code> '
            f"<small>{html.escape(example['package'])}</small></h3><details><summary>what the model reads</summary>"
            f"<pre>{html.escape(example['prompt'])}</pre></details><table>{rows}</table></section>"
        )
    return "\n".join(blocks)


def stage_table(results: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(s['name'])}</td><td>{html.escape(s['detail'])}</td><td>{s['seconds']:.0f} s</td></tr>"
        for s in results["stages"]
    )
    total = sum(s["seconds"] for s in results["stages"]) / 60
    head = "<tr><th>Stage</th><th>What</th><th>Time</th></tr>"
    return f"<table>{head}{rows}<tr><th>Total</th><td></td><th>{total:.1f} min</th></tr></table>"


def settings(results: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in results["settings"].items()
    )
    return f"<table>{rows}</table>"


def score_plot(results: Mapping[str, Any]) -> str:
    """The judge's score of every model, with its interval."""
    figure, axes = new_figure()
    for place, (name, m) in enumerate(results["models"].items()):
        low, high = m["judge"]["interval"]
        mean = m["judge"]["mean"]
        axes.bar(place, mean, color=COLOURS[name], width=0.62)
        axes.errorbar(place, mean, yerr=[[mean - low], [high - mean]], color=INK, capsize=4, lw=1.2)
        axes.text(place, 0.2, f"{mean:.2f}", ha="center", va="bottom", color="white", fontsize=10)
    axes.set_xticks(range(len(results["models"])), [TITLES[name] for name in results["models"]])
    axes.set_ylabel("judge score")
    axes.set_ylim(0, 10)
    return to_svg(figure)


def frontier_plot(results: Mapping[str, Any]) -> str:
    """Judge score against distance from the tuned model."""
    figure, axes = new_figure()
    for point in results["frontier"]:
        colour = COLOURS[point["model"]]
        axes.errorbar(
            point["kl"],
            point["score"],
            xerr=1.96 * point["kl_se"],
            yerr=1.96 * point["score_se"],
            color=colour,
            fmt="o",
        )
        left = point["model"] == "dpo"  # best-of-n, which it may come close to, is labelled on the right
        axes.annotate(
            point["label"],
            (point["kl"], point["score"]),
            xytext=(-7, 7) if left else (7, -11),
            ha="right" if left else "left",
            textcoords="offset points",
            color=INK,
        )
    axes.margins(0.18)
    axes.set_xlabel("KL from SFT (nats per response)")
    axes.set_ylabel("judge score")
    return to_svg(figure)


def calibration_plot(results: Mapping[str, Any]) -> str:
    """Confidence of the reward model against how often it is right."""
    figure, axes = new_figure()
    bins = [b for b in results["reward_model"]["reliability"] if b["count"] > 0]
    axes.plot([0.5, 1], [0.5, 1], color=INK, lw=0.8, ls="--")
    largest = max((b["count"] for b in bins), default=1)
    axes.scatter(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        s=[15 + 160 * b["count"] / largest for b in bins],
        color="#8d6cc4",
    )
    axes.set_xlabel("confidence of the reward model")
    axes.set_ylabel("share right")
    axes.set_ylim(0, 1.05)
    return to_svg(figure)


def curves_plot(results: Mapping[str, Any]) -> str:
    """A curve per training stage."""
    curves = {name: c for name, c in results["curves"].items() if len(c["values"]) > 1}
    figure, grid = new_figure(columns=max(1, len(curves)))
    all_axes = grid if len(curves) > 1 else [grid]
    for axes, (name, curve) in zip(all_axes, curves.items(), strict=False):
        axes.plot(curve["steps"], smooth(curve["values"]), color="#c25b6e", lw=1.4)
        axes.set_title(f"{name}: {curve['metric']}", color=INK, fontsize=9)
        axes.set_xlabel("step")
    return to_svg(figure)


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a twentieth of the run, so that a short run's curve can be read."""
    width = max(1, len(values) // 20)
    return [sum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1]) for i in range(len(values))]


def recall(model: Mapping[str, Any]) -> str:
    low, high = model["recall_difference"]["interval"]
    return f"{percent(model['recall'])} <small>{100 * low:+.1f} to {100 * high:+.1f}</small>"


def rate(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    low, high = value["interval"]
    return f"{percent(value['mean'])} <small>{100 * low:.0f}–{100 * high:.0f}</small>"
