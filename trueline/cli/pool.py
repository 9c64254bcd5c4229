"""`trueline data pool`: ratings of single responses to counts per category, with one judge's prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from trueline.align.posterior import pooled
from trueline.cli.places import COLUMNS, DATA, column_names, say_read
from trueline.records import Rating
from trueline.rows import read_rows, write_rows


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Pool all ratings of a response into one row of counts per category, worst first, which trueline dprm trains on.
    With --judge one annotator's ratings are the prior, and the others' picks update it."""

    data: Annotated[tuple[str, ...], DATA]
    """Ratings: prompt, completion, and a score, a label or counts; `annotator` says whose."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")]
    """Where the pooled rows go: .jsonl, .jsonl.gz, .jsonl.zst or .parquet."""
    levels: Annotated[tuple[float, ...], tyro.conf.arg(metavar="SCORE ...", help_behavior_hint="(optional)")] = ()
    """The scores that the categories stand for, worst first; needed where rows have a score."""
    judge: str = ""
    """The annotator whose ratings are the prior; without one there is no prior."""
    strength: float = 4.0
    """How many picks the prior weighs."""
    smoothing: float = 0.0
    """Share of every pick that moves to its neighbouring categories; 0.1 is usual for personas."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question completion=answer."""

    def run(self) -> None:
        """Pool and write."""
        console = Console(highlight=False, soft_wrap=True)
        rows = read_rows(self.data, Rating, columns=column_names(self.columns))
        found = pooled(
            (record for record in rows if isinstance(record, Rating)), self.levels,
            judge=self.judge, strength=self.strength, smoothing=self.smoothing,
        )  # fmt: skip
        say_read(rows, console)
        written = write_rows(found, self.out, "trueline")
        picks = sum(sum(one.counts or ()) for one in found) / max(1, len(found))
        prior = " with the prior" if self.judge else ""
        console.print(f"{written.rows:,} responses in {self.out}, {picks:.3g} picks each{prior}", markup=False)
