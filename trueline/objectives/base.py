"""The unit of research: what a method must say so that the one loop can train it.

    rows -> annotate (no gradient, once per round) -> steps (microbatches) -> prepare (no gradient, whole step) -> loss

Each term of `loss` is a SUM; the loop divides it by the step's total of `Batch.weights[term]`, counted over all microbatches
and ranks before the first forward, so any accumulation or sharding gives the same gradient.

Shape legend: T tokens of a microbatch, N scored tokens, S sequences, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from trueline.models.attention import Layout, tree_tokens
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

    @property
    def record(self) -> type[Record]:
        """The record it trains on: Document, Conversation, Comparison or Rating. A class variable, like all above `annotate`."""
        ...

    head: ClassVar[str]
    """The output head it trains: "tokens" (language model), "scalar" (sequence score) or "6 categories" (a distribution over them)."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the Crew that must be there: ("reference",), ... `train` makes a reference from the starting model, and a
        critic as the objective's field `critic` says."""
        ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Training options whose usual value for this method differs from TrainConfig's, by their flat names."""

    citation: ClassVar[str]
    """Authors, title, address: for the model card."""

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


@runtime_checkable
class Arranges(Protocol):
    """What an objective may have besides: it sees all stored rows together, once, before the reference scores them."""

    arrangement: ClassVar[str]
    """What that does to them, in a sentence that the run says."""

    def arrange(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows as the method trains on them, one for each that was given."""


def microbatches(
    rows: Sequence[Row], budget: Budget, weights_of: Callable[[Sequence[Row]], Mapping[str, float]]
) -> list[Batch]:
    """One optimizer step over stored rows: microbatches within the budget, rows of like length together.

    Rows of one length are computed in one piece and the order does not change the gradient, so the rows are sorted by length.
    """
    sizes = [tree_tokens(row) for row in rows]
    for row, size in zip(rows, sizes, strict=True):
        if size > budget.tokens:
            name = row.key[:12] or "without a key"
            raise ValueError(
                f"row {name} takes {size} token positions and max_tokens_per_batch is {budget.tokens}: raise it or lower max_length"
            )
    groups: list[list[Row]] = []
    used = 0
    for index in np.argsort(np.array(sizes), kind="stable")[::-1]:
        if not groups or used + sizes[index] > budget.tokens or len(groups[-1]) == budget.rows:
            groups.append([])
            used = 0
        groups[-1].append(rows[index])
        used += sizes[index]
    return [Batch(rows=group, layout=Layout.tree(group), weights=weights_of(group)) for group in groups]


def scored_tokens(rows: Sequence[Row]) -> dict[str, float]:
    """The weight of token losses: how many tokens are targets."""
    return {"loss": float(sum(int(scored.sum()) for row in rows for scored in row.scored))}


def cross_entropy(model: Any, batch: Batch) -> Losses:
    """Sum of -log p over the scored tokens of a language model, with accuracy and entropy per token."""
    scores = model.token_logps(batch.layout, equal_weights=True)
    count = float(len(scores.logps_N))
    metrics = {
        "mean_token_accuracy": (scores.correct_N.float().sum(), count),
        "entropy": (scores.entropy_N.sum(), count),
    }
    return Losses({"loss": -scores.logps_N.sum()}, metrics)
