"""Records -> files, in columns that TRL reads, or in our own where those cannot hold the record.

    write_rows(read_rows("alpaca.json"), "chat.parquet")
    write_rows(comparisons, "ranked.jsonl", format="trueline")

TRL's preference columns hold one pair: a ranking of K responses becomes all its strict pairs, and what has no strict
order is counted as left out. "trueline" keeps rankings and counts whole. Both are read back by `read_rows`.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast
from uuid import uuid4

from trueline.records import TEXT, Comparison, Conversation, Document, Message, Messages, Ranking, Rating, Record
from trueline.rows.readers import arrow, plain_suffix

BATCH = 1024


@dataclass
class Written:
    """What became of the records."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def write_rows(records: Iterable[Record], path: str | Path, format: Literal["trl", "trueline"] = "trl") -> Written:
    """Write all records to one file, JSONL (also .gz, .zst) or Parquet by suffix. It appears when it is complete."""
    path = Path(path)
    if format not in ("trl", "trueline"):
        raise ValueError(f"no format {format!r}; there are trl and trueline")
    written = Written()
    rows = (row for record in records for row in columns_of(record, format, written.left_out))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.{path.name}")  # the suffix stays last
    try:
        match plain_suffix(path):
            case ".jsonl" | ".ndjson":
                with _open_for_writing(temporary) as file:
                    for row in rows:
                        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n")
                        written.rows += 1
            case ".parquet":
                written.rows = _write_parquet(rows, temporary, path)
            case suffix:
                raise ValueError(f"{path}: cannot write {suffix or 'a file without suffix'}; use .jsonl or .parquet")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def columns_of(record: Record, format: str, left_out: Counter[str]) -> list[dict[str, Any]]:
    """The row, or rows, that hold a record."""
    match record:
        case Document():
            row: dict[str, Any] = {"text": record.text, "id": record.id, "meta": dict(record.meta)}
            rows = [{name: value for name, value in row.items() if value}]
        case Conversation():
            rows = [_conversation(record)]
        case Comparison() if format == "trl":
            rows = _pairs(record)
            if not rows:
                left_out["a comparison without a strict order"] += 1
        case Comparison():
            judgement = record.judgement
            order = (
                {"ranks": list(judgement.ranks)}
                if isinstance(judgement, Ranking)
                else {"counts": list(judgement.counts)}
            )
            rows = [{"prompt": _side(record.prompt), "responses": [_side(r) for r in record.responses], **order}]
        case Rating():
            given = {"label": record.label, "score": record.score, "counts": record.counts and list(record.counts)}
            said = {name: value for name, value in given.items() if value is not None}
            rows = [{"prompt": _side(record.prompt), "completion": _side(record.response), **said}]
    about = {"source": record.source}
    if isinstance(record, Comparison | Rating):
        about["annotator"] = record.annotator
    if isinstance(record, Comparison):
        about["time"] = record.time
    return [{**row, **{name: value for name, value in about.items() if value}} for row in rows]


def _conversation(record: Conversation) -> dict[str, Any]:
    """Prompt only, prompt and completion, or messages with a weight where one may not be trained on."""
    messages = record.messages
    tools: dict[str, Any] = {"tools": [dict(tool) for tool in record.tools]} if record.tools else {}
    tools |= {} if record.answer is None else {"answer": record.answer}
    trained = [message.train for message in messages]
    cut = trained.index(True) if any(trained) else len(messages)
    if cut == len(messages):
        return {"prompt": _side(messages), **tools}
    if cut > 0 and all(trained[cut:]) and messages[cut].role in ("assistant", TEXT):
        return {"prompt": _side(messages[:cut]), "completion": _side(messages[cut:]), **tools}
    if len(messages) == 1 and messages[0].role == TEXT:
        return {"text": messages[0].content}
    return {"messages": [_message(message, weighted=not all(trained)) for message in messages], **tools}


def _pairs(record: Comparison) -> list[dict[str, Any]]:
    judgement = record.judgement
    scores = [-rank for rank in judgement.ranks] if isinstance(judgement, Ranking) else list(judgement.counts)
    sides = [_side(response) for response in record.responses]
    places = range(len(sides))
    better = [(i, j) for i in places for j in places if scores[i] > scores[j]]
    return [{"prompt": _side(record.prompt), "chosen": sides[i], "rejected": sides[j]} for i, j in better]


def _side(messages: Messages) -> str | list[dict[str, Any]]:
    """Plain text as a string, messages as a list."""
    if all(message.role == TEXT for message in messages):
        return "".join(message.content for message in messages)
    return [_message(message) for message in messages]


def _message(message: Message, weighted: bool = False) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        row["name"] = message.name
    if message.tool_calls:
        row["tool_calls"] = [dict(call) for call in message.tool_calls]
    if weighted and not message.train:
        row["weight"] = 0
    return row


@contextmanager
def _open_for_writing(path: Path) -> Iterator[BinaryIO]:
    match path.suffix.lower():
        case ".gz":
            with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
                yield cast(BinaryIO, file)  # no name and no time inside: equal rows, equal bytes
        case ".zst":
            with arrow("writing .zst").output_stream(str(path), compression="zstd") as stream:
                yield stream
        case _:
            with open(path, "wb") as file:
                yield file


def _write_parquet(rows: Iterator[dict[str, Any]], temporary: Path, path: Path) -> int:
    """Columns and types are those of the first rows. Tools, tool arguments and answers, which differ by row, are JSON text."""
    lib, parquet = arrow("writing Parquet"), arrow("writing Parquet", "pyarrow.parquet")
    plain = (_for_arrow(row) for row in rows)
    groups = iter(lambda: list(islice(plain, BATCH)), [])
    first = next(groups, [])
    names = list(dict.fromkeys(name for row in first for name in row))
    schema = lib.schema([(name, _type(lib, name, next(row[name] for row in first if name in row))) for name in names])
    count = 0
    with parquet.ParquetWriter(temporary, schema) as writer:
        for group in chain([first] if first else [], groups):
            late = {name for row in group for name in row} - set(names)
            if late:
                raise ValueError(f"{path}: column {min(late)!r} first appears after row {count}; write .jsonl instead")
            try:
                writer.write_table(lib.Table.from_pylist(group, schema=schema))
            except (lib.ArrowInvalid, lib.ArrowTypeError):
                raise ValueError(f"{path}: plain and conversational rows do not fit one column; write .jsonl") from None
            count += len(group)
    return count


def _for_arrow(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("tools", "meta") or (name == "answer" and not isinstance(value, str)):
            found[name] = json.dumps(value, ensure_ascii=False)
        elif name == "responses":
            found[name] = [_plain_calls(response) for response in value]
        else:
            found[name] = _plain_calls(value)
    return found


def _plain_calls(value: Any) -> Any:
    """Messages with the arguments of their tool calls as JSON text."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return value
    messages = []
    for message in value:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        messages.append({**message, "tool_calls": calls} if calls else message)
    return messages


def _type(lib: Any, name: str, example: Any) -> Any:
    function = lib.struct([("name", lib.string()), ("arguments", lib.string())])
    call = lib.struct([("id", lib.string()), ("type", lib.string()), ("function", function)])
    fields = [("role", lib.string()), ("content", lib.string()), ("name", lib.string()), ("weight", lib.int8())]
    messages = lib.list_(lib.struct([*fields, ("tool_calls", lib.list_(call))]))
    match name:
        case "ranks":
            return lib.list_(lib.int64())
        case "counts":
            return lib.list_(lib.float64())
        case "label":
            return lib.bool_()
        case "score":
            return lib.float64()
        case "responses":
            return lib.list_(lib.string() if isinstance(example[0], str) else messages)
    return messages if isinstance(example, list) else lib.string()
