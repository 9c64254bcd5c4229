"""Finished work, named by what it was made from: the same inputs are never computed twice, whatever was killed in between.

    cell = cells.of("policy", {"objective": ..., "model": ..., "rows": ..., "seed": 0})
    found = cell.once("measured.json", compute)          the file's content; computed and written whole where it is missing

    out/cells/policy-1f0c.../ inputs.json seconds.json log.txt run/      a trained policy or reward model
    out/cells/answers-93ab.../ inputs.json seconds.json answers.json     what a policy said, and how good it was

Seconds add up over resumes, but for what a kill cut off. They stand in a file of their own: results are the same bytes however often
a study was stopped. Left out: what is computed (training, measure).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueline import __version__
from trueline.store import canonical_json, fingerprint, write_atomic


@dataclass(frozen=True)
class Cell:
    """The folder of one piece of work."""

    folder: Path
    key: str

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What the file holds (JSON)."""
        path = self.folder / name
        if not path.exists():
            with self.timed():
                found = compute()
            write_atomic(path, json.dumps(found, allow_nan=False))
        return self.read(name)

    def read(self, name: str) -> Any:
        """What a file of the cell holds."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds, and keep what is said in log.txt."""
        before, began = self.seconds, time.monotonic()
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            try:
                yield
            finally:
                write_atomic(self.folder / "seconds.json", json.dumps(before + time.monotonic() - began))

    @property
    def seconds(self) -> float:
        path = self.folder / "seconds.json"
        return float(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0.0


class Cells:
    """All cells of a study."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, kind: str, inputs: Mapping[str, Any]) -> Cell:
        """The cell with these inputs."""
        about = {"kind": kind, "version": __version__, **inputs}
        key = fingerprint(about)
        folder = self.root / f"{kind}-{key[:16]}"
        if not (folder / "inputs.json").exists():
            write_atomic(folder / "inputs.json", json.dumps(json.loads(canonical_json(about)), indent=1, ensure_ascii=False))
        return Cell(folder, key)
