"""Group relative policy optimisation, with the choices of Dr. GRPO, DAPO and GSPO; no critic.

    A_k = (score_k - mean) / std over the K responses to a prompt                              equation 4 without a process reward
    L = average_(k,t) [ max(-A_k ratio, -A_k clip(ratio, 1 - eps, 1 + eps_high)) + beta k3_t ]        equations 3 and 4

Shao et al. (DeepSeekMath), 2402.03300. The choices, each by the field of its own:

    Dr. GRPO  2503.20783   scale_rewards false, loss_type dr_grpo (divide by a constant: neither length nor spread weighs)
    DAPO      2503.14476   epsilon_high 0.28, loss_type dapo (mean over tokens), drop_flat_groups, mask_truncated_completions, kl_coef 0
    GSPO      2507.18071   importance_sampling_level sequence, epsilon 3e-4, epsilon_high 4e-4, kl_coef 0

The KL is a loss on the drawn tokens. Its gradient is, prefix by prefix, that of KL(pi_ref || pi) with k3, the paper's, and that of
KL(pi || pi_ref) with k2; k1 has none on average and is refused. With scale_rewards false, sums over tokens (dr_grpo) and k2 it ends at
pi(t|s) proportional to pi_ref(t|s) exp(Q(s, t)/beta), Q the score expected after t under pi itself: the KL of tokens to come has no say
in this one, so that is pi_ref exp(score/beta) for responses of one token only (recipes/oracle.py; RLOO and PPO end there for any).
Simplified: DAPO draws until a step is full of groups that differ; here a flat group is dropped and the step is smaller.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import nn

from trueline.objectives.advantages import group_relative
from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.kl import KLPenalty
from trueline.objectives.policy_gradient import Averaged
from trueline.objectives.rewards import (
    Shaping,
    reward_metrics,
    with_penalties,
    with_response_advantages,
    with_scores,
)
from trueline.objectives.rounds import Rounds
from trueline.objectives.updates import Averaging, Measured, Update, policy_losses, policy_scores, policy_weights
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """What the loss is averaged over, and what stays out of it."""

    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """grpo (mean over responses of their means), dapo (mean over tokens) or dr_grpo (sums over max_completion_length)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Clip each token's ratio, or that of the sequence (the mean of its tokens' in logarithms)."""
    drop_flat_groups: bool = False
    """Leave out prompts whose responses all have the same score: they teach nothing and still count in the mean."""
    mask_truncated_completions: bool = False
    """Leave responses that were cut at max_completion_length out of the loss (not out of their group's mean)."""

    def __post_init__(self) -> None:
        if self.loss_type not in ("grpo", "dapo", "dr_grpo"):
            raise ValueError(f"loss_type is {self.loss_type!r}: use grpo, dapo or dr_grpo")
        if self.importance_sampling_level not in ("token", "sequence"):
            raise ValueError(f"importance_sampling_level is {self.importance_sampling_level!r}: use token or sequence")

    def averaging(self) -> Averaging:
        """In the words of the shared loss."""
        over: dict[str, Averaged] = {"grpo": "sequences", "dapo": "tokens", "dr_grpo": "constant"}
        return Averaging(over[self.loss_type], self.importance_sampling_level)


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """Several responses to a prompt, each measured by the group's mean and spread."""

    update: Update = field(default_factory=Update)
    """Passes, minibatches, clipping."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(kl_coef=0.04, kl_estimator="k3"))
    """The pull to the reference, as a loss."""
    shaping: Shaping = field(default_factory=Shaping)
    """Scores before they are learned from."""
    scale_rewards: bool = True
    """Divide by the standard deviation of the group's scores."""
    group: GroupLoss = field(default_factory=GroupLoss)
    """Averaging and filters."""

    verb: ClassVar[str] = "grpo"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 1e-6, "lr_scheduler_type": "linear", "num_generations": 8}
    citation: ClassVar[str] = (
        "Shao et al. DeepSeekMath: pushing the limits of mathematical reasoning in open language models. "
        "https://arxiv.org/abs/2402.03300"
    )

    def __post_init__(self) -> None:
        if self.kl.kl_coef and self.kl.kl_estimator == "k1":
            raise ValueError("kl_estimator is k1, which as a loss pulls nowhere on average: use k2 or k3 with grpo")
        if self.shaping.whiten_rewards:
            raise ValueError("whiten_rewards is for rewards per token, and grpo has one per response: leave it out")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.kl.needs

    @property
    def rounds(self) -> Rounds:
        return self.update.rounds(fewest=2, drop_flat=self.group.drop_flat_groups)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        rows = with_penalties(with_scores(rows, crew, self.shaping), crew, self.kl)
        if self.group.mask_truncated_completions:
            rows = [replace(row, numbers={**row.numbers, "weight": row.numbers["finished"]}) for row in rows]
        advantages = [group_relative(row.numbers["score"], scale=self.scale_rewards) for row in rows]
        return with_response_advantages(rows, advantages)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Generator[list[Batch], Measured, None]:
        over, kl_coef = self.group.averaging(), self.kl.kl_coef
        return self.update.steps(rows, budget, lambda part: policy_weights(part, self.update, over, kl_coef))

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        scores, penalty = policy_scores(model, batch, self.update), (0.0, self.kl.kl_estimator)
        if self.kl.kl_coef:
            penalty = (float(batch.rows[0].numbers["kl_coef"][0]), self.kl.kl_estimator)
        losses = policy_losses(scores, batch, self.update, self.group.averaging(), penalty)
        about = reward_metrics(batch.rows, self.kl, scores.logps_N.device, in_rewards=False)
        return losses._replace(metrics=losses.metrics | about)
