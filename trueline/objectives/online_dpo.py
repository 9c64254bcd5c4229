"""Online DPO: the policy draws two responses, a judge says which is better, and the pair loss learns from it at once.

    x ~ prompts;  y_1 ... y_K ~ pi(.|x);  y_w, y_l = the best and the worst of them by reward
    L = DPO's pair loss of (x, y_w, y_l) against a fixed reference                     Guo et al., 2402.04792, algorithm 1

The paper draws K = 2 and asks a language model which one is better; here any judge or reward model gives scores, equal scores make
no pair, and more responses (num_generations) give the best against the worst. beta = 0.1 and sampling from the whole distribution
are the paper's. No gradient flows through the drawing, as in the paper. Drawing is at temperature 1 (the paper: 0.9), and the loss
is on log-probabilities at temperature 1 whatever the drawing's.

objective/kl is E[log pi(y) - log pi_ref(y)] over the drawn responses of the pairs, at the time they were drawn.
Left out: the paper's SLiC variant is loss_type hinge; its prompts that steer the judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.dpo import DPO
from trueline.objectives.pairs import numbers_of
from trueline.objectives.rounds import Rounds, tokens_of
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class OnlineDPO:
    """The best against the worst of the policy's own responses, by DPO's loss."""

    beta: float = 0.1
    """Strength of the pull to the reference: the beta of reward - beta KL."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Which loss of a pair; docs/methods/dpo.md."""
    label_smoothing: float = 0.0
    """Share of the judge's choices taken to be wrong, below 1/2."""

    verb: ClassVar[str] = "online-dpo"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    rounds: ClassVar[Rounds] = Rounds(select="best_vs_worst", responses=2)
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 5e-7, "warmup_ratio": 0.1}
    citation: ClassVar[str] = "Guo et al. Direct language model alignment from online AI feedback. https://arxiv.org/abs/2402.04792"

    def __post_init__(self) -> None:
        _ = self.dpo  # it checks the fields

    @property
    def dpo(self) -> DPO:
        """The loss."""
        return DPO(beta=self.beta, loss_type=self.loss_type, label_smoothing=self.label_smoothing)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return self.dpo.annotate(rows, crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield from self.dpo.steps(rows, budget)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        losses = self.dpo.loss(model, batch, crew)
        return losses._replace(metrics={**losses.metrics, **drawn_kl(batch)})


def drawn_kl(batch: Batch) -> dict[str, tuple[torch.Tensor, float]]:
    """KL of the policy that drew from the reference, estimated on what it drew; nothing where that was at another temperature."""
    if any((row.numbers["temperature"] != 1).any() for row in batch.rows):
        return {}
    device = batch.layout.ids_T.device
    drawn = tokens_of(batch.rows, "logps", device).sum()
    reference = numbers_of(batch.rows, "reference_logps", device).sum()
    return {"objective/kl": (drawn - reference, float(batch.layout.num_sequences))}
