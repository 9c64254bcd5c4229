"""Predicted distributions against hand numbers and simulated people."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trueline.evals.distribution import category_pair_calibration, distribution_quality, preference

WORTH = (-1.0, 0.0, 1.0)


def test_quality_by_hand() -> None:
    shares, targets = np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]]), np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    found = distribution_quality(shares, targets, WORTH)
    expected = [-(0.5 * np.log(0.3) + 0.5 * np.log(0.5)), -np.log(0.6)]
    assert found.cross_entropy.estimate == pytest.approx(np.mean(expected)) and found.entropy == pytest.approx(np.log(2) / 2)
    assert found.wasserstein.estimate == pytest.approx((0.2 + 0.4) / 2)
    assert found.utility_error.estimate == pytest.approx((0.2 + 0.4) / 2) and found.utility_bias.estimate == pytest.approx(0.1)
    assert found.accuracy.estimate == pytest.approx((0.5 + 1) / 2)
    assert found.predicted == pytest.approx((0.4, 0.35, 0.25)) and found.observed == pytest.approx((0.5, 0.25, 0.25))
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_the_true_distribution_is_calibrated_and_a_sharper_one_is_not() -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet((1, 1, 1), 6000)
    picks = np.eye(3)[(rng.random((6000, 1)) > true.cumsum(1)).sum(1)]
    sharp = true**3 / (true**3).sum(1, keepdims=True)
    good, bad = distribution_quality(true, picks, WORTH), distribution_quality(sharp, picks, WORTH)
    assert good.reliability.ece < 0.02 < 0.1 < bad.reliability.ece
    assert good.cross_entropy.high < bad.cross_entropy.low and abs(good.utility_bias.estimate) < 0.03
    assert good.accuracy.estimate == bad.accuracy.estimate  # which cannot see it


def test_preference_is_that_of_independent_draws() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.dirichlet(np.ones(4), 5), rng.dirichlet(np.ones(4), 5)
    for found, x, y in zip(preference(a, b), a, b, strict=True):
        assert found == pytest.approx(sum(x[i] * y[j] * (1.0 if i > j else 0.5 * (i == j)) for i in range(4) for j in range(4)))
    np.testing.assert_allclose(preference(a, b) + preference(b, a), 1)
    assert preference(a, a) == pytest.approx([0.5] * 5)


def test_pairs_by_expected_utility_and_by_preference() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.dirichlet((1, 1, 1), 8000), rng.dirichlet((1, 1, 1), 8000)
    a_wins = rng.random(8000) < preference(a, b)
    chosen, rejected = np.where(a_wins[:, None], a, b), np.where(a_wins[:, None], b, a)
    found = category_pair_calibration(chosen, rejected, WORTH)
    assert found.reliability.ece < 0.02 and found.reliability.ece < 2 * found.null_ece and found.accuracy.low > 0.6
    accuracies = [one.accuracy for one in found.by_gap]
    assert accuracies == sorted(accuracies) and accuracies[-1] > accuracies[0] + 0.2
    assert found.nll == pytest.approx(-np.log(preference(chosen, rejected)).mean()) and found.nll < np.log(2)
    sharp = [x**4 / (x**4).sum(1, keepdims=True) for x in (chosen, rejected)]
    assert category_pair_calibration(sharp[0], sharp[1], WORTH).reliability.ece > 0.1
    one = category_pair_calibration(np.array([[0.0, 0.5, 0.5]]), np.array([[0.5, 0.5, 0.0]]), WORTH)
    assert one.nll == pytest.approx(-np.log(0.875)) and one.by_gap[0].confidence == pytest.approx(1.0) and one.accuracy.estimate == 1
    with pytest.raises(ValueError, match="sum to 1"):
        preference(a, b * 2)
    with pytest.raises(ValueError, match="do not match"):
        distribution_quality(a, b, (0.0, 1.0))
