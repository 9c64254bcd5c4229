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
from trueline.study.verdict import START

MORE_STYLE = """
main{max-width:1180px}.numbers th,.numbers td{padding:.42rem .45rem}
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
        (f"{worth(results)} against distance", frontier_plot(results, paint), FRONTIER_NOTE),
        ("What each method gains", gain_plot(results, paint), GAIN_NOTE),
        ("What training costs", cost_plot(results, paint), "Million token positions; one that is only read or drawn counts a third."),
    ]  # fmt: skip
    if any(point["learned_gain_sd"] for point in results["points"]):
        note = (
            "Gain over the start in standard deviations of its answers: solid by the judge, dashed by the reward model that drives. "
            "Where the dashed line rises and the solid one does not, the reward model is being pleased, not the judge."
        )
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
<p class="note">{MATRIX_NOTE} {html.escape(judge_note(results, seconds))}</p>
<h2>Cost</h2>{cost_table(results, seconds, paint)}<p class="note">{html.escape(COST_NOTE)}</p>
<h2>Tuning</h2>{trial_table(results, paint)}
<h2>Answers</h2><p class="note">{len(results["samples"])} prompts of the report part, drawn by their hash; each answer with
{"what the judge said of it against another answer of the start" if results["judge"]["compares"] else "its score"}.</p>
{sample_blocks(results, paint)}
<h2>How it was made</h2><details><summary>Data, settings, calibration</summary>{settings_table(results)}</details>
</main></body></html>
"""


FRONTIER_NOTE = (
    "Up is better, left is closer to the start. Every policy on its way, from the start to its last update; large: those that are "
    "compared. Of two that are equally high the left one keeps more of what the start could do."
)
GAIN_NOTE = "Right of the dashed line: better than the start. The intervals hold together."
MATRIX_NOTE = (
    "How often the answer of the row is better than that of the column, to the same prompts with different luck; a tie counts half. "
    "A tint says that the interval leaves out one half; all intervals hold together."
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


def worth(results: Mapping[str, Any]) -> str:
    """What the judge's figure is called."""
    return "Wins against the start" if results["judge"]["compares"] else "Reward"


def judge_note(results: Mapping[str, Any], seconds: Mapping[str, Any]) -> str:
    """How a judge that compares did, and what asking cost."""
    judge, spent = results["judge"], seconds.get("(judge)")
    found = []
    if judge["compares"]:
        found.append(
            f"Pairs shown to the judge: {judge['pairs'] - judge['equal']:,}, and {judge['equal']:,} of equal answers, which are ties "
            f"without a question. With no verdict: {judge['none']:,}, which count for nothing."
        )
        if judge.get("consistency") is not None:
            found.append(f"Asked in both orders, it agreed with itself on {percent(judge['consistency'])}; else the pair is a tie.")
        if not judge["between"]:
            found.append("Methods against one another were not asked about: --max_requests has no room for it.")
    if spent:
        asked = f"{spent['requests']:,} requests of {spent['tokens']:,} tokens"
        found.append(f"Judging took {asked}, tuning included, and {spent['from_cache']:,} answers that were kept.")
    return " ".join(found)


def arm_table(results: Mapping[str, Any], seconds: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """One row per arm at its main setting."""
    scores = not results["judge"]["compares"]
    names = [
        "Method", *(("Reward", "Gain over the start") if scores else ()), "Wins against the start", "KL",
        f"{'Reward' if scores else 'Wins'} at KL {small(results['equal_kl']['kl'])}", "Tokens per answer", "Draws per answer",
        "Cost to train", "Minutes",
    ]  # fmt: skip
    head = "<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"
    equal = results["equal_kl"]["reward"]
    rows: list[str] = []
    for arm, wins in zip(results["arms"], results["matrix"], strict=True):
        main, chosen = arm["main"], arm["name"] == results["verdict"]["choose"]
        clock = seconds.get(arm["name"])
        cells = [
            name_cell(arm["name"], paint, main["label"]),
            *((with_half(main["reward"]), "–" if arm["name"] == START else with_range(main["gain"], "+.2f")) if scores else ()),
            "–" if wins[0] is None else with_range(wins[0], ".0%"), with_half(main["kl"]),
            format(equal[arm["name"]], ".2f" if scores else ".0%") if arm["name"] in equal else "–",
            f"{main['tokens']['estimate']:.1f} <small>± {(main['tokens']['high'] - main['tokens']['low']) / 2:.1f}</small>",
            f"{arm['cost']['per_answer']['draws']:.0f}", f"{arm['cost']['total'] / 1e3:,.0f}" if arm["cost"]["total"] else "–",
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
        f"tokens. {intervals_note(results)} KL from the start in nats per answer, exact over the vocabulary at every token; that of an "
        "answer chosen among n is the bound log n - (n-1)/n. Where all have come as far, they are compared at equal KL, linear between "
        "the policies on their way. Cost to train: thousand token positions, all of them (below); draws are paid for with every answer. "
        f"Minutes include the reward model where one is used. Not beaten in both KL and {worth(results).lower()}: "
        f"{', '.join(map(after, results['undominated']))}."
    )


def after(name: str) -> str:
    """ "dpo@50" in words."""
    label, _, step = name.rpartition("@")
    return f"{label} after {int(step):,} updates" if int(step) else label


def intervals_note(results: Mapping[str, Any]) -> str:
    """Which interval says what."""
    seeds = (
        f"over prompts and {results['seeds']} seeds; how far seeds scatter is estimated from all methods together, as if all did alike"
        if results["seeds"] > 1
        else "over prompts; there is one seed, so they speak of these runs and not of the methods"
    )
    single = "KL" if results["judge"]["compares"] else "reward and KL"
    return (
        f"Intervals are 95%, {seeds}. Those of {single} speak of one policy by itself. Gains, wins and the verdict compare methods: their "
        "intervals are wider, so that all of them hold at once, and who is ahead is read from these alone."
    )


def matrix_table(results: Mapping[str, Any], paint: Mapping[str, str]) -> str:
    """Win rates, shaded by how far they are from a half, where the interval leaves it out."""
    names = [arm["name"] for arm in results["arms"]]
    head = "<tr><th></th>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"
    rows = []
    for name, row in zip(names, results["matrix"], strict=True):
        cells: list[str] = []
        for cell in row:
            if cell is None:
                cells.append("<td>–</td>" if names[len(cells)] == name else "<td><small>not asked</small></td>")
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
        "<th>Sum</th><th>Minutes, policy</th><th>and reward model</th><th>Tokens drawn per answer</th><th>and read</th></tr>"
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
    if count < 2:
        return '<p class="note">One learning rate per method, as given: nothing was tuned.</p>'
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
            f"<tr><td>{name_cell(name, paint)}</td><td>{html.escape(text)}</td><td>{said_score(results, name, score)}</td></tr>"
            for name, (text, score) in sample["answers"].items()
        )
        blocks.append(f'<section class="example"><pre>{html.escape(sample["prompt"])}</pre><table>{rows}</table></section>')
    return "\n".join(blocks)


def said_score(results: Mapping[str, Any], name: str, score: float | None) -> str:
    """The judge's word on one answer."""
    if score is None:
        return "no verdict"
    if not results["judge"]["compares"]:
        return f"{score:.2f}"
    return "" if name == START else "wins" if score > 0.5 else "loses" if score < 0.5 else "tie"


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


def small(value: float) -> str:
    """Two digits behind the point, or of what is smaller two that say something: 0.0043 is not 0."""
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def with_half(interval: Mapping[str, float]) -> str:
    half = (interval["high"] - interval["low"]) / 2
    return small(interval["estimate"]) + (f" <small>± {small(half)}</small>" if half > 1e-9 else "")


def with_range(interval: Mapping[str, float], form: str) -> str:
    low, high = format(interval["low"], form), format(interval["high"], form)
    return f"{format(interval['estimate'], form)} <small>{low} to {high}</small>"
