"""Win rates by hand, and that swapping removes a judge's position bias."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trueline.evals.interval import wilson
from trueline.evals.winrate import after_swap, win_rate, win_rate_of_verdicts


def test_by_hand() -> None:
    found = win_rate([3, 1, 2, 5], [1, 2, 2, 1])
    assert (found.wins, found.ties, found.losses, found.n) == (2, 1, 1, 4)
    assert found.rate.estimate == 0.625 and found.p_value == 1.0 and found.rate.method == "bootstrap over prompts"
    assert found.difference is not None and found.difference.estimate == pytest.approx((2 - 1 + 0 + 4) / 4)
    assert win_rate([1.0, 1.05], [1.0, 1.0], margin=0.1).ties == 2


def test_the_interval_fits_the_outcomes() -> None:
    clear = win_rate([1, 1, 0], [0, 0, 1])
    assert clear.rate == wilson(2, 3)
    all_won = win_rate([1.0] * 8, [0.0] * 8, list("aabbccdd"))
    assert all_won.rate == wilson(4, 4) and all_won.rate.low < 0.6  # four prompts, not eight responses
    grouped = win_rate([1, 1, 0, 0], [0, 0, 1, 1], ["a", "a", "b", "b"])
    assert grouped.rate.method == "bootstrap over prompts" and (grouped.rate.low, grouped.rate.high) == (0, 1)


def test_mirror() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    one, other = win_rate(a, b), win_rate(b, a)
    assert one.rate.estimate == pytest.approx(1 - other.rate.estimate) and one.p_value == other.p_value
    assert one.rate.low == pytest.approx(1 - other.rate.high)


def test_verdicts() -> None:
    found = win_rate_of_verdicts(["a", "b", "tie", "a"])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1) and found.difference is None
    with pytest.raises(ValueError, match="verdict 1 is 'error'"):
        win_rate_of_verdicts(["a", "error"])


def test_swap_removes_position_bias() -> None:
    """Sheet: a judge that takes the first with 0.8, equal systems: single order 0.80, swapped 0.16 / 0.68 / 0.16."""
    rng = np.random.default_rng(0)
    first = np.where(rng.random(6000) < 0.8, "a", "b").tolist()  # A is shown first
    second = np.where(rng.random(6000) < 0.8, "b", "a").tolist()  # B is shown first
    merged, consistency = after_swap(first, second)
    shares = [merged.count(v) / 6000 for v in ("a", "tie", "b")]
    assert shares == pytest.approx([0.16, 0.68, 0.16], abs=0.025) and consistency == pytest.approx(0.32, abs=0.025)
    assert win_rate_of_verdicts(first).rate.estimate == pytest.approx(0.8, abs=0.02)
    assert win_rate_of_verdicts(merged).rate.estimate == pytest.approx(0.5, abs=0.02)
    assert after_swap(["tie", "a"], ["tie", "tie"]) == (["tie", "tie"], 0.5)
    assert math.isnan(after_swap([], [])[1])
