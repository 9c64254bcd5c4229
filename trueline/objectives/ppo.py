"""Proximal policy optimisation with a critic, as RLHF uses it.

    r_t = - beta kl_t + [t is the last token] score(x, y)                                               (rewards)
    delta_t = r_t + gamma V(s_(t+1)) - V(s_t),   A_t = sum_l (gamma lambda)^l delta_(t+l),   R_t = A_t + V(s_t)     (advantages)
    L = mean_t max(-A_t ratio_t, -A_t clip(ratio_t, 1 - eps, 1 + eps))                                  (policy_gradient)
      + vf_coef mean_t 1/2 max((V - R_t)^2, (clip(V, V_old - eps_v, V_old + eps_v) - R_t)^2)  -  entropy_coef mean_t H_t

Schulman et al., 1707.06347, equations 7 and 9; Schulman et al. (GAE), 1506.02438, equation 16; Ouyang et al., 2203.02155,
equation 2 (its pretraining gradients: ptx); Huang et al., 2403.17031, for the details that matter. With exact values and
enough samples its optimum is pi proportional to pi_ref exp(score/beta).

The old log-probs are those that the tokens were drawn with; values and reference log-probs are computed once per round. Advantages
are whitened over the round. The mean is over tokens. Policy and critic share the optimizer and its learning rate.
Simplified: no weight averaging, one learning rate for policy and critic.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trueline.objectives.advantages import gae, whiten
from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.kl import KLPenalty
from trueline.objectives.policy_gradient import clipped_value_loss
from trueline.objectives.ptx import Pretraining, ptx_losses
from trueline.objectives.rewards import Shaping, reward_metrics, token_rewards, with_penalties, with_scores, with_tokens
from trueline.objectives.rounds import Rounds, tokens_of
from trueline.objectives.updates import Averaging, Measured, Update, policy_losses, policy_weights, temperature_of
from trueline.protocols import Crew
from trueline.records import Conversation, Row

OVER_TOKENS = Averaging("tokens")


@dataclass(frozen=True, kw_only=True)
class Critic:
    """What tells how much a response is still worth."""

    critic: str = "policy"
    """Where it starts: "policy" (a copy with a new head), "shared" (a head on the policy's own trunk), or a reward model's
    folder or hub id."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """GAE's lambda: 1 trusts the rewards, 0 the critic."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    cliprange_value: float = 0.2
    """The value loss sees a change of at most this; 0 does not clip."""
    whiten_advantages: bool = True
    """Bring the advantages of a round's tokens to mean 0 and variance 1."""

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ValueError(f"gamma is {self.gamma} and lam {self.lam}: both must be from 0 to 1")
        if self.vf_coef < 0 or self.cliprange_value < 0:
            raise ValueError(f"vf_coef is {self.vf_coef} and cliprange_value {self.cliprange_value}: both must be at least 0")


@dataclass(frozen=True, kw_only=True)
class PPO:
    """The policy's own responses, scored, with a critic's help, clipped."""

    update: Update = field(default_factory=lambda: Update(num_iterations=4))
    """Passes, minibatches, clipping."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The pull to the reference, in the rewards."""
    shaping: Shaping = field(default_factory=Shaping)
    """Scores and rewards before they are learned from."""
    values: Critic = field(default_factory=Critic)
    """The critic and its use."""
    pretraining: Pretraining = field(default_factory=Pretraining)
    """A corpus that is mixed in: PPO-ptx."""

    verb: ClassVar[str] = "ppo"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    defaults: ClassVar[dict[str, object]] = {
        "learning_rate": 3e-6, "adam_epsilon": 1e-5, "lr_scheduler_type": "linear", "num_generations": 1,
    }  # fmt: skip
    citation: ClassVar[str] = (
        "Schulman, Wolski, Dhariwal, Radford, Klimov. Proximal policy optimization algorithms. https://arxiv.org/abs/1707.06347"
    )

    @property
    def critic(self) -> str:
        """Where the critic starts."""
        return self.values.critic

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.kl.needs, *self.pretraining.needs, "critic")

    @property
    def corpus(self) -> str:
        """What is mixed in."""
        return self.pretraining.ptx_data

    @property
    def rounds(self) -> Rounds:
        return self.update.rounds()

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        if crew.critic is None:
            raise ValueError("ppo needs a critic: pass crew=Crew(critic=ValueScorer(model)), or let train make it")
        rows = with_penalties(with_scores(rows, crew, self.shaping), crew, self.kl)
        values = [values_T for values_K in crew.critic.token_values(rows) for values_T in values_K]
        rewards = token_rewards(rows, self.shaping)
        advantages, returns = gae(rewards, [v.astype(np.float64) for v in values], self.values.gamma, self.values.lam)
        advantages = whiten(advantages) if self.values.whiten_advantages else advantages
        for name, found in (("values", values), ("returns", returns), ("advantages", advantages)):
            rows = with_tokens(rows, name, found)
        return self.pretraining.with_windows(rows, crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Generator[list[Batch], Measured, None]:
        def weights(part: Sequence[Row]) -> dict[str, float]:
            tokens = float(sum(int(scored_L.sum()) for row in part for scored_L in row.scored))
            return policy_weights(part, self.update, OVER_TOKENS) | {"value": tokens}

        return self.update.steps(rows, budget, weights)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        if batch.weights.get("ptx"):
            return ptx_losses(model, batch, self.pretraining.ptx_coef)
        scores, values_N = model.scores_and_values(
            batch.layout, temperature=temperature_of(batch), entropy_gradient=self.update.entropy_coef > 0
        )
        losses = policy_losses(scores, batch, self.update, OVER_TOKENS)
        old_N, returns_N = (tokens_of(batch.rows, name, values_N.device) for name in ("values", "returns"))
        value_N, clipped_N = clipped_value_loss(values_N, old_N, returns_N, self.values.cliprange_value)
        count = batch.weights["value"]
        with torch.no_grad():
            metrics = {
                "loss/value_avg": (value_N.sum(), count),
                "val/clipfrac_avg": (clipped_N.float().sum(), count),
                "val/mean": (values_N.sum(), count),
                "val/error": ((values_N - returns_N).square().sum(), count),
            }
        about = reward_metrics(batch.rows, self.kl, values_N.device)
        terms = losses.terms | {"value": self.values.vf_coef * value_N.sum()}
        return Losses(terms, losses.metrics | metrics | about)
