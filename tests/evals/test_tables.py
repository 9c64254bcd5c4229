"""Text statistics, frontier and tables by hand."""

from __future__ import annotations

import json
import math

import pytest

from trueline.evals.frontier import Point, frontier, reward_at
from trueline.evals.result import Interval
from trueline.evals.table import markdown
from trueline.evals.text import distinct_n, lengths, repetition_share, text_report


def test_distinct_and_repetition_by_hand() -> None:
    assert distinct_n(["a b a", "b c"], 1) == 3 / 5
    assert distinct_n(["a b a", "a b"], 2) == 2 / 3
    assert math.isnan(distinct_n(["a"], 2))
    assert repetition_share("go on and on and on and on", 3) == pytest.approx(1 - 3 / 6)
    assert repetition_share("all words differ here") == 0 == repetition_share("")


def test_lengths() -> None:
    found = lengths(["One two, three.", "", "four"])
    assert (found.n, found.mean, found.median, found.longest, found.empty) == (3, 4 / 3, 1, 3, 1 / 3)
    report = text_report(["Same text.", "same text", "Same text."])
    assert report.distinct_texts == 2 / 3 and report.distinct_1 == 2 / 6 and json.dumps(report.to_dict())
    with pytest.raises(ValueError, match="at least one text"):
        lengths([])


def point(kl: float, reward: float) -> Point:
    def exactly(x: float) -> Interval:
        return Interval(estimate=x, low=x, high=x, se=0.0)

    return Point(name=f"{kl}", kl=exactly(kl), reward=exactly(reward))


def test_frontier_keeps_the_undominated() -> None:
    points = [point(2, 1.0), point(0, 0.0), point(1, 0.8), point(1.5, 0.7), point(1, 0.6), point(3, 1.0)]
    assert [p.kl.estimate for p in frontier(points)] == [0, 1, 2]
    assert reward_at(points, 0.5) == pytest.approx(0.4) and reward_at(points, 1.5) == pytest.approx(0.9)
    assert math.isnan(reward_at(points, 5)) and math.isnan(reward_at([], 1))


def test_markdown() -> None:
    rows = [{"model": "a|b", "score": Interval(estimate=0.5, low=0.4, high=0.6, se=0.05)}, {"model": "c", "n": 3}]
    assert markdown(rows, digits=2).splitlines() == [
        "| model |             score |   n |",
        "|-------|------------------:|----:|",
        "| a\\|b  | 0.50 [0.40, 0.60] |     |",
        "| c     |                   |   3 |",
    ]
