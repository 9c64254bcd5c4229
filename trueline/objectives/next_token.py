"""Pretraining: predict every next token of plain text.

    L = - sum_t log p(x_t | x_<t) / (number of scored tokens of the step)

Bengio et al., "A neural probabilistic language model", JMLR 2003; as used by every decoder since GPT (Radford et al. 2018).
Simplified: nothing; documents are cut into windows by `trueline.tokens`, and no token's loss is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from trueline.objectives.base import Batch, Budget, Losses, cross_entropy, microbatches, scored_tokens
from trueline.protocols import Crew
from trueline.records import Document, Row


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """All tokens are targets."""

    verb: ClassVar[str] = "pretrain"
    record: ClassVar[type[Document]] = Document
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {
        "learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.95, "warmup_ratio": 0.02, "min_lr_ratio": 0.1,
    }  # fmt: skip
    citation: ClassVar[str] = "Bengio, Ducharme, Vincent, Jauvin. A neural probabilistic language model. JMLR 3, 2003"

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, scored_tokens)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: nn.Module, batch: Batch, crew: Crew) -> Losses:
        return cross_entropy(model, batch)
