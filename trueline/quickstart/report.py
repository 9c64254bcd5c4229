"""The quickstart's report: one HTML file that opens offline, with plots as inline SVG and no script.

    write_report(results, path)      results: what job.run also keeps as results.json; results["study"] is the comparison of the methods

Left out: measuring anything. Every figure shown here was computed by the stages; this file only lays it out, and what the study says
is laid out by the study's own report.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.quickstart.methods import BEST, ENTRANTS
from trueline.store import write_atomic
from trueline.study.page import INK, STYLE, half, new_figure, percent, to_svg
from trueline.study.plots import calibration_plot, colours, cost_plot, frontier_plot, gain_plot, over_optimisation_plot
from trueline.study.report import COST_NOTE, MATRIX_NOTE, MORE_STYLE, arm_table, cost_table, matrix_table, verdict_box
from trueline.study.report import legend as study_legend
from trueline.study.verdict import START

ARMS = {"sft": START, "best-of-n": BEST} | {entrant.folder: entrant.title for entrant in ENTRANTS}
"""The study's name of each model."""
TITLES = ARMS | {"human": "Human docstring", "sft": "SFT", "best-of-n": BEST.capitalize()}
HUMAN = "#b08968"


def write_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the page. `results` is what results.json holds."""
    write_atomic(path, page(results))


def page(results: Mapping[str, Any]) -> str:
    """The whole HTML text."""
    study, paint = results["study"], colours(results["study"])
    first = [
        ("Judge score on held-out functions", score_plot(results), "Greedy summaries: mean and 95% interval over functions."),
        ("Reward against distance", frontier_plot(study, paint), f"Sampled summaries: KL from {START} (SFT) and judge score."),
    ]
    more = [
        ("What each method gains", gain_plot(study, paint), "Sampled summaries: judge score less SFT's; the intervals hold together."),
        ("What training costs", cost_plot(study, paint), "Million token positions; a forward counts a third."),
        ("Learned against true reward", over_optimisation_plot(study, paint),
         "Gain in standard deviations of SFT's: solid by the judge, dashed by the reward model."),
        ("Is the reward model honest?", calibration_plot(study), "Share of pairs it gets right, by its own confidence."),
        ("Training", curves_plot(results), "Smoothed over the run."),
    ]  # fmt: skip
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trueline quickstart</title><style>{STYLE}{MORE_STYLE}</style></head><body><main>
<header><h1>Trueline quickstart</h1><p class="lead">{headline(results)}</p>{quality_note(results)}
<h2>Which method to choose</h2>{verdict_box(study)}<p class="note">{html.escape(how_compared(results))}</p></header>
<h2>Every model as one would deploy it</h2>{summary_table(results)}
<p class="note">{html.escape(legend(results))}</p>
<div class="plots">{figures(first)}</div>
<h2>Method against method</h2>{arm_table(study, results["study_seconds"], paint)}<p class="note">{html.escape(study_legend(study))}</p>
<h3>Who wins against whom</h3>{matrix_table(study, paint)}<p class="note">{MATRIX_NOTE}</p>
<h3>Cost</h3>{cost_table(study, results["study_seconds"], paint)}<p class="note">{html.escape(COST_NOTE)}</p>
<div class="plots">{figures(more)}</div>
<h2>Can the judge be gamed?</h2>{gaming_table(results)}
<h2>Side by side</h2><p class="note">{len(results["examples"])} held-out functions, drawn by seed {results["seed"]}.</p>
{examples(results)}
<h2>How it was made</h2>{stage_table(results)}
<details><summary>Data, settings and machine</summary>{settings(results)}</details>
<h2>Next, on your own data</h2><ol>{"".join(f"<li><code>{html.escape(c)}</code></li>" for c in results["next_commands"])}</ol>
</main></body></html>
"""


def figures(plots: Sequence[tuple[str, str, str]]) -> str:
    """(title, SVG, note) each."""
    return "\n".join(
        f"<figure><figcaption><b>{html.escape(title)}</b><br><small>{html.escape(note)}</small></figcaption>{svg}</figure>"
        for title, svg, note in plots
    )


def paints(results: Mapping[str, Any]) -> dict[str, str]:
    """Model -> the colour that it has in the study's plots, too."""
    found = colours(results["study"])
    return {"human": HUMAN} | {name: found[arm] for name, arm in ARMS.items()}


def how_compared(results: Mapping[str, Any]) -> str:
    """What is equal among the methods, and what is not."""
    study = results["study"]
    return (
        f"A study (trueline study) from the SFT model, here called {START}: {study['budget']} per method, of "
        f"{study['settings']['per_device_train_batch_size']} functions each, one trial at a learning rate that was set "
        f"beforehand, one seed ({results['seed']}). DPO learns from the first and the last of the "
        f"rankings of {study['comparisons']:,} functions; the others draw for these functions (PPO for half of them: it takes "
        "two updates from each round) and ask the one reward model, which learned from the whole of these rankings and what more there "
        "were. "
        f"{study['settings']['samples']} sampled summaries (temperature {study['settings']['temperature']:g}) for each of "
        f"{study['answered']:,} held-out functions; the PEP 257 rule judges. "
        "KL is defined for sampled summaries, so methods are compared by these; what a model says when it always takes its likeliest token "
        "stands in the next table. Intervals that compare methods are wide enough to hold all at once."
    )


def headline(results: Mapping[str, Any]) -> str:
    """One sentence that says who won, with the interval, and admits it when nobody did."""
    gain = results["models"]["dpo"]["gain_over_sft"]
    low, high = gain["interval"]
    tests = results["num_test"]
    where = f"on {tests:,} functions of packages that no model had seen, both greedy"
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
    body, paint = [], paints(results)
    mains = {arm["name"]: arm["main"] for arm in results["study"]["arms"]}
    for name, m in results["models"].items():
        kl = mains[ARMS[name]]["kl"] if name in ARMS else None
        cells = [
            f'<span class="dot" style="background:{paint[name]}"></span>{TITLES[name]}',
            f"{m['judge']['mean']:.2f} <small>± {half(m['judge']['interval']):.2f}</small>",
            rate(m.get("wins_against_sft")),
            rate(m.get("wins_against_human")),
            f"{kl['estimate']:.2f} <small>± {(kl['high'] - kl['low']) / 2:.2f}</small>" if kl else "–",
            percent(m["grounding"]),
            percent(m["grounding_other"]),
            recall(m) if name != "human" else "–",
            f"{m['words']:.1f}",
        ]
        body.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f'<div class="scroll"><table class="numbers">{head}{"".join(body)}</table></div>'


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean, and the reward model in one sentence."""
    (rm,) = results["study"]["calibration"]
    right = [percent(rm["accuracy"][part]) for part in ("estimate", "low", "high")]
    return (
        f"Trained models decode greedily; {BEST} takes what the reward model likes best of its samples. "
        "Judge score: the PEP 257 rule, 0 to 10. Wins count ties as half; intervals are 95%. KL in nats per response, on "
        f"sampled responses at their temperature; of {BEST} the bound. Name words: share of the function's name that its summary speaks "
        "of; beside it the same against another function's name. Recall: content words of the human docstring that occur in neither "
        "name nor arguments; above chance: minus the same against other functions' docstrings. "
        f"Reward model: right on {right[0]} ({right[1]} to {right[2]}) of {rm['pairs']:,} noisy choices between SFT's summaries of "
        f"held-out functions, calibration error {rm['reliability']['ece']:.3f} (a perfect one of this size: {rm['null_ece']:.3f})."
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
    blocks, paint = [], paints(results)
    for example in results["examples"]:
        rows = "".join(
            f'<tr><td><span class="dot" style="background:{paint[name]}"></span>{TITLES[name]}</td>'
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
    (figure, axes), paint = new_figure(), paints(results)
    for place, (name, m) in enumerate(results["models"].items()):
        low, high = m["judge"]["interval"]
        mean = m["judge"]["mean"]
        axes.bar(place, mean, color=paint[name], width=0.62)
        axes.errorbar(place, mean, yerr=[[mean - low], [high - mean]], color=INK, capsize=4, lw=1.2)
        axes.text(place, 0.2, f"{mean:.2f}", ha="center", va="bottom", color="white", fontsize=10)
    axes.set_xticks(range(len(results["models"])), [TITLES[name].replace(" ", "\n", 1) for name in results["models"]])
    axes.set_ylabel("judge score")
    axes.set_ylim(0, 10)
    return to_svg(figure)


def curves_plot(results: Mapping[str, Any]) -> str:
    """A curve per training stage."""
    curves = {name: c for name, c in results["curves"].items() if len(c["values"]) > 1}
    figure, grid = new_figure(columns=max(1, len(curves)))
    all_axes = grid if len(curves) > 1 else [grid]
    for axes, (name, curve) in zip(all_axes, curves.items(), strict=False):
        axes.plot(curve["steps"], smooth(curve["values"]), color="#c25b6e", lw=1.4)
        axes.set_title(f"{name}\n{curve['metric']}", color=INK, fontsize=8)
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
