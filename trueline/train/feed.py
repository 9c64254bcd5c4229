"""Where the loop's rows come from, a round at a time, with a position that can be saved.

    StoredFeed   rows that exist: a round is the rows of one optimizer step

The order is a pure function of (seed, epoch), so the whole state is one integer: the rows handed out so far. Steps run
over the end of an epoch into the next; only the run's last step may be short.

Left out: feeds of fresh rollouts (rollout_feed; the loop takes any feed with these methods).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trueline.records import Row


@dataclass(frozen=True)
class Report:
    """What there is to say of the rounds since the last time."""

    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric -> (sum, count)."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What their making took; nothing where rows are stored."""
    note: str = ""
    """For the line of progress, beside the loss."""


class Feed(Protocol):
    """What the loop asks of a source of rows."""

    def __iter__(self) -> Iterator[list[Row]]: ...

    def state(self) -> dict[str, Any]:
        """JSON: where the next round starts."""
        ...

    def load(self, state: dict[str, Any]) -> None: ...

    def report(self) -> Report:
        """Of the rounds since the last call."""
        ...

    @property
    def epoch(self) -> float:
        """Passes made so far, with fraction."""
        ...


class StoredFeed:
    """Rows in memory, shuffled anew in every epoch."""

    def __init__(self, rows: Sequence[Row], rows_per_step: int, seed: int, limit: int | None = None):
        """`limit` bounds the rows handed out in all (num_train_epochs times the number of rows); None is endless."""
        if not rows:
            raise ValueError("there are no rows to train on")
        self.rows, self.rows_per_step, self.seed, self.limit = rows, rows_per_step, seed, limit
        self.given = 0
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def _row(self, place: int) -> Row:
        epoch, offset = divmod(place, len(self.rows))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)))
        return self.rows[int(self._order[1][offset])]

    def __iter__(self) -> Iterator[list[Row]]:
        while self.limit is None or self.given < self.limit:
            stop = self.given + self.rows_per_step
            stop = stop if self.limit is None else min(stop, self.limit)
            rows = [self._row(place) for place in range(self.given, stop)]
            self.given = stop
            yield rows

    def state(self) -> dict[str, Any]:
        return {"given": self.given}

    def load(self, state: dict[str, Any]) -> None:
        self.given = int(state["given"])

    def report(self) -> Report:
        return Report()

    @property
    def epoch(self) -> float:
        return self.given / len(self.rows)


def prompt_of(row: Row) -> bytes:
    """What must not be split between training and evaluation: the ids before the first scored token; without any, all."""
    first = int(np.argmax(row.scored[0]))
    return row.ids[0][: first if first > 1 else None].astype("<i4").tobytes()


def hold_out(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """(training, evaluation): by a hash of the prompt, so a prompt keeps its side as data grows and whatever the seed."""
    train: list[Row] = []
    held: list[Row] = []
    for row in rows:
        place = int.from_bytes(hashlib.sha256(prompt_of(row)).digest()[:8], "big") / 2**64
        (held if place < share else train).append(row)
    if share > 0 and (not held or not train):
        left = f"leaves {len(train)} to train on and {len(held)} to evaluate on"
        raise ValueError(f"eval_share {share} of {len(rows)} rows {left}: pass eval_data, or another share")
    return train, held
