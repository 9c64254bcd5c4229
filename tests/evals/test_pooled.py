"""Few seeds, several methods: intervals hold what they say, and the simultaneous ones hold together."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from trueline.evals.interval import crossed_mean, student_quantile
from trueline.evals.pooled import UNTRAINED, range_quantile, spread_of_one, spread_of_two


def world(rng: np.random.Generator, M: int, S: int, seeds_M: np.ndarray, common: float, P: int = 40) -> np.ndarray:
    """Rewards [M, S, P] whose truth is 0: seeds (a share of them common to all methods), prompts, prompts by method, and a rest."""
    both_SM = math.sqrt(common) * rng.normal(size=(S, 1)) + math.sqrt(1 - common) * rng.normal(size=(S, M))
    prompts = 0.7 * rng.normal(size=P) + 0.5 * rng.normal(size=(M, 1, P))
    return (both_SM * seeds_M).T[:, :, None] + prompts + rng.normal(size=(M, S, P))


def covered(values_MSP: np.ndarray) -> tuple[list[bool], list[bool]]:
    """Whether 0 lies in the interval of each method, and of each difference."""
    one, two = spread_of_one(values_MSP.mean(2)), spread_of_two(values_MSP.mean(2))
    alone = [crossed_mean(values_SP, spread=one) for values_SP in values_MSP]
    gaps = [crossed_mean(values_MSP[a] - values_MSP[b], spread=two) for a, b in combinations(range(len(values_MSP)), 2)]
    return [found.low <= 0 <= found.high for found in alone], [found.low <= 0 <= found.high for found in gaps]


def test_intervals_cover() -> None:
    """Two seeds, that differ far more than prompts: of a method by itself one degree of freedom is all there is."""
    rng = np.random.default_rng(1)
    found = [covered(world(rng, 5, 2, np.full(5, 0.6), 0.3)) for _ in range(100)]
    assert np.mean([one for one, _ in found]) > 0.93
    assert np.mean([two for _, two in found]) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.7])
@pytest.mark.parametrize("sd", [0.05, 0.4, 0.8])
@pytest.mark.parametrize(("M", "S"), [(4, 2), (5, 3)])
def test_intervals_cover_everywhere(M: int, S: int, sd: float, common: float) -> None:
    rng = np.random.default_rng(0)
    found = [covered(world(rng, M, S, np.full(M, sd), common)) for _ in range(200)]
    assert 0.92 < np.mean([one for one, _ in found]) < 0.985
    assert 0.93 < np.mean([two for _, two in found]) < 0.985


@pytest.mark.slow
def test_one_method_whose_seeds_scatter_more() -> None:
    """It is covered less often than is said; the others are covered as before, or better."""
    rng, found = np.random.default_rng(2), []
    for _ in range(300):
        values = world(rng, 5, 2, np.array([0.1, 0.1, 0.1, 0.1, 0.6]), 0.0)
        one = spread_of_one(values.mean(2))
        found.append([interval.low <= 0 <= interval.high for interval in (crossed_mean(v, spread=one) for v in values)])
    assert np.mean(found, 0)[:4].mean() > 0.94 and 0.80 < np.mean(found, 0)[4] < 0.94


def test_two_seeds_are_worth_having() -> None:
    """Where all methods scatter alike, the widest tenth of the intervals is far narrower than of a method by itself."""
    rng, alone, together = np.random.default_rng(3), [], []
    for _ in range(40):
        values = world(rng, 5, 2, np.full(5, 0.4), 0.0)
        one = spread_of_one(values.mean(2))
        alone += [(found.high - found.low) / 2 for found in (crossed_mean(v) for v in values)]
        together += [(found.high - found.low) / 2 for found in (crossed_mean(v, spread=one) for v in values)]
    assert np.quantile(together, 0.9) < np.quantile(alone, 0.9) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("S", "least"), [(2, 0.89), (3, 0.93)])
def test_differences_hold_together(S: int, least: float) -> None:
    """The largest of all differences, in its standard errors, stays within its interval in so many of all studies."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(400):
        values = world(rng, 5, S, np.full(5, 0.3), 0.3)
        two = spread_of_two(values.mean(2))
        gaps = [values[a] - values[b] for a, b in combinations(range(5), 2)]
        widest = max(gaps, key=lambda gap: abs(gap.mean()) / crossed_mean(gap, spread=two).se)
        found = crossed_mean(widest, spread=two, among=5)
        held += found.low <= 0 <= found.high
    assert held / 400 > least


def test_range_quantiles_are_those_of_the_tables() -> None:
    table = {(3, 10): 3.877, (6, 4): 6.706, (4, 20): 3.958, (5, 1e9): 3.858, (3, 1): 26.98, (10, 5): 6.995}
    for (methods, dof), q in table.items():
        assert range_quantile(0.95, methods, dof) == pytest.approx(q / math.sqrt(2), rel=2e-3)
    assert range_quantile(0.95, 2, 3) == pytest.approx(student_quantile(0.95, 3), rel=1e-3)


def test_spreads_by_hand() -> None:
    """Means [[1, 3], [2, 8]]: a seed is worth 2 to the one and 6 to the other."""
    means = np.array([[1.0, 3.0], [2.0, 8.0]])
    one, two = spread_of_one(means), spread_of_two(means)
    assert one is not None and one.variance == pytest.approx((2 + 18) / 2) and one.dof == 2
    assert two is not None and two.variance == pytest.approx(np.var([-1, -5], ddof=1)) and two.dof == 1
    assert spread_of_one(means[:, :1]) is None and spread_of_two(means[:1]) is None
    alone = spread_of_one(means[:1])
    assert alone is not None and (alone.variance, alone.dof) == (2, 1)


def test_nothing_trained_has_no_seeds() -> None:
    """What differs from seed to seed is then drawing alone, and the prompts show that."""
    values_SP = np.random.default_rng(5).normal(size=(2, 30))
    found = crossed_mean(values_SP, spread=UNTRAINED)
    assert found.se == pytest.approx(values_SP.mean(0).std(ddof=1) / math.sqrt(30)) and "nothing was trained" in found.method
