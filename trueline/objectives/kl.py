"""How far the policy is from its reference: Schulman's estimators, and a coefficient that steers to a target.

    d = log pi(y) - log ref(y) of a drawn token
    k1 = d                      unbiased, noisy, may be negative
    k2 = d^2 / 2                biased, never negative
    k3 = exp(-d) - 1 + d        unbiased, never negative

In a reward, where no gradient flows, k1 is the sum that KL(pi || ref) is made of, and its optimum is pi_ref exp(score / beta). k2 and k3
cost something on both sides of the reference: what has become less likely than there is made less likely still, and the policy ends
far from that optimum (docs/recipes/oracle.md). They suit a loss, and a log.
As a loss on drawn tokens their expected gradients differ: 0 for k1, that of KL(pi || ref) for k2, that of KL(ref || pi) for k3, each of
the next token given the drawn prefix: what a token does to the KL of those after it is not seen, as it is in a reward.

Adaptive coefficient (Ziegler et al., 1909.08593, section 2.2, with the horizon of its code):
    beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)      after n responses with mean KL per response
Left out: the controller of PPO's own paper, whose penalty is between the old and the new policy.

Legend: N scored tokens.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
LARGEST = 20.0
"""log ref - log pi is taken to be at most this in k3: exp of more means nothing."""
MEMORY = "kl_coef"
"""Where an adaptive coefficient is kept from round to round."""


def kl_terms(logps_N: Tensor, reference_N: Tensor, estimator: Estimator) -> Tensor:
    """The estimator's term for every drawn token; gradients flow to `logps_N`."""
    d_N = logps_N - reference_N
    if estimator == "k1":
        return d_N
    if estimator == "k2":
        return d_N.square() / 2
    return torch.expm1((-d_N).clamp(max=LARGEST)) + d_N


@dataclass(frozen=True, kw_only=True)
class KLPenalty:
    """The pull to the reference."""

    kl_coef: float = 0.05
    """The beta of reward - beta KL, per nat."""
    kl_estimator: Estimator = "k1"
    """k1 (log-ratio), k2 (half its square) or k3 (unbiased and never negative)."""
    kl_target: float = 0.0
    """Steer kl_coef to this KL per response, in nats; 0 leaves it fixed."""
    kl_horizon: int = 10000
    """Responses over which a steered kl_coef may change by 20%."""

    def __post_init__(self) -> None:
        if self.kl_coef < 0 or self.kl_target < 0:
            raise ValueError(f"kl_coef is {self.kl_coef} and kl_target {self.kl_target}: neither may be below 0")
        if self.kl_estimator not in ("k1", "k2", "k3"):
            raise ValueError(f"kl_estimator is {self.kl_estimator!r}: use k1, k2 or k3")
        if self.kl_horizon < 1:
            raise ValueError(f"kl_horizon is {self.kl_horizon}: it must be at least 1")
        if self.kl_target and not self.kl_coef:
            raise ValueError(f"kl_target is {self.kl_target} and kl_coef 0: a steered kl_coef must start above 0")

    @property
    def needs(self) -> tuple[str, ...]:
        """Without a pull no reference is asked, or kept."""
        return ("reference",) if self.kl_coef else ()

    def coefficient(self, memory: MutableMapping[str, float]) -> float:
        """The coefficient of this round; `memory` holds a steered one and survives a resume."""
        return memory.get(MEMORY, self.kl_coef) if self.kl_target else self.kl_coef

    def steer(self, memory: MutableMapping[str, float], kl: float, responses: int) -> None:
        """Remember the coefficient of the next round, after so many responses with this mean KL."""
        if self.kl_target:
            memory[MEMORY] = steered(self.coefficient(memory), kl, self.kl_target, responses / self.kl_horizon)


def steered(coef: float, kl: float, target: float, share: float) -> float:
    """The coefficient after `share` of a horizon, at most one: up by at most 20% above the target, down below. A round of several
    horizons would otherwise turn its sign."""
    return coef * (1 + min(0.2, max(-0.2, kl / target - 1)) * min(share, 1.0))
