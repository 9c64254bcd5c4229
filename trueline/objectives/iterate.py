"""Iterative preference learning: large rounds of the policy's own pairs, several steps on each, the reference fixed.

    for each round:  x ~ many prompts;  y_1 ... y_K ~ pi(.|x) as it is now;  y_w, y_l = the best and the worst of them by reward
                     several steps and passes of DPO's pair loss over the round's pairs, against pi_0

Xiong et al. (GSHF), 2312.11456, algorithm 2 in its practical form; Dong et al. (RLHF workflow), 2405.07863. The paper's second agent, which
explores, is best against worst of K responses there, too: their distance is what the current policy is unsure of. Rounds are this
file's alone: with batches and epochs 1 it is online DPO.

Responses are drawn once per round, so all steps but the first of a round learn from a policy that has moved since. beta 0.1,
label_smoothing 0.1, 2 epochs and K = 8 are those of the authors' code and report. Their script takes the newest model as the reference of
each round, their report the one at the start; ours stays at the start, so the pull back to it does not weaken.
Left out: pessimism by an ensemble's spread (offline GSHF), multi-step rejection sampling, pairs kept from earlier rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.pairs import pair_weights
from trueline.objectives.rounds import Rounds, round_steps
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """Rounds of the policy's own best and worst responses, learned from by DPO's loss."""

    beta: float = 0.1
    """Strength of the pull to the reference: the beta of reward - beta KL."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Which loss of a pair; docs/methods/dpo.md."""
    label_smoothing: float = 0.1
    """Share of the judge's choices taken to be wrong, below 1/2."""
    batches: int = 16
    """Steps that the prompts of a round suffice for, once each: a round draws for this many times the prompts of a step."""
    epochs: int = 2
    """Passes over the pairs of a round."""
    margin: float = 0.0
    """A best and a worst response whose rewards differ by no more than this make no pair."""

    verb: ClassVar[str] = "iterate"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 5e-7, "warmup_ratio": 0.03, "num_generations": 8}
    citation: ClassVar[str] = (
        "Xiong et al. Iterative preference learning from human feedback: bridging theory and practice for RLHF under KL-constraint. "
        "https://arxiv.org/abs/2312.11456"
    )

    def __post_init__(self) -> None:
        _ = self.online  # it checks the fields of the loss
        if self.batches < 1 or self.epochs < 1 or self.margin < 0:
            raise ValueError(
                f"batches is {self.batches}, epochs {self.epochs}, margin {self.margin}: they must be at least 1, 1 and 0"
            )

    @property
    def online(self) -> OnlineDPO:
        """The loss, and what is logged."""
        return OnlineDPO(beta=self.beta, loss_type=self.loss_type, label_smoothing=self.label_smoothing)

    @property
    def rounds(self) -> Rounds:
        return Rounds(select="best_vs_worst", options={"margin": self.margin}, responses=2, batches=self.batches, epochs=self.epochs)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return self.online.annotate(rows, crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield from round_steps(rows, budget, pair_weights, self.rounds)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        return self.online.loss(model, batch, crew)
