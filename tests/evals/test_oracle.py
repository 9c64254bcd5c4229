"""Closed forms: a coin between two responses, and what is true of every world."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.evals.oracle import (
    expected_reward,
    gibbs,
    judge_policy,
    log_partition,
    mean_kl,
    reward_at_kl,
    total_variation,
)


def test_two_responses_by_hand() -> None:
    """pi_ref 1/2, rewards 0 and 1, beta 1 / ln 3: odds 3, so pi* = (1/4, 3/4) and Z = 2."""
    reference, reward, beta = np.array([[0.5, 0.5]]), np.array([[0.0, 1.0]]), 1 / np.log(3)
    assert np.allclose(gibbs(reference, reward, beta), [[0.25, 0.75]])
    assert np.allclose(np.exp(log_partition(reference, reward, beta)), 2)
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    found = judge_policy(reference, reference, reward, beta)
    assert (
        np.isclose(found.variation, 0.25)
        and found.reward == 0.5
        and found.kl == 0
        and np.isclose(found.regret, 0, atol=1e-4)
    )
    assert np.isclose(mean_kl(gibbs(reference, reward, beta), reference), kl)
    assert np.isclose(reward_at_kl(reference, reward, kl), 0.75)
    assert np.isclose(reward_at_kl(reference, reward, 10.0), 1)
    assert judge_policy(np.array([[0.75, 0.25]]), reference, reward, beta).regret == pytest.approx(0.5)


def test_the_value_s_gap_is_beta_kl_to_the_optimum() -> None:
    rng = np.random.default_rng(0)
    reference, other = (rng.dirichlet(np.ones(9), size=3) for _ in range(2))
    reward = rng.normal(size=(3, 9))
    best = gibbs(reference, reward, 0.3)
    found = judge_policy(other, reference, reward, 0.3)
    assert found.gap == pytest.approx(0.3 * mean_kl(other, best))
    assert found.regret >= 0 and judge_policy(best, reference, reward, 0.3).gap == pytest.approx(0, abs=1e-12)
    assert found.variation == total_variation(other, best) == total_variation(best, other)


def test_no_policy_has_more_reward_at_its_kl() -> None:
    rng = np.random.default_rng(1)
    reference, reward = rng.dirichlet(np.ones(6), size=2), rng.normal(size=(2, 6))
    for _ in range(50):
        other = rng.dirichlet(rng.uniform(0.2, 3) * np.ones(6), size=2)
        assert expected_reward(other, reward) <= reward_at_kl(reference, reward, mean_kl(other, reference)) + 1e-9


def test_what_is_not_a_policy_is_refused() -> None:
    half = np.array([[0.5, 0.4]])
    with pytest.raises(ValueError, match="sum to 1"):
        judge_policy(half, half, half, 1.0)
    with pytest.raises(ValueError, match="beta is 0"):
        log_partition(half, half, 0)
    assert mean_kl(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) == float("inf")
