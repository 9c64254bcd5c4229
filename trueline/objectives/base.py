"""The unit of research: what a method must say so that the one loop can train it.

    rows -> annotate (no gradient, once per round) -> steps (microbatches) -> prepare (no gradient, whole step) -> loss

Each term of `loss` is a SUM; the loop divides it by the step's total of `Batch.weights[term]`, counted over all microbatches
and ranks before the first forward, so any accumulation or sharding gives the same gradient.

Shape legend: T tokens of a microbatch, N scored tokens, S sequences, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from trueline.models.attention import Layout
from trueline.protocols import Crew
from trueline.records import Row

if TYPE_CHECKING:
    from trueline.records import Record


@dataclass(frozen=True)
class Budget:
    """Bounds of one microbatch."""

    rows: int
    """per_device_train_batch_size: rows (prompts) per microbatch."""
    tokens: int
    """max_tokens_per_batch: positions per microbatch after prefix sharing. A single row above it is an error that names it."""


@dataclass(frozen=True)
class Batch:
    """One microbatch: rows laid out without padding."""

    rows: Sequence[Row]
    layout: Layout
    weights: Mapping[str, float]
    """What each term is averaged over: {"loss": number of tokens | pairs | prompts}."""


class Losses(NamedTuple):
    """What one microbatch gives."""

    terms: dict[str, Tensor]
    """Scalar sums, one per key of Batch.weights."""
    metrics: dict[str, tuple[Tensor, float]]
    """name -> (sum, count), detached; the loop logs total sum / total count over the step."""


class Objective(Protocol):
    """A frozen dataclass of 1-6 hyper-parameters with these methods. Found by its file: no table to edit."""

    verb: ClassVar[str]
    """The command-line verb: "sft", "dpo", ..."""
    record: ClassVar[type[Record]]
    """The record it trains on: Document, Conversation, Comparison or Rating."""
    head: ClassVar[str]
    """The output head it trains: "tokens" (language model) or "scalar" (sequence score)."""

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        """Once per round, no gradient: reference log-probs, rewards, advantages. Usually identity."""
        ...

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        """Optimizer steps, each a list of microbatches. Stored rows: one step."""
        ...

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        """No gradient: statistics over a whole step. Usually identity."""
        ...

    def loss(self, model: nn.Module, batch: Batch, crew: Crew) -> Losses:
        """Sums by term, and metrics."""
        ...
