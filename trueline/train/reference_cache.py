"""Reference log-probs on disk: computed once for a reference and a row, read by every later run.

    folder/<fingerprint of the weights>/<name of its first row>.safetensors      row -> float32 [K]

A row's name is made of the very ids and flags that are scored, so a change of tokenizer, template, length or text makes another
name: nothing in here can be stale. Shards are written whole or not at all; an unreadable one is computed anew.

Left out: deleting (remove the folder).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from trueline.protocols import Scorer
from trueline.records import Row
from trueline.store import write_atomic
from trueline.tokens.encode import row_key

SHARD = 512
"""Rows scored and written at a time: an interrupted run loses at most that."""


class CachedScorer:
    """A Scorer that remembers. The scorer itself is made by `make` only when something is missing."""

    def __init__(self, make: Callable[[], Scorer], fingerprint: str, folder: Path):
        self.make, self.fingerprint, self.folder = make, fingerprint, folder / fingerprint
        self.known: dict[str, np.ndarray] = {}
        self.computed = 0
        """Rows that were not on disk."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                self.known |= load_file(path)
            except (SafetensorError, OSError):
                path.unlink(missing_ok=True)

    def fill(self, rows: Sequence[Row], progress: Callable[[int], None] = lambda done: None) -> None:
        """Score what is missing, shard by shard in the order of the rows, then let the scorer go."""
        scorer: Scorer | None = None
        names = [row_key(row.ids, row.scored) for row in rows]
        for start in range(0, len(rows), SHARD):
            missing = {name: row for name, row in zip(names[start : start + SHARD], rows[start : start + SHARD], strict=True) if name not in self.known}
            if missing:
                scorer = scorer or self.make()
                found = dict(zip(missing, scorer.score(list(missing.values())), strict=True))
                write_atomic(self.folder / f"{next(iter(found))}.safetensors", save({name: np.asarray(value, np.float32) for name, value in found.items()}))
                self.known |= found
                self.computed += len(found)
            progress(min(len(rows), start + SHARD))

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        self.fill(rows)
        return [self.known[row_key(row.ids, row.scored)] for row in rows]
