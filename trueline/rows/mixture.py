"""Several sources drawn from in turn, by weight: the same seed gives the same order.

    rows = mix([("alpaca.jsonl", 3), ("chat.jsonl", 1)], seed=0)                # three of the first for one
    rows = mix([(read_rows("a.jsonl"), 1), (more, 1)], seed=0, until="last")

Streams, and may be iterated again. Left out: weights by tokens, weights that change on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from trueline.records import Record
from trueline.rows.reading import Rows, read_rows

Source = str | Path | Rows | Iterable[Record]


class Mixture:
    """Records of all sources; `drawn` counts them per source in the last pass."""

    def __init__(self, sources: Sequence[tuple[Source, float]], seed: int, until: str, record: type[Record] | None):
        if not sources or any(not 0 < weight < float("inf") for _, weight in sources):
            raise ValueError("a mixture needs at least one source, and every weight above 0")
        self.sources = [read_rows(s, record) if isinstance(s, str | Path) else s for s, _ in sources]
        for source in self.sources:
            if iter(source) is source:
                raise ValueError("a mixture may read a source again: pass a list or a file, not an iterator")
        weights = np.array([weight for _, weight in sources], dtype=np.float64)
        self.shares, self.seed, self.until = weights / weights.sum(), seed, until
        self.drawn = [0] * len(self.sources)

    @property
    def format(self) -> str:
        said = [s.format if isinstance(s, Rows) else "records" for s in self.sources]
        return "; ".join(f"{share:.0%} {name}" for share, name in zip(self.shares, said, strict=True))

    @property
    def rejected(self) -> Counter[str]:
        return sum((s.rejected for s in self.sources if isinstance(s, Rows)), Counter())

    def __iter__(self) -> Iterator[Record]:
        rng = np.random.default_rng(self.seed)
        open_sources = [iter(source) for source in self.sources]
        unfinished = set(range(len(self.sources)))
        self.drawn = [0] * len(self.sources)
        while True:
            for k in rng.choice(len(self.sources), size=1024, p=self.shares).tolist():
                record = next(open_sources[k], None)
                if record is None:
                    if not self.drawn[k]:
                        raise ValueError(f"source {k + 1} of the mixture is empty")
                    unfinished.discard(k)
                    if self.until == "first" or not unfinished:
                        return
                    open_sources[k] = iter(self.sources[k])
                    record = next(open_sources[k])
                self.drawn[k] += 1
                yield record


def mix(
    sources: Sequence[tuple[Source, float]],
    seed: int = 0,
    *,
    until: Literal["first", "last"] = "first",
    record: type[Record] | None = None,
) -> Mixture:
    """Each next record comes from a source drawn with probability proportional to its weight. It ends when the first
    source has ended, or when the last has (the others begin again)."""
    return Mixture(sources, seed, until, record)
