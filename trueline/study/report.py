"""The study's report: one HTML file that opens offline, with plots as inline SVG and no script.

    write_report(results, seconds, path)      results: what results.json holds; seconds: what the clock said

Left out: computing anything. Every figure shown here is in results.json; this file lays it out.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueline.store import write_atomic
from trueline.study.page import STYLE, percent
from trueline.study.plots import calibration_plot, colours, cost_plot, frontier_plot, gain_plot, over_optimisation_plot

MORE_STYLE = """
.verdict{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.2rem;margin:1rem 0}
.verdict ul{margin:.5rem 0 0;padding-left:1.2rem}
.matrix td,.matrix th{text-align:center}.matrix td:first-child,.matrix th:first-child{text-align:left}
.verdict .note{margin:.6rem 0 0}.chosen{font-weight:600}td small,.numbers td:first-child{white-space:nowrap}
"""


def write_report(results: Mapping[str, Any], seconds: Mapping[str, Any], path: Path) -> None:
    """Write the page."""
    write_atomic(path, page(results, seconds))


def page(results: Mapping[str, Any], seconds: Mapping[str, Any]) -> str:
    """The whole HTML text."""
    paint = colours(results)
    plots = [
        ("Reward against distance", frontier_plot(results, paint), FRONTIER_NOTE),
        ("What each method gains", gain_plot(results, paint), "Reward less the start's, with intervals that hold together."),
        ("What training costs", cost_plot(results, paint), "Million token positions; a forward counts a third."),
    ]  # fmt: skip
    if any(point["learned_gain_sd"] for point in results["points"]):
        note = "Gain in standard deviations of the start's answers: solid by the judge, dashed by the reward model that drives."
        plots.append(("Learned against true reward", over_optimisation_plot(results, paint), note))
    if results["calibration"]:
        note = "Share of the report part's preferences that a reward model gets right, by its own confidence."
        plots.append(("Is the reward model honest?", calibration_plot(results), note))
    figures = "\n".join(
        f"<figure><figcaption><b>{html.escape(title)}</b><br><small>{html.escape(note)}</small></figcaption>{svg}</figure>"
        for title, svg, note in plots
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trueline study</title><style>{STYLE}{MORE_STYLE}</style></head><body><main>
<header><h1>Which method, on this data?</h1>{verdict_box(results)}
<p class="note">{html.escape(setting(results))}</p></header>
<h2>Side by side</h2>{arm_table(results, seconds, paint)}<p class="note">{html.escape(legend(results))}</p>
<div class="plots">{figures}</div>
<h2>Who wins against whom</h2>{matrix_table(results, paint)}
<p class="note">{MATRIX_NOTE}</p>
<h2>Cost</h2>{cost_table(results, seconds, paint)}<p class="note">{html.escape(COST_NOTE)}</p>
<h2>Tuning</h2>{trial_table(results, paint)}
<h2>Answers</h2><p class="note">{len(results["samples"])} prompts of the report part, drawn by their hash; each answer with its score.</p>
{sample_blocks(results, paint)}
<h2>How it was made</h2><details><summary>Data, settings, calibration</summary>{settings_table(results)}</details>
</main></body></html>
"""


FRONTIER_NOTE = "Every policy on its way: KL from the start, and the judge's reward. Large: the policies that are compared."
MATRIX_NOTE = (
    "How often the answer of the row is scored above that of the column, to the same prompts; a tie counts half. Intervals are 95%; "
    "a tint says that the interval leaves out one half."
)
COST_NOTE = (
    "Thousand token positions of one policy at the main setting, means over seeds; a prompt that several responses share counts once. "
    "Policy, critic and reward model: trained on; reference and scored: read. "
    "The reward model is trained once per seed and charged in full to every method that uses it. The sum counts a position that is "
    "read or drawn as a third of one that is trained on. Minutes are this machine's. An answer draws tokens, and where it is chosen "
    "among several, the reward model reads them."
)


def verdict_box(results: Mapping[str, Any]) -> str:
    """What to choose, and why."""
    verdict = results["verdict"]
    reasons = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in verdict["because"])
    doubts = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in verdict["beware"])
    beware = f'<p class="note"><b>Look at this first</b></p><ul class="note">{doubts}</ul>' if doubts else ""
    return f'<div class="verdict"><p class="lead"><b>{html.escape(verdict["headline"])}</b></p><ul>{reasons}</ul>{beware}</div>'


def setting(results: Mapping[str, Any]) -> str:
    """One sentence about the comparison."""
    counts, seeds = results["prompts"], results["settings"]["seeds"]
    return (
        f"{len(results['arms']) - 1} methods with {results['budget']} each and seeds {', '.join(map(str, seeds))}, trained on "
        f"{results['comparisons']:,} comparisons of {counts['train']:,} prompts, tuned on {counts['tuning']:,} and compared on "
        f"{results['answered']:,} other prompts. Judge: {results['judge']['name']}."
    )


def arm_table(results: Mapping[str, Any], seconds: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """One row per arm at its main setting."""
    head = (
        "<tr><th>Method</th><th>Reward</th><th>Gain over the start</th><th>Wins against the start</th><th>KL</th>"
        f"<th>Reward at KL {results['equal_kl']['kl']:.2f}</th><th>Tokens per answer</th><th>Updates</th><th>Minutes</th></tr>"
    )
    rows, equal = [], results["equal_kl"]["reward"]
    for arm, wins in zip(results["arms"], results["matrix"], strict=True):
        main, chosen = arm["main"], arm["name"] == results["verdict"]["choose"]
        clock = seconds.get(arm["name"])
        cells = [
            name_cell(arm["name"], paint, main["label"]), with_half(main["reward"]),
            "–" if main is results["arms"][0]["main"] else with_range(main["gain"], "+.2f"),
            "–" if wins[0] is None else with_range(wins[0], ".0%"),
            with_half(main["kl"]), f"{equal[arm['name']]:.2f}" if arm["name"] in equal else "–", f"{main['tokens']['estimate']:.1f}",
            f"{arm['updates']:,}" if arm["updates"] else "–",
            f"{(clock['policy'] + clock['reward_model']) / 60:.1f}" if clock else "–",
        ]  # fmt: skip
        row_class = ' class="chosen"' if chosen else ""
        rows.append(f"<tr{row_class}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table class="numbers">{head}{"".join(rows)}</table></div>'


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean."""
    sampling = results["settings"]
    return (
        f"Answers to each prompt: {sampling['samples']}, at temperature {sampling['temperature']:g}, at most {sampling['max_new_tokens']} "
        f"tokens. Intervals are 95%, over prompts{' and seeds' if results['seeds'] > 1 else ' (one seed)'}. KL from the start in nats per "
        "answer, exact over the vocabulary at every token; that of an answer chosen among n is the bound log n - (n-1)/n. Where all "
        "have come as far, their rewards are compared at equal KL, linear between the policies on their way. Minutes include the reward "
        f"model where one is used. Not beaten in both KL and reward: {', '.join(results['undominated'])}."
    )


def matrix_table(results: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """Win rates, shaded by how far they are from a half, where the interval leaves it out."""
    names = [arm["name"] for arm in results["arms"]]
    head = "<tr><th></th>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"
    rows = []
    for name, row in zip(names, results["matrix"], strict=True):
        cells = []
        for cell in row:
            if cell is None:
                cells.append("<td>–</td>")
                continue
            sure = cell["low"] > 0.5 or cell["high"] < 0.5
            strength = min(0.45, abs(cell["estimate"] - 0.5)) if sure else 0
            tint = f"47,158,110,{strength:.2f}" if cell["estimate"] > 0.5 else f"194,91,110,{strength:.2f}"
            cells.append(f'<td style="background:rgba({tint})">{with_range(cell, ".0%")}</td>')
        rows.append(f"<tr><td>{name_cell(name, paint)}</td>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table class="numbers matrix">{head}{"".join(rows)}</table></div>'


def cost_table(results: Mapping[str, Any], seconds: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """Token positions and minutes of every arm."""
    head = (
        "<tr><th>Method</th><th>Policy</th><th>Critic</th><th>Reward model</th><th>Reference</th><th>Sampled</th><th>Scored</th>"
        "<th>Sum</th><th>Minutes, policy</th><th>and reward model</th><th>An answer draws</th><th>and reads</th></tr>"
    )
    rows = []
    for arm in results["arms"][1:]:
        cost, clock = arm["cost"], seconds.get(arm["name"], {"policy": 0.0, "reward_model": 0.0})
        parts = [cost[name] / 1e3 for name in ("trained", "critic", "reward_model", "reference", "sampled", "scored", "total")]
        cells = [name_cell(arm["name"], paint), *(f"{part:,.0f}" if part else "–" for part in parts),
                 *(f"{clock[name] / 60:.1f}" if clock[name] else "–" for name in ("policy", "reward_model")),
                 *(f"{cost['per_answer'][name]:.0f}" if cost["per_answer"][name] else "–" for name in ("tokens", "scored"))]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table class="numbers">{head}{"".join(rows)}</table></div>'


def trial_table(results: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """Every trial of every arm; the chosen one in bold."""
    count = max((len(arm["trials"]) for arm in results["arms"]), default=0)
    head = "<tr><th>Method</th>" + "".join(f"<th>Trial {number + 1}</th>" for number in range(count)) + "</tr>"
    rows = []
    for arm in results["arms"][1:]:
        cells = []
        for trial in arm["trials"]:
            said = f"{trial['learning_rate']:g}: {trial['score']:.3f}"
            cells.append(f"<td>{f'<b>{said}</b>' if trial['learning_rate'] == arm['learning_rate'] else said}</td>")
        rows.append(f"<tr><td>{name_cell(arm['name'], paint)}</td>{''.join(cells)}</tr>")
    note = (
        "Learning rate and mean reward on the tuning prompts, which the report does not use: equally many trials for every method, with "
        "the first seed. A method that trains no policy has the trials of its reward model: mean log-likelihood of the tuning part's "
        "preferences."
    )
    return f'<div class="scroll"><table class="numbers">{head}{"".join(rows)}</table></div><p class="note">{note}</p>'


def sample_blocks(results: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """Prompts with the answers of all arms."""
    blocks = []
    for sample in results["samples"]:
        rows = "".join(
            f"<tr><td>{name_cell(name, paint)}</td><td>{html.escape(text)}</td><td>{score:.2f}</td></tr>"
            for name, (text, score) in sample["answers"].items()
        )
        blocks.append(f'<section class="example"><pre>{html.escape(sample["prompt"])}</pre><table>{rows}</table></section>')
    return "\n".join(blocks)


def settings_table(results: Mapping[str, Any]) -> str:
    """What was asked for, and how good the reward models are."""
    about = {"budget": results["budget"]} | results["settings"]
    about |= {f"prompts to {side}": count for side, count in results["prompts"].items()}
    for arm in results["arms"][1:]:
        about[f"updates of {arm['name']}"] = f"{arm['updates']:,} ({arm['how']})"
    for found in results["calibration"]:
        right = [percent(found["accuracy"][name]) for name in ("estimate", "low", "high")]
        about[found["name"]] = (
            f"right on {right[0]} ({right[1]} to {right[2]}) of {found['pairs']:,} preferences of the report part; "
            f"calibration error {found['reliability']['ece']:.3f} "
            f"(a perfect one of this size: {found['null_ece']:.3f})"
        )
    rows = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in about.items())
    return f"<table>{rows}</table>"


def name_cell(name: str, paint: Mapping[str, str], label: str = "") -> str:
    """A coloured dot and the arm; its setting, where that says more."""
    more = f" <small>at {html.escape(label.partition(':')[2])}</small>" if label not in ("", name) else ""
    return f'<span class="dot" style="background:{paint[name]}"></span>{html.escape(name)}{more}'


def with_half(interval: Mapping[str, float]) -> str:
    return f"{interval['estimate']:.2f} <small>± {(interval['high'] - interval['low']) / 2:.2f}</small>"


def with_range(interval: Mapping[str, float], form: str) -> str:
    low, high = format(interval["low"], form), format(interval["high"], form)
    return f"{format(interval['estimate'], form)} <small>{low} to {high}</small>"
