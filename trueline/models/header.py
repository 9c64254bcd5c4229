"""The header of a safetensors file, read and checked without loading anything.

    8 bytes: length N of the header | N bytes of JSON: name -> dtype, shape, data_offsets | the tensors' bytes

A header is a stranger's claim: lengths, offsets and products of sizes are checked against the file before they are used.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_HEADER = 100 << 20
"""Bytes; the limit of the format's own library."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
         "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}  # fmt: skip
FLOATS = "F64", "F32", "F16", "BF16"


class Stored(NamedTuple):
    """One tensor of a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stored]:
    """Name -> tensor. ValueError with one sentence for a file that is damaged or lies about its sizes."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{path} is cut short or no safetensors file: its header claims {length:,} bytes and the file has "
                f"{size:,}; fetch or write it again."
            )
        if length > LARGEST_HEADER:
            raise ValueError(f"{path}: a header of {length:,} bytes; {LARGEST_HEADER:,} is the most that is read.")
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_once)
        entries.pop("__metadata__", None)
        found = {name: _tensor(path, name, entry, size - 8 - length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = str(error) if type(error) is ValueError else "its header is no table of tensors"
        raise ValueError(f"{path} is damaged or no safetensors file ({why}): fetch or write it again.") from error
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["data_offsets"][0] != end:
            raise ValueError(
                f"{path} is damaged: {name} overlaps another tensor or leaves a gap; fetch or write it again."
            )
        end = entry["data_offsets"][1]
    if end != size - 8 - length:
        raise ValueError(
            f"{path} is damaged: {size - 8 - length:,} bytes of data for tensors of {end:,}; fetch or write it again."
        )
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _tensor(path: Path, name: str, entry: dict[str, Any], room: int) -> Stored:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    for number in (*shape, begin, end):
        if type(number) is not int or number < 0:
            raise ValueError(f"{name} has the size or offset {number!r}")
    if entry["dtype"] not in BYTES:
        raise ValueError(f"{name} is of the unknown type {entry['dtype']!r}")
    wanted = math.prod(shape) * BYTES[entry["dtype"]]  # Python's numbers do not overflow
    if end - begin != wanted or end > room:
        raise ValueError(
            f"{name} of shape {shape} takes {wanted:,} bytes and is said to lie at {begin:,} to {end:,} of {room:,}"
        )
    return Stored(path, name, entry["dtype"], tuple(shape))
