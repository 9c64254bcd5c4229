"""Reference log-probs on disk: computed once for a reference and a row, read by every later run.

    folder/<fingerprint of the weights>/<hash of its rows' names>.safetensors      row -> float32 [K]

A row's name is the hash of the very ids and flags that are scored: a change of tokenizer, template, length or text
makes another name, so nothing in here can be stale. Shards are written whole or not at all; an unreadable one is
computed anew.

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
from trueline.store import fingerprint as digest
from trueline.store import write_atomic
from trueline.tokens.encode import row_key

SHARD = 512
"""Rows scored and written at a time: an interrupted run loses at most that."""


class CachedScorer:
    """A Scorer that remembers."""

    def __init__(self, scorer: Scorer | None, fingerprint: str, folder: Path):
        """`scorer` computes what is missing; without one, something missing is a fault of ours."""
        self.scorer, self.fingerprint, self.folder = scorer, fingerprint, folder / fingerprint
        self.known: dict[str, np.ndarray] = {}
        self.computed = 0
        """Rows that were not on disk."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                self.known |= load_file(path)
            except SafetensorError:
                path.unlink(missing_ok=True)  # another process may have been faster

    def fill(self, rows: Sequence[Row], progress: Callable[[int], None] = lambda done: None) -> None:
        """Score what is missing, shard by shard in the order of the rows."""
        names = [row_key(row.ids, row.scored) for row in rows]
        for start in range(0, len(rows), SHARD):
            shard = dict(zip(names[start : start + SHARD], rows[start : start + SHARD], strict=True))
            missing = {name: row for name, row in shard.items() if name not in self.known}
            if missing:
                assert self.scorer is not None, "the reference is asked for rows that it was not given before training"
                scores = self.scorer.score(list(missing.values()))
                found = {name: np.asarray(score_K, np.float32) for name, score_K in zip(missing, scores, strict=True)}
                write_atomic(self.folder / f"{digest(sorted(found))}.safetensors", save(found))
                self.known |= found
                self.computed += len(found)
            progress(min(len(rows), start + SHARD))

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        self.fill(rows)
        return [self.known[row_key(row.ids, row.scored)] for row in rows]
