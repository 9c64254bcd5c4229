"""REINFORCE++: rewards to go, normalised over the whole round instead of per prompt; no critic.

    A_t = score(x, y) [- mean score of the prompt's responses] - beta sum_(u >= t) kl_u
    A_t <- (A_t - mean) / std over all tokens of the round
    L = mean_t max(-A_t ratio_t, -A_t clip(ratio_t, 1 - eps, 1 + eps))

Hu, "REINFORCE++: an efficient RLHF algorithm with robustness to both prompt and reward models", 2501.03262. The baseline in
brackets is its variant for several responses per prompt (REINFORCE++-baseline), chosen by `group_baseline`.
Simplified: kl_u is taken from the rewards with the baseline, too, where the paper's variant has a k2 loss.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from trueline.objectives.advantages import group_relative, rewards_to_go, whiten
from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.kl import KLPenalty
from trueline.objectives.rewards import (
    Shaping,
    reward_metrics,
    token_rewards,
    with_penalties,
    with_scores,
    with_tokens,
)
from trueline.objectives.rounds import Rounds
from trueline.objectives.updates import Averaging, Measured, Update, policy_losses, policy_scores, policy_weights
from trueline.protocols import Crew
from trueline.records import Conversation, Row

OVER_TOKENS = Averaging("tokens")


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlus:
    """Each token's reward to go against the mean of the whole round."""

    update: Update = field(default_factory=Update)
    """Passes, minibatches, clipping."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(kl_coef=0.01))
    """The pull to the reference, in the rewards."""
    shaping: Shaping = field(default_factory=Shaping)
    """Scores and rewards before they are learned from."""
    group_baseline: bool = False
    """Subtract the mean score of a prompt's responses first; needs num_generations of at least 2."""

    verb: ClassVar[str] = "reinforce++"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 5e-7, "lr_scheduler_type": "linear", "num_generations": 1}
    citation: ClassVar[str] = (
        "Hu. REINFORCE++: an efficient RLHF algorithm with robustness to both prompt and reward models. "
        "https://arxiv.org/abs/2501.03262"
    )

    @property
    def needs(self) -> tuple[str, ...]:
        return self.kl.needs

    @property
    def rounds(self) -> Rounds:
        return self.update.rounds(fewest=2 if self.group_baseline else 1)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        rows = with_penalties(with_scores(rows, crew, self.shaping), crew, self.kl)
        rewards = token_rewards([centred(row) for row in rows] if self.group_baseline else rows, self.shaping)
        return with_tokens(rows, "advantages", whiten([rewards_to_go(rewards_T) for rewards_T in rewards]))

    def steps(self, rows: Sequence[Row], budget: Budget) -> Generator[list[Batch], Measured, None]:
        return self.update.steps(rows, budget, lambda part: policy_weights(part, self.update, OVER_TOKENS))

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        scores = policy_scores(model, batch, self.update)
        losses = policy_losses(scores, batch, self.update, OVER_TOKENS)
        return losses._replace(metrics=losses.metrics | reward_metrics(batch.rows, self.kl, scores.logps_N.device))


def centred(row: Row) -> Row:
    """The row with its scores less their mean."""
    return replace(row, numbers={**row.numbers, "score": group_relative(row.numbers["score"], scale=False)})
