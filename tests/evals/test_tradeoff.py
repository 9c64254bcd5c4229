"""The curve between two goals, and accuracy across them."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.evals.tradeoff import cross_accuracy, table, tradeoff


def test_the_curve_by_hand() -> None:
    """Two prompts of three responses: good at one goal, at the other, and a compromise."""
    helpful, harmless = [[3, 0, 2], [3, 0, 1]], [[0, 3, 2], [0, 3, 1]]
    points = tradeoff(helpful, harmless, (0.0, 0.5, 1.0))
    assert [p.first.estimate for p in points] == [-1.5, (2 + 3) / 2 - 1.5, 1.5]
    assert [p.second.estimate for p in points] == [1.5, (2 + 0) / 2 - 1.5, -1.5]
    assert "weight of helpful" in table(points, ("helpful", "harmless")) and points[0].to_dict()["weight"] == 0


def test_more_weight_never_loses_what_it_weighs() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(50, 8))
    points = tradeoff(first.tolist(), (-0.5 * first + rng.normal(size=(50, 8))).tolist())
    a, b = ([getattr(p, name).estimate for p in points] for name in ("first", "second"))
    assert a == sorted(a) and b == sorted(b, reverse=True) and a[-1] > 1 and b[0] > 1
    with pytest.raises(ValueError, match="same responses"):
        tradeoff([[1, 2]], [[1, 2, 3]])
    with pytest.raises(ValueError, match="between 0 and 1"):
        tradeoff([[1, 2]], [[1, 2]], (1.5,))


def test_a_model_of_one_goal_is_below_chance_on_the_other() -> None:
    """One feature with opposite weights: harm helps, as far as the helpful model can see."""
    rng = np.random.default_rng(1)
    feature = {"helpful pairs": rng.normal(1.0, 1.0, 400), "harmless pairs": rng.normal(-1.0, 1.0, 400)}
    models = {"helpful model": 1.0, "harmless model": -1.0}
    lines = cross_accuracy({(m, d): sign * gaps for m, sign in models.items() for d, gaps in feature.items()})
    found = {(line["model"], pairs): line[pairs] for line in lines for pairs in feature}
    assert found["helpful model", "helpful pairs"].low > 0.75 and found["helpful model", "harmless pairs"].high < 0.25
    assert found["harmless model", "harmless pairs"].low > 0.75 and found["harmless model", "helpful pairs"].high < 0.25
    assert cross_accuracy({("m", "d"): [0.0, 1.0]})[0]["d"].estimate == 0.75
