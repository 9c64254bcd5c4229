"""Whatever a caller has (a path, records, rows) to rows of ids, with everything left out counted and kept.

Left out: formats (rows), templates and masks (tokens), order (feed).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from trueline.objectives.base import Objective
from trueline.records import Comparison, Conversation, Document, Rating, Record, Row
from trueline.rows import Rows, read_rows
from trueline.tokens import (
    EncodeStats,
    Tokenizer,
    encode_comparison,
    encode_conversation,
    encode_document,
    encode_rating,
)
from trueline.tokens.encode import documents_ids, window_rows
from trueline.tokens.template import RowError

Data = str | Path | Iterable[Record] | Sequence[Row]
CHUNK = 256
"""Records encoded at a time: documents are tokenised over threads."""


@dataclass(frozen=True)
class Encoded:
    """Rows, and what became of the data on the way."""

    rows: Sequence[Row]
    source: str
    """The path as it was given, or what else it was."""
    format: str = ""
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason -> records that gave no row, in reading or encoding."""
    stats: EncodeStats = field(default_factory=EncodeStats)
    kept: str = ""
    """The file that keeps what was left out, under the name it will have; a dry run keeps nothing."""

    read: int = 0
    """Rows read, those left out included; 0 for rows that came encoded."""
    used: int = 0
    """Records trained on. A row read may give several: a comparison is a rating per response."""

    def lines(self, max_length: int) -> list[str]:
        """One sentence per thing that people should know."""
        said = f"{len(self.rows):,} rows from {self.source}" + (f" ({self.format})" if self.format else "")
        used = "used" if self.used == self.read - self.rejected.total() else "records of them used"
        lines = [said + (f": {self.read:,} read, {self.used:,} {used}" if self.read else "")]
        if self.rejected:
            reasons = "; ".join(f"{reason} ({count:,})" for reason, count in self.rejected.most_common(5))
            kept = f", kept in {self.kept}" if self.kept else ""
            lines.append(f"{self.rejected.total():,} rows were left out{kept}: {reasons}")
        if self.stats.cut_rows:
            prompts = self.stats.cut_tokens - self.stats.cut_scored
            lines.append(
                f"{self.stats.cut_rows:,} rows were cut to max_length {max_length}, at their right end: "
                f"{self.stats.cut_tokens:,} tokens lost, {self.stats.cut_scored:,} of responses and {prompts:,} of prompts"
                + ("; what loses its end does not train where to stop" if self.stats.cut_scored else "")
            )
        elif self.stats.documents:
            lines.append(
                f"nothing is cut: {self.stats.documents:,} documents in {self.stats.rows:,} windows of at most {max_length} tokens"
            )
        elif self.stats.rows:
            lines.append(f"nothing is cut: no row is longer than max_length {max_length}")
        tokens, scored = (sum(counts) for counts in zip(*map(_tokens, self.rows), strict=True))
        lines.append(f"{tokens:,} tokens, of which {scored:,} ({scored / tokens:.1%}) are trained on")
        if self.stats.straddled:
            lines.append(f"{self.stats.straddled:,} rows have a token across prompt and response; it is not trained on")
        if self.stats.spelled:
            lines.append(f"{self.stats.spelled:,} rows spell a control token; it was encoded as plain characters")
        return lines


def encode(
    data: Data, objective: Objective, tokenizer: Tokenizer | None, max_length: int, rejects: Path | None = None
) -> Encoded:
    """Rows for an objective. Rows pass as they are; records are rendered and tokenised; a path is read first."""
    if isinstance(data, str | Path):
        rows = read_rows(data, objective.record, rejects=rejects)
        return _records(rows, str(data), objective, _needed(tokenizer), max_length, rejects)
    if isinstance(data, Rows):
        own, data.rejects = data.rejects, data.rejects or rejects
        try:
            found = _records(data, ", ".join(data.paths), objective, _needed(tokenizer), max_length, data.rejects)
        finally:
            data.rejects = own  # the file of this call is not that of the next
        return found if own is None else replace(found, kept=str(own))
    items = data if isinstance(data, Sequence) else list(data)
    if items and isinstance(items[0], Row):
        _check_length(items, max_length)  # type: ignore[arg-type]
        return Encoded(items, f"{len(items):,} encoded rows")  # type: ignore[arg-type]
    wrong = [type(item).__name__ for item in items if not isinstance(item, objective.record)]
    if wrong:
        needed = objective.record.__name__
        raise ValueError(
            f"{objective.verb} trains on {needed} records, and {len(wrong)} of {len(items)} are {wrong[0]}"
        )
    return _records(items, f"{len(items):,} records", objective, _needed(tokenizer), max_length, rejects)  # type: ignore[arg-type]


def _records(
    records: Iterable[Record], source: str, objective: Objective, tok: Tokenizer, max_length: int, rejects: Path | None
) -> Encoded:
    stats = EncodeStats()
    rows: list[Row] = []
    lost: list[tuple[Record, str]] = []
    given = 0
    remaining = iter(records)
    while chunk := list(islice(remaining, CHUNK)):
        given += len(chunk)
        before = stats.dropped.copy()
        for record, found in zip(chunk, encode_records(chunk, tok, max_length, stats), strict=True):
            rows += found
            if not found:
                lost.append((record, next(iter(stats.dropped - before))))
                before = stats.dropped.copy()
    read = records if isinstance(records, Rows) else None
    if rejects is not None and lost:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        with open(rejects, "a", encoding="utf-8", newline="\n") as file:
            for record, reason in lost:
                write_reject(file, record, reason)
    rejected = stats.dropped + (read.rejected if read is not None else Counter())
    if not rows:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
        raise ValueError(f"{source}: no row can be trained on{': ' + reasons if reasons else ''}")
    kept = "" if rejects is None else "rejects.jsonl"
    seen = read.read if read is not None else given
    form = read.format if read is not None else ""
    return Encoded(rows, source, form, rejected, stats, kept, seen, given - len(lost))


def encode_records(
    records: Sequence[Record], tok: Tokenizer, max_length: int, stats: EncodeStats
) -> Iterator[list[Row]]:
    """The rows of each record, as they come: windows of a document, one row of anything else, none of what is dropped."""
    documents = [record for record in records if isinstance(record, Document)]
    if not documents:
        for record in records:
            row = encode_record(record, tok, max_length, stats)
            yield [] if row is None else [row]
        return
    try:
        ids = documents_ids([document.text for document in documents], tok, stats)
    except RowError:  # one of them is no text: one at a time tells which
        yield from (encode_document(document, tok, max_length, stats) for document in documents)
        return
    yield from (window_rows([ids_L], max_length, stats) for ids_L in ids)


def encode_record(record: Record, tok: Tokenizer, max_length: int, stats: EncodeStats) -> Row | None:
    """One record that is one row."""
    match record:
        case Conversation():
            return encode_conversation(record, tok, max_length, stats)
        case Comparison():
            return encode_comparison(record, tok, max_length, stats)
        case Rating():
            return encode_rating(record, tok, max_length, stats)
    raise ValueError(f"{type(record).__name__} records cannot be trained on yet")


def _tokens(row: Row) -> tuple[int, int]:
    """Tokens of a row, and those that are trained on."""
    return row.num_tokens, sum(int(scored_L.sum()) for scored_L in row.scored)


def write_reject(file: TextIO, record: Any, reason: str) -> None:
    """A line about a record that gave no row."""
    name, _, line = record.source.rpartition(":")
    about = {"file": name or record.source, "line": int(line) if name and line.isdigit() else None, "reason": reason}
    file.write(json.dumps(about, ensure_ascii=False) + "\n")


def _needed(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ValueError(
            "text needs a tokenizer: name a model folder that holds one (tokenizer.json), or pass tokenizer=load_tokenizer(DIR)"
        )
    return tokenizer


def _check_length(rows: Sequence[Row], max_length: int) -> None:
    """Encoded rows are not cut: a response could lose its end unseen."""
    for row in rows:
        longest = max(len(ids) for ids in row.ids)
        if longest > max_length:
            name = row.key[:12] or "without a key"
            raise ValueError(
                f"row {name} has {longest} tokens and max_length is {max_length}: raise it or encode again"
            )


def keep_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows for people to look at."""
    about = [
        {
            "key": row.key,
            "ids": [ids.tolist() for ids in row.ids],
            "scored": [scored.astype(int).tolist() for scored in row.scored],
            "numbers": {name: [str(value) for value in values] for name, values in row.numbers.items()},
            "tokens": {name: [[str(value) for value in one] for one in values] for name, values in row.tokens.items()},
        }
        for row in rows
    ]
    path.write_text(json.dumps(about), encoding="utf-8")
    return path
