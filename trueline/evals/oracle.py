"""The exact answer on a listed response space: the best policy for reward - beta KL, and how far another one is from it.

    gibbs(reference, reward, beta)        pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x)
    log_partition(reference, reward, beta)     log Z(x); the best value of reward - beta KL is beta log Z
    gibbs_at_kl, reward_at_kl             the most reward that any policy has at this mean KL: the exact reward-KL curve
    judge_policy(policy, ...)             total variation to pi*, reward, KL, regret to that curve

All in float64. Prompts weigh the same; KL and reward are means over prompts, and one beta holds for all of them, which is what
maximises mean reward at a given mean KL.
Left out: where the policy comes from (recipes/oracle.py trains them).

Legend: P prompts, V responses (the same list for every prompt).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Table = np.ndarray
"""[P, V]."""


@dataclass(frozen=True, kw_only=True)
class Exactly:
    """One policy in a world where everything is known."""

    variation: float
    """Total variation to pi*, mean over prompts: the largest difference in probability of any set of responses."""
    reward: float
    """Expected reward."""
    kl: float
    """KL(policy || reference) in nats per response."""
    regret: float
    """The most reward at this KL, less this policy's."""
    gap: float
    """What reward - beta KL lacks to its maximum; equals beta KL(policy || pi*)."""


def log_partition(reference_PV: Table, reward_PV: Table, beta: float) -> np.ndarray:
    """log Z [P]."""
    if beta <= 0:
        raise ValueError(f"beta is {beta}: it must be above 0")
    with np.errstate(divide="ignore"):
        scores_PV = np.log(reference_PV) + reward_PV / beta
    return np.logaddexp.reduce(scores_PV, axis=1)


def gibbs(reference_PV: Table, reward_PV: Table, beta: float) -> Table:
    """The policy that maximises reward - beta KL (Rafailov et al., 2305.18290, equation 4)."""
    log_z_P = log_partition(reference_PV, reward_PV, beta)
    return reference_PV * np.exp(reward_PV / beta - log_z_P[:, None])


def expected_reward(policy_PV: Table, reward_PV: Table) -> float:
    """Mean over prompts."""
    return float((policy_PV * reward_PV).sum(1).mean())


def mean_kl(policy_PV: Table, reference_PV: Table) -> float:
    """KL(policy || reference), mean over prompts; infinite where the policy is outside of the reference's support."""
    held = policy_PV > 0
    if (reference_PV[held] <= 0).any():
        return float("inf")
    ratio = np.log(policy_PV[held] / reference_PV[held])
    return float((policy_PV[held] * ratio).sum() / len(policy_PV))


def total_variation(first_PV: Table, second_PV: Table) -> float:
    """Half of the summed differences, mean over prompts."""
    return float(0.5 * np.abs(first_PV - second_PV).sum(1).mean())


def gibbs_at_kl(reference_PV: Table, reward_PV: Table, kl: float) -> Table:
    """The policy with the most reward at this mean KL, by bisection over beta; past the KL of always taking the best, that."""
    if kl < 0:
        raise ValueError(f"kl is {kl}: it must be at least 0")
    low, high = 1e-9, 1e9  # 1 / beta
    for _ in range(100):
        middle = (low * high) ** 0.5
        too_far = mean_kl(gibbs(reference_PV, reward_PV, 1 / middle), reference_PV) > kl
        low, high = (low, middle) if too_far else (middle, high)
    return gibbs(reference_PV, reward_PV, 1 / low)


def reward_at_kl(reference_PV: Table, reward_PV: Table, kl: float) -> float:
    """Most expected reward at this mean KL."""
    return expected_reward(gibbs_at_kl(reference_PV, reward_PV, kl), reward_PV)


def judge_policy(policy_PV: Table, reference_PV: Table, reward_PV: Table, beta: float) -> Exactly:
    """What is to be known of a policy."""
    if not np.allclose(policy_PV.sum(1), 1, atol=1e-6):
        raise ValueError("a policy's probabilities must sum to 1 for every prompt")
    best_PV = gibbs(reference_PV, reward_PV, beta)
    reward, kl = expected_reward(policy_PV, reward_PV), mean_kl(policy_PV, reference_PV)
    most = reward_at_kl(reference_PV, reward_PV, kl) if np.isfinite(kl) else float(np.nan)
    value = beta * float(log_partition(reference_PV, reward_PV, beta).mean())
    return Exactly(
        variation=total_variation(policy_PV, best_PV),
        reward=reward,
        kl=kl,
        regret=most - reward,
        gap=value - (reward - beta * kl),
    )
