"""Advantages against hand-computed numbers and their definitions by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.objectives.advantages import gae, group_relative, is_flat, leave_one_out, rewards_to_go, whiten


def by_definition(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> list[float]:
    """Equation 16 of 1506.02438, sum by sum."""
    T = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < T else 0.0) - values[t] for t in range(T)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, T)) for t in range(T)]


def test_gae_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    rewards, values = ([rng.normal(size=n) for n in (5, 1, 3)] for _ in range(2))
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)):
        advantages, returns = gae(rewards, values, gamma, lam)
        for found, back, r, v in zip(advantages, returns, rewards, values, strict=True):
            assert found == pytest.approx(by_definition(r, v, gamma, lam))
            assert back == pytest.approx(found + v)


def test_gae_at_its_limits() -> None:
    rewards, values = [np.array([1.0, 0.0, 2.0])], [np.array([0.5, 1.0, -1.0])]
    assert gae(rewards, values, 1.0, 1.0)[0][0].tolist() == [2.5, 1.0, 3.0]  # future rewards less the value
    assert gae(rewards, values, 1.0, 0.0)[0][0].tolist() == [1.5, -2.0, 3.0]  # one step's surprise
    assert gae([], [], 1.0, 1.0) == ([], [])
    assert rewards_to_go(np.array([1.0, 0.0, 2.0])).tolist() == [3.0, 2.0, 2.0]
    assert rewards_to_go(np.array([1.0, 0.0, 2.0]), 0.5).tolist() == [1.5, 1.0, 2.0]


def test_leave_one_out_by_hand() -> None:
    assert leave_one_out(np.array([3.0, 1.0, 2.0])) == pytest.approx([1.5, -1.5, 0.0])
    rewards = np.random.default_rng(1).normal(size=6)
    assert leave_one_out(rewards) == pytest.approx([r - np.delete(rewards, k).mean() for k, r in enumerate(rewards)])


def test_group_relative_by_hand() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 0.0])  # mean 1/4, sample standard deviation 1/2
    assert group_relative(rewards, epsilon=0.0) == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert group_relative(rewards, scale=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert group_relative(np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert is_flat(np.ones(3)) and not is_flat(rewards)


def test_whitening_with_and_without_the_mean() -> None:
    values = [np.array([1.0, 2.0]), np.array([6.0])]
    everything = np.array([1.0, 2.0, 6.0])
    shifted, kept = np.concatenate(whiten(values)), np.concatenate(whiten(values, shift_mean=False))
    assert shifted == pytest.approx((everything - 3) / everything.std())
    assert kept == pytest.approx(shifted + 3)
    assert np.concatenate(whiten([np.ones(4)])).tolist() == [0.0] * 4
    assert whiten([]) == []
