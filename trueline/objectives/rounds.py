"""Methods that learn from their own responses: what they say of their rounds, and numbers per token in a loss's order.

    prompts -> K responses each, drawn by the live policy -> judged -> select -> rows -> annotate -> steps

    class MyMethod:
        rounds: ClassVar[Rounds] = Rounds(select="all_responses", responses=1)       that is all: the feed is train's

A row comes with numbers["reward"], ["temperature"], ["finished"] (0: cut at its longest), ["limit"] per response, and with tokens["logps"],
the log-probabilities it was drawn with, log softmax(logits / temperature), one for each scored token.

Legend: N scored tokens of a layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from trueline.objectives.base import Batch, Budget, Objective, microbatches
from trueline.protocols import Crew, TokenScorer
from trueline.records import Row
from trueline.store import fingerprint


@dataclass(frozen=True)
class Second:
    """Who draws the second half of the responses to every prompt."""

    who: Literal["policy", "reference"]
    """The policy in training, or the reference (the model as it starts)."""
    temperature: float = 0.0
    """Of its drawing; 0 takes the run's."""


@dataclass(frozen=True)
class Rounds:
    """How a method learns from what its policy draws.

    A round draws for per_device_train_batch_size x gradient_accumulation_steps x `batches` prompts, and its rows are gone through
    `epochs` times: batches x epochs optimizer steps.
    """

    select: str
    """A selector of trueline.align.select by its name: "all_responses", "best_of_n", "best_vs_worst", ..."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments: {"margin": 0.5}."""
    responses: int = 0
    """Most responses in one row; 0: as many as are drawn."""
    fewest: int = 1
    """num_generations must be at least this: 2 where a response is measured by the others to its prompt."""
    batches: int = 1
    """Steps that a round's rows are dealt out to."""
    epochs: int = 1
    """Passes over a round's rows."""
    frozen: bool = False
    """The reference (the model as it starts) draws, in every round, instead of the policy in training."""
    second: Second | None = None
    """Another player, who draws the second half; None: all are drawn by one."""

    @property
    def asks_reference(self) -> bool:
        """Whether the reference draws, all or half."""
        return self.frozen or (self.second is not None and self.second.who == "reference")

    @property
    def steps(self) -> int:
        """Optimizer steps of a round."""
        return self.batches * self.epochs


@runtime_checkable
class OnPolicy(Objective, Protocol):
    """An objective whose rows are drawn by the policy in training; its data are prompts."""

    @property
    def rounds(self) -> Rounds:
        """A class variable, or a property where it depends on the objective's fields."""
        ...


def tokens_of(rows: Sequence[Row], name: str, device: torch.device | str = "cpu") -> Tensor:
    """tokens[name] of the rows as float32 [N], in the order of the scored tokens of `Layout.tree(rows)` (and of its `logps_N`):
    row by row, sequence by sequence, and in a sequence as they stand. A shared prefix changes nothing of that."""
    parts = [values for row in rows for values in row.tokens[name]]
    counts = [int(scored_L.sum()) for row in rows for scored_L in row.scored]
    assert [len(values) for values in parts] == counts, f"tokens[{name!r}] has not one number per scored token"
    return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(device)


def with_reference_token_logps(rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
    """The rows with tokens["reference_logps"], asked of the crew's reference at the temperature that they were drawn at."""
    if not isinstance(crew.reference, TokenScorer):
        raise ValueError("a loss against a reference policy per token needs one: pass crew=Crew(reference=PolicyScorer(model))")
    temperatures = {float(value) for row in rows for value in row.numbers["temperature"]}
    assert len(temperatures) == 1, f"rows of one round were drawn at {len(temperatures)} temperatures"
    found = crew.reference.token_logps(rows, temperatures.pop())
    return [replace(row, tokens={**row.tokens, "reference_logps": logps}) for row, logps in zip(rows, found, strict=True)]


def round_steps(
    rows: Sequence[Row], budget: Budget, weights_of: Callable[[Sequence[Row]], Mapping[str, float]], rounds: Rounds
) -> Iterator[list[Batch]]:
    """The optimizer steps of a round: in every epoch the rows in another order, dealt out to `batches` steps of like size.

    The order depends on the rows alone, so a resumed run takes the same steps. Fewer rows than batches are fewer steps.
    """
    name = int(fingerprint([row.key for row in rows])[:16], 16)
    for epoch in range(rounds.epochs):
        order = np.random.default_rng([name, epoch]).permutation(len(rows))
        for numbers in np.array_split(order, min(rounds.batches, len(rows))):
            yield microbatches([rows[number] for number in numbers], budget, weights_of)
