"""A look at a file before training: what it is, what is left out, how long, how often the same, what is learned.

    report = inspect("pairs.jsonl", encode=encode, preview=preview, max_length=1024)
    rich.print(render(report))

`encode` (record -> rows, nothing cut) and `preview` (row -> for each sequence its [(text, scored), ...]) come from
`trueline.tokens`, handed in by the command line; without them lengths are in characters and samples are the texts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trueline.records import TEXT, Comparison, Conversation, Document, Messages, Ranking, Rating, Record, Row
from trueline.rows.reading import Rows, read_rows

Segments = list[tuple[str, bool]]
Encode = Callable[[Record], Sequence[Row]]
Preview = Callable[[Row], Sequence[Segments]]


@dataclass(kw_only=True)
class Inspection:
    """What `inspect` found."""

    paths: tuple[str, ...]
    format: str
    record: str
    columns: tuple[str, ...]
    unused: tuple[str, ...]
    read: int = 0
    """Rows in the files."""
    records: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unit: str = "characters"
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Length of every sequence (a pair has two)."""
    max_length: int | None = None
    duplicates: int = 0
    """Records equal to an earlier one."""
    duplicate_prompts: int = 0
    """Records whose prompt, case and spacing aside, came before."""
    ties: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    longer_chosen: float | None = None
    """Share of pairs whose better response is the longer one (characters; equal lengths count half)."""
    samples: list[list[Segments]] = field(default_factory=list)

    @property
    def cut_sequences(self) -> float:
        """Share of sequences longer than max_length."""
        if self.max_length is None or not len(self.lengths):
            return 0.0
        return float((self.lengths > self.max_length).mean())

    @property
    def cut_length(self) -> float:
        """Share of all tokens (or characters) that lie beyond max_length."""
        if self.max_length is None or not self.lengths.sum():
            return 0.0
        return float(np.maximum(self.lengths - self.max_length, 0).sum() / self.lengths.sum())

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, to, sequences) over bins whose width doubles."""
        if not len(self.lengths):
            return []
        edges = [0, *(2**k for k in range(4, 1 + int(self.lengths.max()).bit_length()))]
        edges = edges if edges[-1] >= self.lengths.max() else [*edges, 2 * edges[-1] or 16]
        bins = [
            (low + 1, high, int(((self.lengths > low) & (self.lengths <= high)).sum())) for low, high in pairwise(edges)
        ]
        first = next(i for i, (_, _, count) in enumerate(bins) if count)
        return bins[first:]


def inspect(
    path: str | Path | Sequence[str | Path] | Rows,
    *,
    encode: Encode | None = None,
    preview: Preview | None = None,
    max_length: int | None = None,
    samples: int = 3,
    rejects: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Inspection:
    """Read the whole file once."""
    rows = path if isinstance(path, Rows) else read_rows(path, rejects=rejects, limit=limit)
    found = Inspection(
        paths=rows.paths, format=rows.format, record=rows.record.__name__, columns=rows.columns, unused=rows.unused,
        unit="tokens" if encode else "characters", max_length=max_length,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    kept: list[tuple[Record, Sequence[Row]]] = []
    seen: set[bytes] = set()
    prompts: set[bytes] = set()
    longer: list[float] = []
    for record in rows:
        encoded = encode(record) if encode else []
        lengths += (
            [len(ids) for row in encoded for ids in row.ids] if encode else [len(text) for text in texts_of(record)]
        )
        _count_duplicates(record, seen, prompts, found)
        _count_judgement(record, longer, found)
        found.records += 1
        slot = len(kept) if len(kept) < samples else int(rng.integers(found.records))  # a uniform sample of the stream
        if slot < samples:
            kept[slot : slot + 1] = [(record, encoded)]
    found.read, found.rejected, found.notes = rows.read, Counter(rows.rejected), Counter(rows.notes)
    found.lengths = np.array(lengths, dtype=np.int64)
    found.longer_chosen = float(np.mean(longer)) if longer else None
    for record, encoded in kept:
        shown = [segments for row in encoded for segments in preview(row)] if preview else []
        found.samples.append(shown or segments_of(record))
    return found


def _count_duplicates(record: Record, seen: set[bytes], prompts: set[bytes], found: Inspection) -> None:
    def is_new(text: str, known: set[bytes]) -> bool:
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=12).digest()
        known_before = len(known)
        known.add(digest)
        return len(known) > known_before

    found.duplicates += not is_new("\x1e".join(texts_of(record)), seen)
    prompt = prompt_of(record)
    if prompt:
        text = "\x1f".join(f"{m.role}:{' '.join(m.content.casefold().split())}" for m in prompt)
        found.duplicate_prompts += not is_new(text, prompts)


def _count_judgement(record: Record, longer: list[float], found: Inspection) -> None:
    match record:
        case Comparison():
            judgement = record.judgement
            scores = [-r for r in judgement.ranks] if isinstance(judgement, Ranking) else list(judgement.counts)
            if len(set(scores)) < len(scores):
                found.ties += 1
            if len(scores) == 2 and scores[0] != scores[1]:
                sizes = [sum(len(m.content) for m in response) for response in record.responses]
                better = 0 if scores[0] > scores[1] else 1
                longer.append(0.5 if sizes[0] == sizes[1] else float(sizes[better] > sizes[1 - better]))
        case Rating(label=bool(label)):
            found.labels["desirable" if label else "undesirable"] += 1


def texts_of(record: Record) -> list[str]:
    """The full text of each sequence, without any template."""
    return ["".join(text for text, _ in segments) for segments in segments_of(record)]


def prompt_of(record: Record) -> Messages:
    """What comes before the first answer."""
    match record:
        case Comparison() | Rating():
            return record.prompt
        case Conversation():
            end = next(
                (i for i, m in enumerate(record.messages) if m.role == "assistant" or (m.role == TEXT and m.train)),
                None,
            )
            return record.messages[:end]
    return ()


def segments_of(record: Record) -> list[Segments]:
    """The texts of a record, and what of them would be scored."""

    def said(messages: Messages, scored: bool) -> Segments:
        parts: Segments = []
        for m in messages:
            counts = scored and m.train and m.role in ("assistant", TEXT)
            content = m.content + "".join(json.dumps(call, ensure_ascii=False) for call in m.tool_calls)
            plain = [(content, counts)]
            parts += plain if m.role == TEXT else [(f"{m.role}: ", False), *plain, ("\n", False)]
        return parts

    match record:
        case Document():
            return [[(record.text, True)]]
        case Conversation():
            return [said(record.messages, True)]
        case Comparison():
            return [said(record.prompt, False) + said(response, True) for response in record.responses]
        case Rating():
            return [said(record.prompt, False) + said(record.response, True)]


def render(found: Inspection, *, characters: int = 1200, marks: bool = False) -> RenderableType:
    """The report for a terminal. Each sample shows at most so many characters per sequence; `marks` puts what is trained
    on between ⟦ and ⟧, for where there is no colour."""
    facts = Table.grid(padding=(0, 2))

    def fact(name: str, value: str) -> None:
        facts.add_row(Text(name, style="bold"), Text(value))

    def share(count: int) -> str:
        return f"{count:,} ({count / max(1, found.records):.1%})"

    fact("file", ", ".join(found.paths[:3]) + (f" and {len(found.paths) - 3} more" if len(found.paths) > 3 else ""))
    fact("format", found.format)
    fact("columns", ", ".join(found.columns))
    if found.unused:
        fact("not read", ", ".join(found.unused))
    fact("rows", f"{found.read:,}, of which {sum(found.rejected.values()):,} rejected")
    fact("records", f"{found.records:,} ({found.record})")
    fact("duplicates", share(found.duplicates))
    fact("repeated prompts", share(found.duplicate_prompts))
    if found.record == "Comparison":
        fact("ties", share(found.ties))
    if found.longer_chosen is not None:
        fact("longer is preferred", f"{found.longer_chosen:.1%}")
    if found.labels:
        fact("labels", ", ".join(f"{count:,} {name}" for name, count in found.labels.items()))
    if len(found.lengths):
        low, middle, high, most = np.quantile(found.lengths, [0.05, 0.5, 0.95, 1.0])
        fact(
            found.unit,
            f"median {middle:,.0f}, 5% {low:,.0f}, 95% {high:,.0f}, longest {most:,.0f}, sum {found.lengths.sum():,}",
        )
    if found.max_length is not None:
        text = f"{found.cut_sequences:.1%} of the sequences and {found.cut_length:.1%} of all {found.unit}"
        fact(f"cut at {found.max_length:,}", text)
    parts: list[RenderableType] = [facts, Text()]
    bins = found.histogram()
    if bins:
        table = Table.grid(padding=(0, 2))
        widest = max(count for _, _, count in bins)
        for low_edge, high_edge, count in bins:
            bar = Text("█" * max(round(40 * count / widest), 1 if count else 0), style="cyan")
            table.add_row(
                Text(f"{low_edge:,} - {high_edge:,}", justify="right"), Text(f"{count:,}", justify="right"), bar
            )
        parts += [Text(f"lengths in {found.unit}", style="bold"), table, Text()]
    for title, counts in (("rejected", found.rejected), ("changed", found.notes)):
        if counts:
            table = Table.grid(padding=(0, 2))
            for reason, count in counts.most_common():
                table.add_row(Text(f"{count:,}", justify="right"), Text(reason))
            parts += [Text(title, style="bold"), table, Text()]
    for number, sequences in enumerate(found.samples, 1):
        for place, segments in enumerate(sequences, 1):
            which = f"sample {number}" + (f", sequence {place} of {len(sequences)}" if len(sequences) > 1 else "")
            head = Text(which, style="bold")
            head.append("  between ⟦ and ⟧: trained on" if marks else "  green: trained on", style="dim")
            parts += [head, _coloured(segments, characters, marks), Text()]
    return Group(*parts)


def _coloured(segments: Segments, characters: int, marks: bool) -> Text:
    """Scored text in green, the rest dim; the middle of a long sequence is left out."""
    text = Text()
    for content, scored in segments:
        text.append(f"⟦{content}⟧" if marks and scored else content, style="green" if scored else "dim")
    if len(text) <= characters:
        return text
    left_out = Text(f" ... {len(text) - characters:,} characters ... ", style="italic")
    return text[: characters // 2] + left_out + text[len(text) - characters // 2 :]
