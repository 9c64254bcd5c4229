"""The verdict says what the intervals say: a winner, a draw, or nothing."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from trueline.study.verdict import said_gap, verdict


def arm(name: str, reward: float, total: float = 1.0, draws: int = 1, **more: Any) -> dict[str, Any]:
    main = {
        "reward": {"estimate": reward}, "tokens": {"estimate": 10.0}, "finished": 1.0, "learned_gain_sd": None,
        "gain_sd": {"estimate": reward, "high": reward + 0.1},
    }  # fmt: skip
    return {"name": name, "main": main | more, "cost": {"total": total, "per_answer": {"draws": draws}}, "trials": [], "learning_rate": 0.0}


def results(half: float, *arms: dict[str, Any]) -> dict[str, Any]:
    differences = []
    for a, b in combinations(arms, 2):
        gap = a["main"]["reward"]["estimate"] - b["main"]["reward"]["estimate"]
        interval = {"estimate": gap, "low": gap - half, "high": gap + half, "se": half / 2}
        differences.append({"a": a["name"], "b": b["name"], "difference": interval})
    return {"arms": list(arms), "differences": differences, "seeds": 2}


def test_a_clear_winner() -> None:
    found = verdict(results(0.2, arm("start", 0.0), arm("a", 0.5), arm("b", 1.0)))
    assert found["choose"] == "b" and found["headline"] == "Choose b."
    assert "+0.50 (+0.30 to +0.70) over a" in found["because"][0]


def test_of_tied_arms_the_cheapest_that_beats_the_start() -> None:
    """Cheap to answer with comes before cheap to train; what does not beat the start is not advised."""
    dear, weak = arm("best_of_n", 0.95, total=0.1, draws=8), arm("c", 0.39, total=1.0)
    found = verdict(results(0.4, arm("start", 0.0), arm("a", 0.9, total=5.0), dear, arm("b", 1.0, total=9.0), weak))
    assert found["choose"] == "a" and found["tied"] == ["a", "best_of_n", "b"]
    assert found["headline"].startswith("a, best_of_n, b cannot be told apart")
    assert "Behind b beyond chance: c." in found["because"]


def test_nothing_is_better_than_the_start() -> None:
    found = verdict(results(0.4, arm("start", 0.0), arm("a", 0.2), arm("b", -1.0)))
    assert found["choose"] is None
    assert "cannot tell that any method is better" in found["headline"]
    assert "Worse than the start, beyond chance: b." in found["because"]
    assert "about 4 times as many" in found["because"][-1], "half of the width over the difference, squared"
    lost = verdict(results(0.4, arm("start", 1.0), arm("a", 0.2)))
    assert lost["choose"] is None and "The start itself has the largest mean reward." in lost["because"]


def test_what_should_be_looked_at() -> None:
    pleased = {"learned_gain_sd": {"estimate": 2.0, "low": 1.5, "high": 2.5}, "gain_sd": {"estimate": 0.1, "low": 0.0, "high": 0.2}}
    tried = [{"learning_rate": rate, "score": 0.0} for rate in (1e-5, 1e-4)]
    long = arm("long", 1.0, tokens={"estimate": 20.0}, finished=0.5, **pleased) | {"trials": tried, "learning_rate": 1e-4}
    found = verdict(results(0.1, arm("start", 0.0), long, arm("plain", 0.3)) | {"seeds": 1})["beware"]
    assert [sentence.split(":")[0].split(",")[0] for sentence in found] == [
        "Answers of another length", "Pleases its reward model far more than the judge", "Answers cut at the longest",
        "The best learning rate is at the edge of what was tried", "One seed",
    ]  # fmt: skip
    assert not any("plain" in sentence for sentence in found)


def compared(shares: dict[tuple[str, str], float], half: float = 0.1) -> dict[str, Any]:
    """Of a judge that compares: how often the first of two wins; where nothing is said, half. The later, the cheaper."""
    names = sorted({name for two in shares for name in two} - {"start"})
    arms = [arm(name, shares[name, "start"], total=9.0 - place) for place, name in enumerate(names)]
    found = results(half, arm("start", 0.5), *arms)
    for one in found["differences"]:
        a, b = one["a"], one["b"]
        gap = shares.get((a, b), 1 - shares.get((b, a), 0.5)) - 0.5
        one |= {"direct": True, "difference": {"estimate": gap, "low": gap - half, "high": gap + half, "se": half / 2}}
    return found | {"judge": {"compares": True}}


def test_who_wins_most_against_the_start_may_lose_to_another() -> None:
    found = verdict(compared({("a", "start"): 0.62, ("b", "start"): 0.61, ("b", "a"): 0.65}))
    assert found["choose"] == "b" and found["tied"] == ["b"] and found["headline"] == "Choose b."
    assert found["because"][0] == "a has the largest mean, yet is beaten: b wins 65% (55% to 75%) against a."
    third = compared({("a", "start"): 0.65, ("b", "start"): 0.61, ("c", "start"): 0.62, ("b", "a"): 0.65})
    found = verdict(third)
    assert found["tied"] == ["b", "c"] and found["headline"].startswith("b, c cannot be told apart") and found["choose"] == "c"
    assert any(sentence.startswith("Largest mean of these: c;") for sentence in found["because"])


def test_whom_another_of_the_tied_beats_is_not_tied() -> None:
    """The leader cannot be told from either, but one of the two beats the other: they can be told apart."""
    found = verdict(compared({("a", "start"): 0.70, ("b", "start"): 0.68, ("c", "start"): 0.65, ("b", "c"): 0.65}))
    assert found["tied"] == ["a", "b"] and found["choose"] == "b", "c is cheaper still"
    assert "c is beaten: b wins 65% (55% to 75%) against c." in found["because"]


def test_a_circle_has_no_best() -> None:
    start = {(name, "start"): 0.65 for name in "abc"}
    found = verdict(compared(start | {("a", "b"): 0.65, ("b", "c"): 0.65, ("c", "a"): 0.65}))
    assert found["choose"] is None and found["tied"] == []
    assert found["headline"].startswith("The judge goes in circles") and len(found["because"]) == 3
    assert "a wins 65% (55% to 75%) against start; is beaten: c wins 65% (55% to 75%) against a." in found["because"]


def test_two_digits_of_the_half_width() -> None:
    found = results(0.0123, arm("start", 0.0), arm("a", 0.5))
    assert said_gap(found, "a", "start") == "+0.500 (+0.488 to +0.512) over start"
