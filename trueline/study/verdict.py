"""Which method to choose, in sentences computed from intervals: a draw and a loss are said as such.

    verdict(results) -> {"headline", "because": [...], "choose": arm or None, "tied": [...], "beware": [...]}

One arm beats another where the interval of their difference lies above 0. Of the arms that beat the start and that nobody beats the one
with the highest mean reward leads. Arms that nobody beats cannot be told apart; among them the cheapest is advised. A judge that compares
may go in circles: the arm that wins most against the start may lose to another, which is said, and where every arm that beats the start
is beaten, none is advised. The intervals of all differences hold together (outcome.differences), so the best of many noisy arms does
not win by being lucky. Left out: taste.
"""

from __future__ import annotations

import math
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
    better = [arm for arm in arms if beats(results, arm["name"], START)]
    tied = [arm for arm in arms if not beaters(results, arm["name"])]
    able = [arm for arm in better if arm in tied]
    top = max(results["arms"], key=mean)
    best = max(able, key=mean) if able else top
    because: list[str] = []
    if not better:
        choose = None
        losers = [arm["name"] for arm in arms if beats(results, START, arm["name"])]
        headline = "The data cannot tell that any method is better than the start."
        if losers:
            because.append(f"Worse than the start, beyond chance: {', '.join(losers)}.")
        because.append(f"Largest mean: {best['name']}; {said_gap(results, best['name'], START)}." if best["name"] != START else
                       "The start itself has the largest mean reward.")  # fmt: skip
    elif not able:
        choose = None
        headline = "The judge goes in circles: every method that beats the start is beaten by another."
        because += [f"{arm['name']} {said_gap(results, arm['name'], START)}; {said_beaten(results, arm['name'])}." for arm in better]
    elif len(tied) == 1:
        choose = best["name"]
        headline = f"Choose {choose}."
        others = [arm["name"] for arm in arms if arm is not best]
        ahead = all(beats(results, choose, other) for other in others)
        said = "It is ahead of every other method" if ahead else "No method is ahead of it, and every other is behind one"
        because.append(f"{said}: {said_list(results, choose, others)}.")
        because.append(f"And of the start: {said_gap(results, choose, START)}.")
    else:
        choose = min(able, key=price)["name"]
        names = ", ".join(arm["name"] for arm in tied)
        headline = f"{names} cannot be told apart on this data; {choose} is the cheapest of them that beats the start."
        most = max(tied, key=mean)
        because.append(f"Largest mean{'' if most is top else ' of these'}: {most['name']}; "
                       f"{said_list(results, most['name'], [arm['name'] for arm in tied if arm is not most])}.")  # fmt: skip
        if choose != most["name"]:
            because.append(f"{choose}: {said_gap(results, choose, START)}.")
        because.append(f"Cost: {'; '.join(said_price(arm) for arm in sorted(able, key=price))}.")
        behind = [arm["name"] for arm in arms if beats(results, best["name"], arm["name"])]
        if behind:
            because.append(f"Behind {best['name']} beyond chance: {', '.join(behind)}.")
        because += [f"{arm['name']} {said_beaten(results, arm['name'])}." for arm in arms if arm not in tied and arm["name"] not in behind]
    if able and top not in tied:
        because.insert(0, f"{top['name']} has the largest mean, yet {said_beaten(results, top['name'])}.")
    rivals = [arm["name"] for arm in tied if arm is not best] if better else [START]
    because += power(results, best["name"], rivals) if best["name"] != START and (able or not better) else []
    tied_names = [arm["name"] for arm in tied]
    return {"headline": headline, "because": because, "choose": choose, "tied": tied_names, "beware": warnings(results, arms)}


def mean(arm: Mapping[str, Any]) -> float:
    estimate: float = arm["main"]["reward"]["estimate"]
    return estimate


def beats(results: Mapping[str, Any], a: str, b: str) -> bool:
    """Beyond chance."""
    return gap(results, a, b)["low"] > 0


def beaters(results: Mapping[str, Any], name: str) -> list[str]:
    """Who beats this arm, the start included."""
    return [arm["name"] for arm in results["arms"] if beats(results, arm["name"], name)]


def said_beaten(results: Mapping[str, Any], name: str) -> str:
    return "is beaten: " + "; ".join(f"{other} {said_gap(results, other, name)}" for other in beaters(results, name))


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
        half = (found["high"] - found["low"]) / 2
        digits = 3 if half <= 0 else max(0, 1 - math.floor(math.log10(half)))  # two of the half-width
        middle, low, high = (f"{number:+.{digits}f}" for number in numbers)
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
