"""Which method to choose, in sentences computed from intervals: a draw and a loss are said as such.

    verdict(results) -> {"headline", "because": [...], "choose": arm or None, "tied": [...], "beware": [...]}

The arm with the highest mean reward leads. Arms whose difference from it has an interval that holds 0 cannot be told apart from it;
among them the cheapest is advised. The intervals of all differences hold together (outcome.differences), so the best of many noisy
arms does not win by being lucky. Left out: taste.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

START = "start"
LONGER = 1.25
"""An answer that is so much longer than the start's is worth a word."""
FINISHED = 0.9
"""Less than this share of answers that end by themselves is, too."""
SILENT = 0.05
"""So is more than this share of answers without a verdict."""


def verdict(results: Mapping[str, Any]) -> dict[str, Any]:
    """What to choose and why."""
    arms = [arm for arm in results["arms"] if arm["name"] != START]
    best = max(results["arms"], key=lambda arm: arm["main"]["reward"]["estimate"])
    against = {arm["name"]: gap(results, best["name"], arm["name"]) for arm in results["arms"] if arm is not best}
    tied = [arm for arm in arms if arm is best or not against[arm["name"]]["low"] > 0]
    start_open = best["name"] == START or not against[START]["low"] > 0
    because: list[str] = []
    if start_open:
        choose = None
        losers = [arm["name"] for arm in arms if gap(results, START, arm["name"])["low"] > 0]
        headline = "The data cannot tell that any method is better than the start."
        if losers:
            because.append(f"Worse than the start, beyond chance: {', '.join(losers)}.")
        because.append(f"Largest mean: {best['name']}; {said_gap(results, best['name'], START)}." if best["name"] != START else
                       "The start itself has the largest mean reward.")  # fmt: skip
    elif len(tied) == 1:
        choose = best["name"]
        headline = f"Choose {choose}."
        others = [arm["name"] for arm in arms if arm is not best]
        because.append(f"It is ahead of every other method: {said_list(results, choose, others)}.")
        because.append(f"And of the start: {said_gap(results, choose, START)}.")
    else:
        sure = [arm for arm in tied if gap(results, arm["name"], START)["low"] > 0]
        cheapest = min(sure, key=price)
        choose = cheapest["name"]
        names = ", ".join(arm["name"] for arm in tied)
        headline = f"{names} cannot be told apart on this data; {choose} is the cheapest of them that beats the start."
        because.append(f"Largest mean: {best['name']}; {said_list(results, best['name'], [a['name'] for a in tied if a is not best])}.")
        if choose != best["name"]:
            because.append(f"{choose}: {said_gap(results, choose, START)}.")
        because.append(f"Cost: {'; '.join(said_price(arm) for arm in sorted(sure, key=price))}.")
        behind = [arm["name"] for arm in arms if arm not in tied]
        if behind:
            because.append(f"Behind {best['name']} beyond chance: {', '.join(behind)}.")
    rivals = [START] if start_open else [arm["name"] for arm in tied if arm is not best]
    because += power(results, best["name"], rivals) if best["name"] != START else []
    tied_names = [arm["name"] for arm in tied]
    return {"headline": headline, "because": because, "choose": choose, "tied": tied_names, "beware": warnings(results, arms)}


def gap(results: Mapping[str, Any], a: str, b: str) -> dict[str, float]:
    """Mean reward of a less that of b, with its interval."""
    for one in results["differences"]:
        found = one["difference"]
        if (one["a"], one["b"]) == (a, b):
            return {name: found[name] for name in ("estimate", "low", "high", "se")}
        if (one["a"], one["b"]) == (b, a):
            return {"estimate": -found["estimate"], "low": -found["high"], "high": -found["low"], "se": found["se"]}
    return {"estimate": 0.0, "low": 0.0, "high": 0.0, "se": 0.0}


def said_gap(results: Mapping[str, Any], a: str, b: str) -> str:
    """The gap with its interval: of rewards, or of a judge that compares how often a wins against b."""
    found = gap(results, a, b)
    numbers = [found[name] for name in ("estimate", "low", "high")]
    if not results.get("judge", {}).get("compares"):
        middle, low, high = (f"{number:+.3g}" for number in numbers)
        return f"{middle} ({low} to {high}) over {b}"
    direct = any({one["a"], one["b"]} == {a, b} and one["direct"] for one in results["differences"])
    middle, low, high = (f"{0.5 + number:.0%}" if direct else f"{100 * number:+.0f}" for number in numbers)
    said = f"wins {middle} ({low} to {high})"
    return f"{said} against {b}" if direct else f"{said} points more against {START} than {b}"


def said_list(results: Mapping[str, Any], a: str, others: Sequence[str]) -> str:
    return "; ".join(said_gap(results, a, other) for other in others) or "there is no other"


def said_price(arm: Mapping[str, Any]) -> str:
    """What is paid for it once, and again and again."""
    draws = arm["cost"]["per_answer"]["draws"]
    again = "1 draw" if draws == 1 else f"{draws:.0f} draws"
    return f"{arm['name']} {arm['cost']['total'] / 1e3:,.0f} thousand positions to train and {again} per answer"


def price(arm: Mapping[str, Any]) -> float:
    """What is paid again and again counts first: answers of many draws are dear however cheap the training was."""
    return 1e12 * (arm["cost"]["per_answer"]["draws"] - 1) + arm["cost"]["total"]


def power(results: Mapping[str, Any], best: str, tied: Sequence[str]) -> list[str]:
    """How many prompts would tell the closest two apart, if the difference seen is the true one and prompts are what varies."""
    if not tied:
        return []
    other = max(tied, key=lambda name: gap(results, name, best)["estimate"])
    found = gap(results, best, other)
    half, size = (found["high"] - found["low"]) / 2, abs(found["estimate"])
    if size < half / 10:
        return [f"Between {best} and {other} the difference is too small to be worth more prompts."]
    factor = (half / size) ** 2
    if factor < 1.5:
        return [f"A few more prompts (--report_prompts) or seeds (--seeds) may tell {best} from {other}."]
    third = " A third seed narrows the intervals more than prompts do." if results["seeds"] == 2 else ""
    more = f"about {factor:.0f} times as many prompts (--report_prompts) and seeds (--seeds)"
    return [f"If what is seen is true, {more} would tell {best} from {other}.{third}"]


def warnings(results: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What should be looked at before any arm is believed: one sentence per kind."""
    start = next(arm for arm in results["arms"] if arm["name"] == START)["main"]
    found: dict[str, list[str]] = {"length": [], "pleased": [], "cut": [], "silent": [], "edge": []}
    for arm in arms:
        name, main = arm["name"], arm["main"]
        ratio = main["tokens"]["estimate"] / max(1e-9, start["tokens"]["estimate"])
        if ratio >= LONGER or ratio <= 1 / LONGER:
            found["length"].append(f"{name} ({ratio:.2f} times the start's tokens)")
        learned = main["learned_gain_sd"]
        if learned is not None and learned["low"] > 0 and main["gain_sd"]["high"] < learned["low"] / 2:
            found["pleased"].append(f"{name} ({learned['estimate']:+.2f} against {main['gain_sd']['estimate']:+.2f} sd)")
        if main["finished"] < FINISHED:
            found["cut"].append(f"{name} ({1 - main['finished']:.0%})")
        if main.get("no_verdict", 0.0) > SILENT:
            found["silent"].append(f"{name} ({main['no_verdict']:.0%})")
        rates = [trial["learning_rate"] for trial in arm["trials"]]
        if len(rates) > 1 and arm["learning_rate"] in (min(rates), max(rates)):
            found["edge"].append(f"{name} ({arm['learning_rate']:g})")
    said = {
        "length": "Answers of another length, so see whether the judge rewards length: ",
        "pleased": "Pleases its reward model far more than the judge, which is over-optimisation: ",
        "cut": "Answers cut at the longest: ",
        "silent": "The judge said nothing of answers, which are left out: ",
        "edge": "The best learning rate is at the edge of what was tried, so more may be had beyond: ",
    }
    sentences = [f"{said[kind]}{', '.join(names)}." for kind, names in found.items() if names]
    if results["seeds"] < 2:
        sentences.append("One seed: the intervals speak of these runs, not of the methods.")
    return sentences
