"""Supervised fine-tuning: predict the responses of people, given their prompts.

    L = - sum_(t in responses) log p(y_t | x, y_<t) / (number of response tokens of the step)

Ouyang et al., "Training language models to follow instructions with human feedback", 2203.02155, step 1. With
`neftune_noise_alpha` uniform noise of at most alpha / sqrt(L D) is added to the embeddings while training, L the sequence's own
length (Jain et al., NEFTune, 2310.05914; 5 is their usual value); never in evaluation.
Simplified: every response token of a step counts the same, so long responses weigh more than short ones (as everywhere).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trueline.objectives.base import Batch, Budget, Losses, cross_entropy, microbatches, scored_tokens
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Only the tokens of responses are targets."""

    neftune_noise_alpha: float = 0.0
    """NEFTune's noise; 0 adds none."""

    verb: ClassVar[str] = "sft"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 2e-5, "warmup_ratio": 0.03}
    citation: ClassVar[str] = (
        "Ouyang et al. Training language models to follow instructions with human feedback. https://arxiv.org/abs/2203.02155"
    )

    def __post_init__(self) -> None:
        if self.neftune_noise_alpha < 0:
            raise ValueError(f"neftune_noise_alpha is {self.neftune_noise_alpha}: it must be at least 0")

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, scored_tokens)

    def prepare(self, model: Any, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        model.neftune_alpha = self.neftune_noise_alpha
        losses = cross_entropy(model, batch)
        model.neftune_alpha = 0.0  # another objective may train this model next
        return losses
