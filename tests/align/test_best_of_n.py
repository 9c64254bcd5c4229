"""Best-of-n: the sheet's KL table, exact expectations, and the unbiased estimator."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from trueline.align.best_of_n import curve, distribution, exact_kl, expected_best, kl_bound
from trueline.align.group import Group


@pytest.mark.parametrize(
    ("n", "bound", "large", "medium", "small"),
    [
        (2, 0.193, 0.193, 0.193, 0.182),
        (4, 0.636, 0.636, 0.636, 0.540),
        (16, 1.835, 1.835, 1.832, 0.851),
        (64, 3.175, 3.174, 3.130, 0.852),
        (256, 4.549, 4.549, 4.408, 0.852),
    ],
)
def test_kl_table(n: int, bound: float, large: float, medium: float, small: float) -> None:
    """Random probabilities and rewards on V = 10,000, 100 and 10 responses: the bound is reached as n times the largest
    probability vanishes, and is far above otherwise."""
    assert kl_bound(n) == pytest.approx(bound, abs=1e-3)
    for V, expected in ((10000, large), (100, medium), (10, small)):
        rng = np.random.default_rng(0)
        found = exact_kl(rng.dirichlet(np.ones(V)), rng.normal(size=V), n)
        assert found == pytest.approx(expected, abs=1e-3) and found <= kl_bound(n) + 1e-12


def test_distribution_is_that_of_enumeration() -> None:
    """All 4^3 triples of draws, with a tie: the best one, ties shared by who was drawn."""
    probs, scores = np.array([0.1, 0.4, 0.3, 0.2]), np.array([2.0, 0.0, 1.0, 2.0])
    expected = np.zeros(4)
    for triple in product(range(4), repeat=3):
        drawn = np.array(triple)
        best = drawn[scores[drawn] == scores[drawn].max()]
        for k in best:
            expected[k] += probs[drawn].prod() / len(best)
    assert distribution(probs, scores, 3) == pytest.approx(expected)
    assert exact_kl(probs, scores, 3) == pytest.approx((expected * np.log(expected / probs)).sum())
    assert exact_kl(probs, scores, 1) == pytest.approx(0) and exact_kl(probs, [1, 1, 1, 1], 8) == pytest.approx(0)
    assert distribution([0.5, 0.5, 0.0], [0, 1, 2], 4).tolist() == [0.0625, 0.9375, 0.0]


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    scores = [0.3, -1.0, 2.0, 0.7, 0.7, 1.5]
    for n in range(1, 7):
        assert expected_best(scores, n) == pytest.approx(np.mean([max(c) for c in combinations(scores, n)]))


def test_expected_best_by_another_measure() -> None:
    """Chosen by a proxy, counted by the truth; tied proxies share."""
    proxy, truth = [1.0, 2.0, 2.0], [5.0, 0.0, 1.0]
    assert expected_best(proxy, 3, truth) == pytest.approx(0.5)
    assert expected_best(proxy, 1, truth) == pytest.approx(2.0)
    assert expected_best(proxy, 2, truth) == pytest.approx((0 + 1 + 0.5) / comb(3, 2))


@pytest.mark.parametrize(("n", "expected"), [(4, 1.03), (16, 1.77), (64, 2.34)])
def test_gaussian_rewards(n: int, expected: float) -> None:
    rng = np.random.default_rng(0)
    found = np.mean([expected_best(rng.normal(size=256), n) for _ in range(60)])
    assert found == pytest.approx(expected, abs=0.06) and found < np.sqrt(2 * kl_bound(n))  # below the Gibbs bound


def test_curve(make_group: Callable[..., Group]) -> None:
    groups = [make_group([1.0, 2.0], "a"), make_group([0.0, 4.0], "b")]
    found = curve(groups, [1, 2])
    assert [(n, kl) for n, kl, _ in found] == [(1, 0.0), (2, pytest.approx(np.log(2) - 0.5))]
    assert [v.tolist() for _, _, v in found] == [[1.5, 2.0], [2.0, 4.0]]
    assert curve(groups, [2], [[7.0, 3.0], [1.0, 0.0]])[0][2].tolist() == [3.0, 0.0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        kl_bound(0)
    with pytest.raises(ValueError, match="at least 3 samples"):
        expected_best([1.0, 2.0], 3)
