"""A file of prompts in, a file of responses out, in its order; stopped anywhere, the same command goes on.

    rows of FILE -> Ask (number, prompt) -> a Responder, many at a time -> one line per prompt, in order
                \\-> OUT.rejects.jsonl, with the reason                OUT.run.json says by what the lines were made

What a prompt draws depends on the seed, the prompt, its response's number and how many equal prompts came before it in the file, not
on what else runs: the lines after a kill are those of an uninterrupted run. Every line is whole: what was cut off in the middle is
taken away when the work goes on. Legend: a row is an object of the files, counted from 0.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from trueline.records import Messages, Sampling
from trueline.rows.messages import Reject, parse_messages, text_message, user
from trueline.rows.readers import Unreadable, find_files, read_objects
from trueline.store import canonical_json, file_fingerprint, write_atomic

PROMPTS = ("prompt", "messages", "prompt_ids", "text")
"""Columns that may hold the prompt, in this order."""


@dataclass(frozen=True)
class Ask:
    """One row that is to be answered."""

    number: int
    messages: Messages
    ids: tuple[int, ...]
    """The prompt, where it is given as ids and not as messages."""
    row: Mapping[str, Any]
    """As it was read; what it holds besides is written again beside the responses."""
    sampling: Sampling


@dataclass(frozen=True)
class Response:
    """One response to a prompt."""

    text: str
    finish_reason: str
    ids: Sequence[int] = ()
    logps: Sequence[float] = ()
    """Of each token; empty where they are not known."""


class Responder(Protocol):
    """Answers many at a time."""

    def start(self, ask: Ask) -> None:
        """Takes it on. ValueError: this row cannot be answered, and why."""
        ...

    def ended(self) -> Iterable[tuple[int, list[Response] | str]]:
        """Goes on for a while; (row, its responses) of those that are done, or why a row was refused after all."""
        ...


def asks(files: Sequence[str], sampling: Sampling, columns: Mapping[str, str], chat: bool) -> Iterator[tuple[int, str, Ask | Reject, Any]]:
    """(row, its place, what is asked or why it cannot be, the row as read) of each object of the files."""
    seen: Counter[bytes] = Counter()
    names = {theirs: ours for ours, theirs in columns.items()}
    number = 0
    for file in paths(files):
        for place, read in read_objects(file):
            if isinstance(read, Unreadable):
                yield number, place, Reject(str(read)), read.raw
            else:
                row = {names.get(name, name): value for name, value in read.items()}
                try:
                    yield number, place, _ask(number, row, sampling, chat, seen), read
                except Reject as reason:
                    yield number, place, reason, read
            number += 1


def paths(files: Sequence[str]) -> list[Path]:
    """The data files below the names."""
    found = [(name, find_files(name)) for name in files]
    for name, inside in found:
        if not inside:
            raise ValueError(f"{name} does not exist: name a file of prompts, such as prompts.jsonl")
    return [path for _, inside in found for path in inside]


def _ask(number: int, row: dict[str, Any], sampling: Sampling, chat: bool, seen: Counter[bytes]) -> Ask:
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    if column is None:
        raise Reject(f"none of the columns {', '.join(PROMPTS)}; --columns prompt=NAME says which holds the prompt")
    value, seed = row[column], row.get("seed", sampling.seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise Reject("seed is not a whole number")
    messages: Messages = ()
    ids: tuple[int, ...] = ()
    if isinstance(value, str) and column != "messages":
        messages = (user(value),) if chat else (text_message(value, train=False),)
    elif isinstance(value, list) and value and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        ids = tuple(value)
    else:
        messages = parse_messages(value, column, Counter(), train=False)
        if messages[-1].role == "assistant":  # its answer, as in `sample`
            messages = messages[:-1]
        if not messages:
            raise Reject("nothing comes before the answer")
    said = hashlib.blake2b(canonical_json([value, seed]).encode("utf-8", errors="backslashreplace"), digest_size=8).digest()
    repeat = seen[said]
    seen[said] += 1
    if repeat:  # equal prompts draw different responses
        seed = int.from_bytes(hashlib.blake2b(f"{seed} {repeat}".encode(), digest_size=7).digest(), "big")
    return Ask(number, messages, ids, row, replace(sampling, seed=seed))


class Answers:
    """The file of responses: whole lines, in order, and what they were made by."""

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        """Goes on with a file that the same command began; refuses another one's."""
        self.out, self.rejects = out, out.with_name(out.name + ".rejects.jsonl")
        beside = out.with_name(out.name + ".run.json")
        about = json.loads(canonical_json(about))
        self.done = self.rejected = self.before = 0
        """Rows read so far, rows refused so far, lines that were there."""
        kept_rejects: list[str] = []
        if out.exists():
            self._refuse_others(beside, about)
            self.done, self.before = _whole_lines(out)
            kept_rejects = [line for line in _lines(self.rejects) if json.loads(line)["row"] < self.done]
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(beside, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        self.rejected = len(kept_rejects)
        self._rejects: TextIO | None = None
        if kept_rejects:
            write_atomic(self.rejects, "".join(kept_rejects))
        else:
            self.rejects.unlink(missing_ok=True)
        self._file = open(out, "a", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115

    def _refuse_others(self, beside: Path, about: Mapping[str, Any]) -> None:
        if not beside.is_file():
            raise ValueError(f"{self.out} exists and was not begun by this command: choose another --out, or remove it")
        before = json.loads(beside.read_text(encoding="utf-8"))
        for name, value in about.items():
            if before.get(name) != value:
                raise ValueError(f"{self.out} was begun with {name} {_short(before.get(name))}, and this is {_short(value)}: "
                                 "choose another --out, or the same options")  # fmt: skip

    def write(self, line: Mapping[str, Any]) -> None:
        """One prompt's responses. It is the operating system's before this returns: no kill of ours loses it."""
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def reject(self, number: int, place: str, reason: str, row: Any) -> None:
        """A row that cannot be answered."""
        if self._rejects is None:
            self._rejects = open(self.rejects, "a", encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
        file, _, line = place.rpartition(":")
        about = {"row": number, "file": file, "line": int(line), "reason": reason, "content": row}
        self._rejects.write(json.dumps(about, ensure_ascii=False, default=str) + "\n")
        self._rejects.flush()
        self.rejected += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in (self._file, self._rejects):
            if file is not None:
                os.fsync(file.fileno())
                file.close()


def answer(
    found: Iterable[tuple[int, str, Ask | Reject, Any]], answers: Answers, responder: Responder, window: int,
    line_of: Callable[[Ask, list[Response]], Mapping[str, Any]], progress: Callable[[int, int], object],
) -> None:  # fmt: skip
    """Every row that is not done yet, at most `window` under way; `progress` is told the rows read and the tokens drawn since."""
    under_way: deque[tuple[Ask, str, Any]] = deque()
    ready: dict[int, list[Response] | str] = {}

    def drain(most: int) -> None:
        while len(under_way) > most:
            tokens = 0
            for number, responses in responder.ended():
                ready[number] = responses
                tokens += sum(len(one.ids) for one in responses) if isinstance(responses, list) else 0
            while under_way and under_way[0][0].number in ready:
                ask, place, row = under_way.popleft()
                responses = ready.pop(ask.number)
                if isinstance(responses, str):
                    answers.reject(ask.number, place, responses, row)
                else:
                    answers.write(line_of(ask, responses))
                answers.done = ask.number + 1
            progress(answers.done, tokens)

    for number, place, ask, row in found:
        if number < answers.done:
            continue
        drain(window - 1)
        try:
            if isinstance(ask, Reject):
                raise ask
            responder.start(ask)
            under_way.append((ask, place, row))
        except ValueError as reason:
            answers.reject(number, place, str(reason), row)
    drain(0)


def identity(files: Sequence[str]) -> dict[str, str]:
    """Each data file and what it holds."""
    return {str(path): file_fingerprint(path) for path in paths(files)}


def _whole_lines(path: Path) -> tuple[int, int]:
    """(rows that are behind, lines) of a file of responses; an end that was cut off is taken away."""
    done = lines = end = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                done = json.loads(line)["row"] + 1
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}:{lines + 1} is no line of this command: choose another --out, or remove it") from None
            lines, end = lines + 1, end + len(line)
    os.truncate(path, end)
    return done, lines


def _lines(path: Path) -> list[str]:
    """Whole lines."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
