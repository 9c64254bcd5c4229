"""Intervals and tests against hand numbers, tables and coverage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from trueline.evals.interval import bootstrap_mean, normal_mean, paired_difference, sign_test, wilson
from trueline.evals.result import Interval, to_plain


def test_wilson_by_hand() -> None:
    """z = 1.96, p = 0.9, n = 50: centre (0.9 + 0.0384) / 1.0768, half-width by the formula."""
    found = wilson(45, 50)
    z = 1.959964
    centre = (0.9 + z * z / 100) / (1 + z * z / 50)
    half = z * math.sqrt(0.9 * 0.1 / 50 + z * z / 10000) / (1 + z * z / 50)
    assert found.low == pytest.approx(centre - half, abs=1e-6) == pytest.approx(0.7864, abs=1e-3)
    assert found.high == pytest.approx(centre + half, abs=1e-6) == pytest.approx(0.9565, abs=1e-3)
    assert wilson(0, 10).low == 0 and wilson(10, 10).high == 1 and wilson(0, 10).high > 0.2


def test_wilson_covers_where_wald_does_not() -> None:
    """Sheet: p = 0.98, n = 50: Wald 0.635, Wilson 0.922. Exact, by summing binomial probabilities."""

    def coverage(interval: str, p: float, n: int) -> float:
        total = 0.0
        for k in range(n + 1):
            share = k / n
            half = 1.96 * math.sqrt(share * (1 - share) / n)
            low, high = (share - half, share + half) if interval == "wald" else (wilson(k, n).low, wilson(k, n).high)
            total += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (low <= p <= high)
        return total

    assert coverage("wald", 0.98, 50) == pytest.approx(0.635, abs=0.005)
    assert coverage("wilson", 0.98, 50) == pytest.approx(0.922, abs=0.005)
    assert coverage("wilson", 0.9, 50) == pytest.approx(0.971, abs=0.005)


def test_385_for_five_points() -> None:
    assert wilson(385 / 2, 385).high - 0.5 == pytest.approx(0.05, abs=0.001)


def test_normal_mean_by_hand_and_clustered() -> None:
    found = normal_mean([1.0, 2.0, 3.0, 4.0])
    assert found.estimate == 2.5 and found.se == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    repeated = normal_mean([1, 1, 2, 2, 3, 3, 4, 4], "aabbccdd")
    assert repeated.n == 4 and repeated.se == pytest.approx(found.se)  # copies are not evidence


def test_bootstrap_knows_the_normal_limit_and_the_unit() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found, normal = bootstrap_mean(values, seed=1), normal_mean(values)
    assert found.se == pytest.approx(normal.se, rel=0.05) and found.low == pytest.approx(normal.low, abs=0.01)
    copied = bootstrap_mean(np.repeat(values, 3), np.repeat(np.arange(400), 3), seed=1)
    assert copied.n == 400 and copied.se == pytest.approx(normal.se, rel=0.05)
    naive = bootstrap_mean(np.repeat(values, 3), seed=1)
    assert naive.se < 0.65 * normal.se  # what forgetting the groups would claim


def test_bootstrap_coverage() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(150):
        found = bootstrap_mean(rng.exponential(size=60), resamples=400, seed=trial)
        hits += found.low <= 1 <= found.high
    assert 0.88 < hits / 150 < 0.98


def test_unequal_groups_are_weighted_by_their_values() -> None:
    found = bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert found.estimate == 0.75 and found.low == 0 and found.high == 1


def test_paired_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(0)
    easy = rng.normal(size=200) * 10  # prompts differ far more than systems do
    found = paired_difference(easy + 0.5 + rng.normal(size=200), easy + rng.normal(size=200))
    assert found.excludes_zero and found.estimate == pytest.approx(0.5, abs=0.3)
    with pytest.raises(ValueError, match="one to one"):
        paired_difference([1.0], [1.0, 2.0])


def test_sign_test_by_hand() -> None:
    assert sign_test(9, 1) == pytest.approx(2 * (1 + 10) / 1024)
    assert sign_test(5, 5) == 1.0 and sign_test(0, 0) == 1.0
    assert sign_test(1, 9) == sign_test(9, 1)
    assert 0 < sign_test(1400, 1000) < 1e-14  # no underflow to nonsense


def test_refusals() -> None:
    with pytest.raises(ValueError, match="0 <= wins <= n"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="value 1 is nan"):
        bootstrap_mean([0.0, float("nan")])
    with pytest.raises(ValueError, match="at least one value"):
        normal_mean([])
    with pytest.raises(ValueError, match="one label per value"):
        normal_mean([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match=r"write 0\.95"):
        wilson(1, 2, level=95)


def test_results_become_json() -> None:
    plain = to_plain(
        {"a": Interval(estimate=math.nan, low=np.float64(1), high=2, se=3), "b": np.arange(2), "c": (1, None)}
    )
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "a": {"estimate": None, "low": 1, "high": 2, "se": 3, "level": 0.95, "n": 0, "method": ""},
        "b": [0, 1],
        "c": [1, None],
    }


def test_student_quantiles_are_those_of_the_tables() -> None:
    from trueline.evals.interval import student_quantile

    table = {1: 12.7062, 2: 4.3027, 5: 2.5706, 10: 2.2281, 30: 2.0423, 100: 1.9840}
    assert {dof: round(student_quantile(0.95, dof), 3) for dof in table} == {dof: round(t, 3) for dof, t in table.items()}
    assert student_quantile(0.99, 3) == pytest.approx(5.8409, abs=1e-3)


def test_crossed_mean_by_hand() -> None:
    """[[1, 2, 3], [3, 4, 5]]: prompts have variance 1, seeds 2, and there is no rest."""
    from trueline.evals.interval import crossed_mean

    found = crossed_mean([[1, 2, 3], [3, 4, 5]])
    assert found.estimate == 3 and found.se == pytest.approx(math.sqrt(1 / 3 + 2 / 2))
    one = crossed_mean([[1, 2, 3, 6]])
    assert one.se == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)
    assert one.high - 3 == pytest.approx(3.1824 * one.se, rel=1e-4) and "one seed" in one.method


def test_crossed_mean_covers() -> None:
    """Of 400 studies with 4 seeds and 30 prompts, about 95 in 100 hold the truth; over prompts alone far fewer do."""
    from trueline.evals.interval import crossed_mean

    rng = np.random.default_rng(0)
    crossed = pooled = 0
    for _ in range(400):
        values_SP = 0.4 * rng.normal(size=(4, 1)) + 0.7 * rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
        crossed += crossed_mean(values_SP).low <= 0 <= crossed_mean(values_SP).high
        of_prompts = normal_mean(values_SP.mean(0))
        pooled += of_prompts.low <= 0 <= of_prompts.high
    assert 0.91 < crossed / 400 < 0.99 and pooled / 400 < 0.85
