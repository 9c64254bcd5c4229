"""The verdict says what the intervals say: a winner, a draw, or nothing."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from trueline.study.verdict import verdict


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
    assert "+0.5 (+0.3 to +0.7) over a" in found["because"][0]


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
