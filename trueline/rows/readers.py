"""Files -> objects, one at a time, each with the place it came from. No meaning yet: that is `formats`.

    for place, row in read_objects("pairs.jsonl.gz"): ...      # ("pairs.jsonl.gz:17", {...} or Unreadable("..."))

JSONL, JSON, CSV, TSV, Parquet, Arrow and plain text; .gz and .zst; folders; hub ids. A line that cannot be read is
handed on with its reason. Lines end with \\n only: U+2028 and its kin are text. Left out: spreadsheets, databases.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, cast

KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".txt": "text", ".md": "text",
}  # fmt: skip
TEXT_PIECE = 1 << 20
"""Characters after which a plain-text file is cut at the next blank line, so that it need not fit in memory."""
LONGEST = 1 << 28
"""Bytes or characters of one line, one cell or one element of a list: beyond it a file is damaged, or made to fill the memory."""


class Unreadable(str):
    """Why there is no object at this place."""

    raw: str = ""


Object = tuple[str, dict[str, Any] | Unreadable]


def find_files(path: str | Path) -> list[Path]:
    """The data files that a path means: itself, or all below a folder, by name. Empty: no such path."""
    path = Path(path)
    if path.is_file():
        kind_of(path)
        return [path]
    if not path.exists():
        return []
    files = sorted(file for file in path.rglob("*") if file.is_file() and plain_suffix(file) in KINDS)
    if not files:
        raise ValueError(f"{path} holds no data file; readable are {', '.join(KINDS)}, also as .gz or .zst")
    return files


def plain_suffix(path: Path) -> str:
    """The suffix under a compression suffix: ".jsonl" for x.jsonl.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in (".gz", ".zst") else path.suffix.lower()


def kind_of(path: Path) -> str:
    """Which reader a file needs."""
    suffix = plain_suffix(path)
    if suffix not in KINDS:
        raise ValueError(f"{path}: cannot read {suffix or 'a file without suffix'}; readable are {', '.join(KINDS)}")
    return KINDS[suffix]


def read_objects(path: str | Path) -> Iterator[Object]:
    """All objects of one file, streaming."""
    path = Path(path)
    readers = {"jsonl": _json_lines, "json": _json, "csv": _csv, "text": _text, "parquet": _arrow, "arrow": _arrow}
    try:
        yield from readers[kind_of(path)](path)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.filename is not None:  # it cannot be opened, which is no damage
            raise
        raise ValueError(f"{path} is damaged: {error}") from error


def read_hub(name: str) -> Iterator[Object]:
    """Rows of a data set of the Hugging Face hub, streaming: "owner/name" (its train split) or "owner/name:split"."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{name} is no file or folder here, and reading it from the Hugging Face hub needs: pip install datasets"
        ) from None
    repository, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(repository, split=split or "train", streaming=True)
    except Exception as error:  # whatever the network and the hub have to say
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} is no file or folder here, and the Hugging Face hub did not give a data set of that name ({said}): "
            "check the path, or the name and the network"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}:{number}", dict(row)


def is_hub_id(path: str) -> bool:
    """owner/name or owner/name:split, and not the name of a data file."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", path)) and plain_suffix(Path(path)) not in KINDS


def open_bytes(path: Path) -> BinaryIO:
    """The decompressed bytes of a file."""
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            stream = arrow("reading .zst").input_stream(str(path), compression="zstd")
            return cast(BinaryIO, io.BufferedReader(stream))
    return open(path, "rb")


def arrow(purpose: str, module: str = "pyarrow") -> Any:
    """pyarrow, which only some files need."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{purpose} needs pyarrow: pip install 'trueline[data]'") from None


def unreadable(reason: str, raw: str) -> Unreadable:
    """The reason, with the beginning of what stood there."""
    found = Unreadable(reason)
    found.raw = raw[:2000]
    return found


def parse_json(text: str) -> Any:
    """json.loads that takes no NaN, since nobody else reads it."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_lines(path: Path) -> Iterator[Object]:
    with open_bytes(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                yield place, unreadable("not UTF-8", line.decode("utf-8", errors="replace"))
                continue
            if text:
                yield place, _object(text)


def _lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """The lines of a file, each of a bounded length."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise _too_long(f"{path}:{number}", "a line")
        yield line


def _too_long(place: str, what: str) -> ValueError:
    return ValueError(f"{place}: {what} of more than {LONGEST / 2**20:,.0f} MB; one row belongs on one line: split the file")


def _object(text: str) -> dict[str, Any] | Unreadable:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        return unreadable("not JSON", text)
    return value if isinstance(value, dict) else unreadable("not a JSON object", text)


def _json(path: Path) -> Iterator[Object]:
    """A list of objects, or JSONL under the wrong name, or one object that holds the list."""
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        try:
            start, line = text.read(1), 1
            while start.isspace():
                line += start == "\n"
                start = text.read(1)
            if start == "[":
                yield from _json_list(path, text, line)
                return
            start += next(_lines(text, path), "")
            rest = text.read(1) if isinstance(_object(start), dict) else ""
            if rest:  # an object on the first line and more to come
                yield from _json_lines(path)
                return
            if not start:
                return
            whole = start + text.read(4 * LONGEST)
            if len(whole) >= 4 * LONGEST:
                raise _too_long(str(path), "one JSON value")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
    try:
        value = parse_json(whole)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is neither a JSON object nor a list of them")
    lists = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    known = {"messages", "conversations", "conversation", "prompt"}
    rows = lists[0] if len(lists) == 1 and not known & value.keys() else [value]
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", row


def _json_list(path: Path, file: io.TextIOWrapper, line: int) -> Iterator[Object]:
    """The elements of one top-level list, whose bracket was read, without holding the whole list. Places are lines."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    buffer, position = "", 0
    ended = False
    while True:
        skipped = re.compile(r"[\s,]*").match(buffer, position)
        assert skipped is not None
        line += buffer.count("\n", position, skipped.end())
        position = skipped.end()
        if buffer[position : position + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(buffer, position)
            # a number at the very end of the buffer may go on; objects and strings say where they end
            complete = ended or end < len(buffer)
        except (ValueError, RecursionError):
            complete = False
        if complete:
            text = buffer[position:end]
            yield f"{path}:{line}", value if isinstance(value, dict) else unreadable("not a JSON object", text)
            line += text.count("\n")
            position = end
            continue
        if ended:
            raise ValueError(f"{path}:{line}: not JSON from here on (a list of objects was expected)")
        if len(buffer) - position >= LONGEST:
            raise _too_long(f"{path}:{line}", "an element")
        more = file.read(max(1 << 16, len(buffer) - position))
        ended = not more
        buffer, position = buffer[position:] + more, 0


def _csv(path: Path) -> Iterator[Object]:
    csv.field_size_limit(LONGEST)  # the default refuses long texts
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.reader(_lines(text, path), delimiter="\t" if plain_suffix(path) == ".tsv" else ",", strict=True)
        header: list[str] | None = None
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not UTF-8 text") from None
            except csv.Error as error:
                raise ValueError(f"{place}: not CSV: {error}") from None
            if cells is None:
                return
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise ValueError(f"{place}: two columns have the same name; rename one")
            elif cells and len(cells) != len(header):
                yield place, unreadable("another number of fields than columns", ",".join(cells))
            elif cells:
                yield place, dict(zip(header, cells, strict=True))


def _text(path: Path) -> Iterator[Object]:
    """Plain text is one document per file; a large file is cut at blank lines into pieces of about a megabyte."""
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        piece: list[str] = []
        size, start = 0, 1
        try:
            for number, line in enumerate(_lines(text, path), 1):
                piece.append(line)
                size += len(line)
                if size >= TEXT_PIECE and (not line.strip() or size >= 2 * TEXT_PIECE):
                    yield f"{path}:{start}", {"text": "".join(piece)}
                    piece, size, start = [], 0, number + 1
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
        if size:
            yield f"{path}:{start}", {"text": "".join(piece)}


def _arrow(path: Path) -> Iterator[Object]:
    kind = kind_of(path)
    module = arrow(f"reading {path.name}", "pyarrow.parquet" if kind == "parquet" else "pyarrow.ipc")
    lib = arrow("reading Parquet")
    with open_bytes(path) as file:
        source: BinaryIO = file
        if path.suffix.lower() in (".gz", ".zst"):
            source = io.BytesIO(file.read(4 * LONGEST))
            if source.getbuffer().nbytes == 4 * LONGEST:
                raise ValueError(f"{path} is too large to be read compressed: unpack it")
        number = 0
        try:
            batches = module.ParquetFile(source).iter_batches(1024) if kind == "parquet" else _ipc(module, lib, source)
            for batch in batches:
                batch.validate(full=True)  # the library trusts offsets: damaged ones would end the process without a word
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
        # text that is no UTF-8 and dates of no calendar are ValueErrors; broken offsets are OSErrors; a length that the file
        # does not have is a MemoryError, since the library reserves it first
        except (lib.ArrowException, ValueError, OSError, OverflowError, MemoryError) as error:
            said = str(error) or "it asks for more memory than there is"
            raise ValueError(f"{path} is not readable as {kind} after row {number}: {said}") from None


def _ipc(module: Any, lib: Any, source: BinaryIO) -> Any:
    """Arrow has a stream form (what `datasets` caches) and a file form."""
    try:
        return module.open_stream(source)
    except (lib.ArrowInvalid, OSError):
        source.seek(0)
        reader = module.open_file(source)
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
