"""How much better a response, or a token of it, was than expected: what the policy-gradient methods differ in.

    gae              sum_l (gamma lambda)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t     Schulman et al., 1506.02438, eq. 16
    leave_one_out    r_k - mean of the other K - 1 rewards of the prompt                         Ahmadian et al. (RLOO), 2402.14740
    group_relative   (r_k - mean) / std over the K responses of the prompt                       Shao et al. (GRPO), 2402.03300, eq. 4
                     without the division: Liu et al. (Dr. GRPO), 2503.20783
    whiten           (x - mean) / std over everything                                            Hu (REINFORCE++), 2501.03262

All are pure functions of arrays in float64; V after the last token is 0. A standard deviation within a group is the sample's
(n - 1), as in the published code; whitening divides by the population's.

Legend: S responses, T tokens of a response, K responses to one prompt, N scored tokens of all responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards."""


def gae(
    rewards: Sequence[np.ndarray], values: Sequence[np.ndarray], gamma: float, lam: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(advantages, returns), one array [T] per response. returns = advantages + values, before any whitening."""
    lengths = [len(rewards_T) for rewards_T in rewards]
    longest = max(lengths, default=0)
    rewards_ST, values_ST = (np.zeros((len(rewards), longest + 1)) for _ in range(2))
    for s, (rewards_T, values_T) in enumerate(zip(rewards, values, strict=True)):
        rewards_ST[s, : len(rewards_T)], values_ST[s, : len(values_T)] = rewards_T, values_T
    advantages_ST = np.zeros_like(rewards_ST)
    for t in range(longest - 1, -1, -1):  # behind a response's end everything is 0, and stays it
        delta_S = rewards_ST[:, t] + gamma * values_ST[:, t + 1] - values_ST[:, t]
        advantages_ST[:, t] = delta_S + gamma * lam * advantages_ST[:, t + 1]
    advantages = [advantages_ST[s, :length] for s, length in enumerate(lengths)]
    returns = [advantages_ST[s, :length] + values_ST[s, :length] for s, length in enumerate(lengths)]
    return advantages, returns


def rewards_to_go(rewards_T: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """What a response still earns from each token on: gae with lambda 1 and values 0."""
    return gae([rewards_T], [np.zeros(len(rewards_T))], gamma, 1.0)[0][0]


def leave_one_out(rewards_K: np.ndarray) -> np.ndarray:
    """Each reward less the mean of the others: an unbiased baseline, for K >= 2."""
    K = len(rewards_K)
    rewards_K = np.asarray(rewards_K, np.float64)
    return (rewards_K - rewards_K.mean()) * (K / (K - 1))


def group_relative(rewards_K: np.ndarray, *, scale: bool = True, epsilon: float = EPSILON) -> np.ndarray:
    """Each reward less the group's mean, divided by the group's standard deviation where `scale`; for K >= 2."""
    rewards_K = np.asarray(rewards_K, np.float64)
    centred_K = rewards_K - rewards_K.mean()
    return centred_K / (rewards_K.std(ddof=1) + epsilon) if scale else centred_K


def is_flat(rewards_K: np.ndarray) -> bool:
    """Whether all rewards of a group are equal: it tells nothing apart, and its advantages are 0."""
    return bool(np.ptp(rewards_K) == 0)


def whiten(values: Sequence[np.ndarray], *, shift_mean: bool = True) -> list[np.ndarray]:
    """All arrays together to variance 1, and to mean 0 where `shift_mean`, else back to the mean they had."""
    if not values:
        return []
    values_N = np.concatenate(values).astype(np.float64)
    mean = values_N.mean() if len(values_N) else 0.0
    scale = 1 / np.sqrt(values_N.var() + 1e-8) if len(values_N) else 1.0
    return [(np.asarray(part, np.float64) - mean) * scale + (0.0 if shift_mean else mean) for part in values]
