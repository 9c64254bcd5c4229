"""Calibration against hand numbers, the sheet's null values, and a grid search."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trueline.evals.calibration import (
    accuracy_by_gap,
    fit_temperature,
    null_ece,
    pair_calibration,
    reliability,
    share_right,
)
from trueline.evals.interval import wilson


def test_reliability_by_hand() -> None:
    """Two bins of width 0.5: {0.2, 0.4} right once, {0.9, 1.0} right twice."""
    found = reliability([0.2, 0.4, 0.9, 1.0], [0, 1, 1, 1], bins=2)
    assert [b.count for b in found.bins] == [2, 2]  # confidence 1.0 belongs to the last bin
    assert found.ece == pytest.approx(0.5 * abs(0.5 - 0.3) + 0.5 * abs(1 - 0.95))
    assert found.brier == pytest.approx((0.04 + 0.36 + 0.01 + 0) / 4)
    empty = reliability([0.9, 0.95], [1, 1], bins=10)
    assert math.isnan(empty.bins[0].accuracy) and empty.ece == pytest.approx(0.075)
    assert json.dumps(empty.to_dict(), allow_nan=False)


def test_equal_mass_bins_hold_equally_many() -> None:
    rng = np.random.default_rng(0)
    found = reliability(rng.beta(5, 1, size=1000), rng.integers(0, 2, 1000), bins=10, equal_mass=True)
    assert [b.count for b in found.bins] == [100] * 10
    constant = reliability([0.5] * 4, [0, 1, 0, 1], bins=5, equal_mass=True)
    assert len(constant.bins) == 1 and constant.ece == 0


@pytest.mark.parametrize(("n", "width", "mass"), [(200, 0.061, 0.087), (1000, 0.030, 0.039), (10000, 0.009, 0.012)])
def test_null_ece_of_the_sheet(n: int, width: float, mass: float) -> None:
    """A perfect predictor with confidence U(0.5, 1), 15 bins: what chance alone gives."""
    confidence = np.random.default_rng(0).uniform(0.5, 1, n)
    assert null_ece(confidence, seed=1) == pytest.approx(width, rel=0.12)
    assert null_ece(confidence, equal_mass=True, seed=1) == pytest.approx(mass, rel=0.12)


def test_null_ece_is_the_mean_of_ece() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 300)
    drawn = [reliability(confidence, rng.random(300) < confidence).ece for _ in range(200)]
    assert null_ece(confidence) == pytest.approx(np.mean(drawn), rel=0.06)


def test_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=500) * 3 + 1.5
    best = fit_temperature(gaps)
    grid = np.exp(np.linspace(-3, 5, 4001))
    losses = [np.logaddexp(0, -gaps / t).mean() for t in grid]
    assert best == pytest.approx(grid[int(np.argmin(losses))], rel=0.005)


def test_temperature_is_recovered() -> None:
    rng = np.random.default_rng(0)
    size = rng.exponential(size=50000) * 2
    sign = np.where(rng.random(50000) < 1 / (1 + np.exp(-size)), 1, -1)
    assert fit_temperature(size * sign) == pytest.approx(1, rel=0.03)
    assert fit_temperature(size * sign * 4) == pytest.approx(4, rel=0.03)  # over-confident


def test_temperature_at_the_limits() -> None:
    assert fit_temperature([-1.0, 0.5]) == math.inf  # worse than a coin
    assert fit_temperature([1.0, 0.5]) == 0.0  # always right


def test_pair_calibration() -> None:
    """Bradley-Terry with the true slope is calibrated to within what chance gives (sheet: ECE 0.002 in a large sample)."""
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(size=40000)) * 2
    gaps = np.where(rng.random(40000) < 1 / (1 + np.exp(-size)), size, -size)
    found = pair_calibration(gaps)
    assert found.reliability.ece < 0.01 and found.reliability.ece < 2 * found.null_ece
    assert found.temperature == pytest.approx(1, rel=0.05)
    assert found.accuracy.estimate == pytest.approx((1 / (1 + np.exp(-size))).mean(), abs=0.01)
    accuracies = [b.accuracy for b in found.by_gap]
    assert accuracies == sorted(accuracies) and [b.count for b in found.by_gap] == [8000] * 5
    assert pair_calibration(gaps * 3).reliability.ece > 0.05
    assert accuracy_by_gap(gaps) == found.by_gap
    assert pair_calibration([0.0, 0.0]).accuracy.estimate == 0.5


def test_pairs_of_one_prompt_are_not_independent() -> None:
    """Rankings of 4, six pairs each, whose prompts are easy or hard: the interval covers as often as it says."""
    rng, prompts, covered, alone = np.random.default_rng(0), np.repeat(np.arange(80), 6), 0, 0
    for _ in range(300):
        right = rng.random((80, 6)) < rng.beta(0.7, 0.3, size=(80, 1))
        found, naive = share_right(right.ravel(), prompts), wilson(right.sum(), right.size)
        covered, alone = covered + (found.low <= 0.7 <= found.high), alone + (naive.low <= 0.7 <= naive.high)
        assert found.estimate == pytest.approx(naive.estimate) and found.n == 80
    assert 0.92 <= covered / 300 <= 0.98 and alone / 300 < 0.8, (covered, alone)
    assert pair_calibration([1.0, 1.0, -1.0, -1.0], list("aabb")).accuracy == share_right([1, 1, 0, 0], list("aabb"))


def test_share_right_at_its_limits() -> None:
    one = share_right([1, 0, 1, 1], list("abcd"))
    assert (one.low, one.high, one.n) == (wilson(3, 4).low, wilson(3, 4).high, 4), "a pair per prompt is Wilson's"
    sure = share_right([1, 1, 1, 1, 1, 1], list("aabbcc"))
    assert (sure.low, sure.high) == (wilson(3, 3).low, 1.0), "three prompts, and not six"
    assert share_right([1, 0, 1, 0], list("aabb")).low == pytest.approx(wilson(1, 2).low), "alike in every prompt"
    assert share_right([1, 0], list("aa")).n == 1 and share_right([1, 0], list("aa")).low >= 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="not logits"):
        reliability([1.5], [1])
    with pytest.raises(ValueError, match="one to one"):
        reliability([0.5], [1, 0])
    with pytest.raises(ValueError, match="finite score gaps"):
        pair_calibration([float("nan")])
