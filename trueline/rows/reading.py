"""`read_rows`: files -> records, in the record that the caller trains on, with everything left out counted and kept.

    rows = read_rows("pairs.jsonl", record=Comparison, rejects=Path("out/rejects.jsonl"))
    rows.format                      # "TRL preference, conversational"
    for comparison in rows: ...      # streams; may be iterated again
    rows.rejected                    # Counter({"chosen and rejected are equal": 3})

The format is found from the first rows when the file is opened, so a wrong file fails at once. Left out: token ids
(`trueline.tokens`), cleaning of raw text.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from trueline.records import TEXT, Comparison, Conversation, Document, Message, Messages, Ranking, Rating, Record
from trueline.rows.formats import Format, detect, form, nearest
from trueline.rows.messages import At, Reject, untrained
from trueline.rows.readers import Object, Unreadable, find_files, is_hub_id, read_hub, read_objects

LOOK = 20
"""Rows from which the format is found."""
UNKNOWN_FORM = ", no row usable so far"
PROMPT = "prompt"
"""What `read_prompts` wants; it is a Conversation without an answer."""


@dataclass(frozen=True)
class _Source:
    """One file or hub id, and what was found in its first rows."""

    path: str
    format: Format
    form: str
    columns: tuple[str, ...]


class Rows:
    """Records of one or more files. Every pass reads the files anew."""

    def __init__(
        self,
        paths: Sequence[str],
        *,
        wanted: type[Record] | str | None,
        rejects: Path | None,
        limit: int | None,
        columns: Mapping[str, str],
        chat: bool | None,
        verdict: Mapping[str, str] | None,
    ):
        self.rejects, self.limit = rejects, limit
        self.rejected: Counter[str] = Counter()
        """Reason -> rows. Counted, like the two below and the rejects file, until a pass was complete."""
        self.notes: Counter[str] = Counter()
        """Changes made to rows that were kept."""
        self.read = 0
        """Rows of the files: those that gave records plus those rejected."""
        self._counted = False
        self._wanted, self._columns, self._chat, self._verdict = wanted, dict(columns), chat, verdict
        self._sources = [self._look(path) for path in paths]

    @property
    def format(self) -> str:
        """What the files are, said in words."""
        names = dict.fromkeys(f"{s.format.name}, {s.form}" for s in self._sources)
        return " + ".join(names)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for s in self._sources for name in s.columns))

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that no record holds."""
        kept = any(s.format.record is Document for s in self._sources)  # a Document keeps them as meta
        return () if kept else tuple(c for c in self.columns if not any(s.format.reads(c) for s in self._sources))

    @property
    def record(self) -> type[Record]:
        """The class of the records."""
        if isinstance(self._wanted, str):
            return Conversation
        return self._wanted or self._sources[0].format.record

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(source.path for source in self._sources)

    def __iter__(self) -> Iterator[Record]:
        counting = not self._counted
        if counting:
            self.rejected, self.notes, self.read = Counter(), Counter(), 0
        log = _Log(self.rejects if counting else None)
        notes: Counter[str] = self.notes if counting else Counter()
        given = 0
        try:
            for source, (place, row) in ((one, found) for one in self._sources for found in _objects(one.path)):
                if given == self.limit:
                    break
                self.read += counting
                try:
                    records = self._records(source, place, row, notes)
                except Reject as reason:
                    if counting:
                        self.rejected[str(reason)] += 1
                        log.write(place, str(reason), row)
                    continue
                for record in records if self.limit is None else records[: self.limit - given]:
                    given += 1
                    yield record
            self._counted = True
        finally:
            log.close()
        if not given and self.limit != 0:
            read = f"{', '.join(self.paths)} read as {self.format.removesuffix(UNKNOWN_FORM)}"
            raise ValueError(f"{read}: none of its {self.read:,} rows can be used: {most_of(self.rejected)}")

    def _records(
        self, source: _Source, place: str, row: dict[str, Any] | Unreadable, notes: Counter[str]
    ) -> list[Record]:
        if isinstance(row, Unreadable):
            raise Reject(str(row))
        row = self._renamed(row)
        found = source.format
        missing = found.missing([name for name, value in row.items() if value is not None])
        if missing:
            # Files joined together: a dialogue says itself how it is written. A pair without its prompt does not.
            other = detect([row]) if found.record is Conversation else None
            if other is None or other.record is not Conversation or other.gives_prompts != found.gives_prompts:
                raise Reject(f"no {missing[0].replace('|', ' or ')}")
            notes[f"rows in another format: {other.name}"] += 1
            found = other
        at = At(source=place, chat=self._chat, verdict=self._verdict, notes=notes)
        return [fitted for record in found.convert(row, at) for fitted in fit(record, self._wanted)]

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under the names that `columns` gives: {"prompt": "question"} reads prompt from question."""
        taken = set(self._columns.values()) | set(self._columns)
        return {name: row.get(column) for name, column in self._columns.items()} | {
            name: value for name, value in row.items() if name not in taken
        }

    def _look(self, path: str) -> _Source:
        """Find the format from the first rows, or say what is wrong in one sentence."""
        first: list[dict[str, Any]] = []
        seen, reasons = 0, Counter[str]()
        for _, row in _objects(path):
            seen += 1
            if isinstance(row, Unreadable):
                reasons[str(row)] += 1
            else:
                first.append(row)
            if (seen >= LOOK and first) or seen >= 1000:
                break
        if not first:
            if not seen:
                raise ValueError(f"{path} has no rows: it is empty")
            raise ValueError(f"{path}: none of its {seen} rows is an object ({most_of(reasons)}); is it a text file of rows?")
        names = tuple(dict.fromkeys(name for row in first for name in row))
        for column in self._columns.values():
            if column not in names:
                close = difflib.get_close_matches(column, names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, names))}"
                raise ValueError(f"{path} has no column {column!r}; {hint}")
        rows = [self._renamed(row) for row in first]
        found = detect(rows)
        renamed = tuple(dict.fromkeys(name for row in rows for name in row))
        if found is None or not convertible(found, self._wanted):
            raise ValueError(_mismatch(path, found, renamed, self._wanted))
        return _Source(path, found, self._form(found, rows), renamed)

    def _form(self, found: Format, rows: Sequence[Mapping[str, Any]]) -> str:
        for row in rows:
            try:
                return form(found.convert(row, At(source="", chat=self._chat, verdict=self._verdict))[0])
            except Reject:
                continue
        return UNKNOWN_FORM.removeprefix(", ")


def read_rows(
    path: str | Path | Sequence[str | Path],
    record: type[Record] | None = None,
    *,
    rejects: str | Path | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    chat: bool | None = None,
    verdict: Mapping[str, str] | None = None,
) -> Rows:
    """Open a file, a folder, a hub id, or several of them.

    record    what to train on: rows of another kind are converted when that is sensible (`fit`), refused otherwise
    rejects   a JSONL file that receives every row left out: file, line, reason, row
    limit     at most so many records
    columns   other names: {"prompt": "question", "completion": "best_answer"}
    chat      Alpaca and HH-RLHF as chat turns (True) or in their own text form (False); default: turns and text
    verdict   meaning of a verdict column: {"1": "first", "2": "second", "0": "tie"}
    """
    return _open(path, record, rejects, limit, columns, chat, verdict)


def read_prompts(
    path: str | Path | Sequence[str | Path],
    *,
    rejects: str | Path | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    chat: bool | None = None,
) -> Rows:
    """The prompts of any file that has some, as Conversations without an answer: what `sample` needs."""
    return _open(path, PROMPT, rejects, limit, columns, chat, None)


def _open(
    path: str | Path | Sequence[str | Path],
    wanted: type[Record] | str | None,
    rejects: str | Path | None,
    limit: int | None,
    columns: Mapping[str, str] | None,
    chat: bool | None,
    verdict: Mapping[str, str] | None,
) -> Rows:
    given = [path] if isinstance(path, str | Path) else list(path)
    return Rows(
        [name for one in given for name in _names(one)],
        wanted=wanted,
        rejects=Path(rejects) if rejects is not None else None,
        limit=limit,
        columns=columns or {},
        chat=chat,
        verdict=verdict,
    )


def _names(path: str | Path) -> list[str]:
    """Files below a local path; else the hub id as it stands."""
    files = find_files(path)
    if files:
        return [str(file) for file in files]
    if is_hub_id(str(path)):
        return [str(path)]
    folder = Path(path).parent
    close = difflib.get_close_matches(Path(path).name, [p.name for p in folder.glob("*")], 1) if folder.is_dir() else []
    raise ValueError(f"{path} does not exist" + (f"; did you mean {folder / close[0]}?" if close else ""))


def _objects(path: str) -> Iterator[Object]:
    return read_objects(path) if Path(path).exists() else read_hub(path)


class _Log:
    """The rejects file, which exists only when there is something in it."""

    def __init__(self, path: Path | None):
        self.path = path
        self.file: TextIO | None = None
        if path is not None:
            path.unlink(missing_ok=True)  # of an earlier pass

    def write(self, place: str, reason: str, row: dict[str, Any] | Unreadable) -> None:
        if self.path is None:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "w", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
        file, _, line = place.rpartition(":")
        kept = row.raw if isinstance(row, Unreadable) else row
        about = {"file": file, "line": int(line), "reason": reason, "row": kept}
        self.file.write(json.dumps(about, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


# --- one record as another --------------------------------------------------------------------------------------------

CONVERSIONS: tuple[tuple[type[Record], type[Record] | str], ...] = (
    (Comparison, Conversation),
    (Rating, Conversation),
    (Document, Conversation),
    (Comparison, Rating),
    (Conversation, PROMPT),
    (Comparison, PROMPT),
    (Rating, PROMPT),
)


def convertible(found: Format, wanted: type[Record] | str | None) -> bool:
    """Whether rows of a format can be read as the wanted record."""
    if found.gives_prompts:
        return wanted in (None, PROMPT)
    return wanted is None or found.record is wanted or (found.record, wanted) in CONVERSIONS


def fit(record: Record, wanted: type[Record] | str | None) -> list[Record]:
    """The record as the wanted one.

    Comparison -> Conversation   the best response, to be trained on
    Comparison -> Rating         chosen: desirable, rejected: not (two responses, no tie)
    Rating     -> Conversation   desirable responses only
    Document   -> Conversation   plain text, all of it trained on
    any        -> prompt         what comes before the last answer; a conversation's is kept as what is right, unless a column says it
    """
    if wanted == PROMPT:
        prompt = _prompt(record)
        if not isinstance(record, Conversation):
            return [Conversation(messages=prompt, source=record.source)]
        last = "".join(message.content for message in record.messages[len(prompt) :])
        answer = record.answer if record.answer is not None else last or None
        return [replace(record, messages=prompt, answer=answer)]
    if wanted is Conversation and isinstance(record, Conversation):
        if not any(m.train and m.role in ("assistant", TEXT) for m in record.messages):
            raise Reject("no assistant turn to train on")
        return [record]
    if wanted is None or isinstance(record, wanted):  # type: ignore[arg-type]
        return [record]
    match record:
        case Comparison() if wanted is Conversation:
            messages = (*untrained(record.prompt), *record.responses[_best(record)])
            return [Conversation(messages=messages, source=record.source)]
        case Comparison() if wanted is Rating:
            best = _best(record)
            if len(record.responses) != 2:
                raise Reject("ratings can be made of pairs only")
            one = Rating(prompt=record.prompt, response=(), source=record.source, annotator=record.annotator)
            return [replace(one, response=response, label=k == best) for k, response in enumerate(record.responses)]
        case Rating() if wanted is Conversation:
            if record.label is not True:
                raise Reject("a response that is not labelled desirable")
            return [Conversation(messages=(*untrained(record.prompt), *record.response), source=record.source)]
        case Document() if wanted is Conversation:
            return [Conversation(messages=(Message(role=TEXT, content=record.text),), source=record.source)]
    raise AssertionError(f"{type(record).__name__} as {wanted}")


def _best(record: Comparison) -> int:
    judgement = record.judgement
    scores = [-float(r) for r in judgement.ranks] if isinstance(judgement, Ranking) else list(judgement.counts)
    if scores.count(max(scores)) > 1:
        raise Reject("a tie for the best response")
    return scores.index(max(scores))


def _prompt(record: Record) -> Messages:
    match record:
        case Comparison() | Rating():
            return untrained(record.prompt)
        case Conversation():
            end = len(record.messages)
            while end and record.messages[end - 1].role == "assistant":
                end -= 1
            if record.messages[0].role == TEXT:
                end = next((i for i, m in enumerate(record.messages) if m.train), end)
            if not end:
                raise Reject("no prompt")
            return untrained(record.messages[:end])
    raise AssertionError(f"{type(record).__name__} has no prompt")


NEEDED: dict[Any, str] = {
    Document: "texts", Conversation: "conversations", Comparison: "comparisons", Rating: "ratings", PROMPT: "prompts",
}  # fmt: skip


def most_of(reasons: Counter[str]) -> str:
    """The three commonest reasons, with their rows."""
    return "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))


def _mismatch(path: str, found: Format | None, columns: Sequence[str], wanted: type[Record] | str | None) -> str:
    """One sentence: what the file has, what is needed, which rename would do."""
    has = ", ".join(columns[:8]) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")
    if found is not None:
        gives = "prompts without answers" if found.gives_prompts else NEEDED[found.record]
        return (
            f"{path} is {found.name} (columns {has}) and gives {gives}, but {NEEDED[wanted]} are needed: "
            f"{nearest(columns, wanted if isinstance(wanted, type) else None, wanted == PROMPT)}"
        )
    target = wanted if isinstance(wanted, type) else None
    return f"{path} has the columns {has}, which is no format known here; {nearest(columns, target, wanted == PROMPT)}"
