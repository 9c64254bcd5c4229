"""`trueline data inspect` and `trueline data convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from trueline.cli.places import BASE, COLUMNS, FILE, MODEL, column_names, model_folder, say_read
from trueline.records import Comparison, Conversation, Document, Rating, Record, Row
from trueline.rows import inspect, read_rows, render, write_rows
from trueline.rows.verdicts import MEANINGS
from trueline.tokens import (
    Tokenizer,
    encode_comparison,
    encode_conversation,
    encode_document,
    encode_rating,
    load_tokenizer,
    preview,
)

VERDICT = tyro.conf.arg(metavar="VALUE=MEANING ...", help_behavior_hint="(optional)")
UNCUT = 1 << 30
"""A length that nothing reaches: inspection counts what a context would cut, so it cuts nothing itself."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Look at rows before training on them: format, what cannot be used, lengths, duplicates, the share that a
    context length would cut, and samples with what is trained on in green."""

    data: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="FILE_OR_HUB_ID ...", help_behavior_hint="(required)"),
    ]
    """Files, folders or hub ids."""
    model: Annotated[str, MODEL] = BASE
    """Whose tokenizer counts: a folder, a hub id, or "base", the model that ships with Trueline. With "none"
    lengths are in characters."""
    max_length: int = 1024
    """Context length in tokens to measure against."""
    samples: int = 3
    """Rows to show, drawn by --seed."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question completion=answer."""
    verdict: Annotated[tuple[str, ...], VERDICT] = ()
    """What the values of a verdict column mean: 1=first 2=second 0=tie."""
    rejects: Annotated[Path | None, FILE] = None
    """Keep the rows that cannot be used in this JSONL file, each with file, line and reason."""
    limit: int = 0
    """Read at most so many records; 0 reads all."""
    seed: int = 0
    """Seeds the choice of samples."""

    def run(self) -> None:
        """Print the report."""
        if not self.data:
            raise ValueError("trueline data inspect needs a FILE_OR_HUB_ID; see trueline data inspect --help")
        tokenizer = None if self.model == "none" else load_tokenizer(model_folder(self.model))
        rows = read_rows(
            self.data,
            rejects=self.rejects,
            limit=self.limit or None,
            columns=column_names(self.columns),
            verdict=verdict_meanings(self.verdict),
        )
        report = inspect(
            rows,
            encode=None if tokenizer is None else partial(encode, tok=tokenizer),
            preview=None if tokenizer is None else partial(preview, tok=tokenizer),
            max_length=self.max_length,
            samples=self.samples,
            seed=self.seed,
        )
        Console(highlight=False, soft_wrap=True).print(render(report))


def verdict_meanings(given: Sequence[str]) -> dict[str, str] | None:
    """["1=first", "0=tie"] -> {"1": "first", "0": "tie"}; None where nothing is given."""
    meanings = dict[str, str]()
    for pair in given:
        value, _, meaning = pair.rpartition("=")
        if not value or meaning not in MEANINGS:
            raise ValueError(f"--verdict {pair!r}: write value=first, value=second or value=tie, such as 1=first")
        meanings[value] = meaning
    return meanings or None


def encode(record: Record, tok: Tokenizer) -> list[Row]:
    """The record as rows, nothing cut; none when its kind is not trained on yet."""
    match record:
        case Document():
            return encode_document(record, tok, UNCUT)
        case Conversation():
            row = encode_conversation(record, tok, UNCUT)
        case Comparison():
            row = encode_comparison(record, tok, UNCUT)
        case Rating():
            row = encode_rating(record, tok, UNCUT)
        case _:
            row = None
    return [] if row is None else [row]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write any rows we read as JSONL or Parquet, in TRL's columns or in our own, which keep rankings and vote
    counts."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE_OR_HUB_ID")]
    """A file, a folder or a hub id."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The file to write: .jsonl, .jsonl.gz, .jsonl.zst or .parquet."""
    format: Literal["trl", "trueline"] = "trl"
    """Columns: trl (prompt, completion, chosen, rejected, messages, text) or trueline (responses with ranks or
    counts)."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question completion=answer."""
    verdict: Annotated[tuple[str, ...], VERDICT] = ()
    """What the values of a verdict column mean: 1=first 2=second 0=tie."""
    rejects: Annotated[Path | None, FILE] = None
    """Keep the rows that cannot be used in this JSONL file, each with file, line and reason."""
    limit: int = 0
    """Read at most so many records; 0 reads all."""

    def run(self) -> None:
        """Write the file and say what became of the rows."""
        console = Console(highlight=False, soft_wrap=True)
        rows = read_rows(
            self.data,
            rejects=self.rejects,
            limit=self.limit or None,
            columns=column_names(self.columns),
            verdict=verdict_meanings(self.verdict),
        )
        written = write_rows(rows, self.out, self.format)
        say_read(rows, console)
        for reason, number in written.left_out.most_common():
            console.print(f"      [yellow]{number:,} left out[/yellow]: {reason}")
        console.print(f"{written.rows:,} rows in {self.out}")
