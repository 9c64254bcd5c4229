"""REINFORCE leave-one-out: each response against the mean of the others to the same prompt; no critic.

    R_k = score(x, y_k) - beta log(pi(y_k|x) / pi_ref(y_k|x))                 a whole response is one action
    A_k = R_k - mean of R_j over the other K - 1 responses to x
    L = mean_k sum_t max(-A_k ratio_t, -A_k clip(ratio_t, 1 - eps, 1 + eps))

Ahmadian et al., "Back to basics", 2402.14740, equations 8 and 9; Kool et al. 2019. On the first step after drawing all ratios are 1
and the gradient is REINFORCE's, sum_k A_k grad log pi(y_k|x): unbiased for score - beta KL, so its optimum is pi proportional to
pi_ref exp(score/beta). Clipping matters from the second step on; TRL clips the ratio of the whole response, here each token's.
Simplified: one set of K responses per prompt and round; K is num_generations.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from trueline.objectives.advantages import leave_one_out, whiten
from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.kl import KLPenalty
from trueline.objectives.rewards import (
    Shaping,
    response_rewards,
    reward_metrics,
    with_penalties,
    with_response_advantages,
    with_scores,
)
from trueline.objectives.rounds import Rounds
from trueline.objectives.updates import Averaging, Measured, Update, policy_losses, policy_scores, policy_weights
from trueline.protocols import Crew
from trueline.records import Conversation, Row

RESPONSES = Averaging("sums")


@dataclass(frozen=True, kw_only=True)
class RLOO:
    """Several responses to a prompt, each measured by the others."""

    update: Update = field(default_factory=Update)
    """Passes, minibatches, clipping."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The pull to the reference, in the rewards."""
    shaping: Shaping = field(default_factory=Shaping)
    """Scores before they are learned from."""
    normalize_advantages: bool = False
    """Bring the advantages of a round's responses to mean 0 and variance 1."""

    verb: ClassVar[str] = "rloo"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 1e-6, "lr_scheduler_type": "linear", "num_generations": 4}
    citation: ClassVar[str] = (
        "Ahmadian et al. Back to basics: revisiting REINFORCE style optimization for learning from human feedback in LLMs. "
        "https://arxiv.org/abs/2402.14740"
    )

    def __post_init__(self) -> None:
        if self.shaping.whiten_rewards:
            raise ValueError("whiten_rewards is for rewards per token, and rloo has one per response: normalize_advantages")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.kl.needs

    @property
    def rounds(self) -> Rounds:
        return self.update.rounds(fewest=2)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        rows = with_penalties(with_scores(rows, crew, self.shaping), crew, self.kl)
        advantages = [leave_one_out(response_rewards(row)) for row in rows]
        return with_response_advantages(rows, whiten(advantages) if self.normalize_advantages else advantages)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Generator[list[Batch], Measured, None]:
        return self.update.steps(rows, budget, lambda part: policy_weights(part, self.update, RESPONSES))

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        scores = policy_scores(model, batch, self.update)
        losses = policy_losses(scores, batch, self.update, RESPONSES)
        return losses._replace(metrics=losses.metrics | reward_metrics(batch.rows, self.kl, scores.logps_N.device))
