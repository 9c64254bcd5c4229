"""Where metrics go besides the run's own file: TensorBoard, written here so that no package is needed, and Weights & Biases.

    Run(out, config, sinks=[tensorboard_sink(out), wandb_sink("project")])

Left out: other trackers (any function of step and numbers is a sink).
"""

from __future__ import annotations

import importlib
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueline.run import Sink


def tensorboard_sink(folder: str | Path) -> Sink:
    """Event files for TensorBoard in `folder`/tensorboard: protobuf Events framed by length and crc32c, written here
    so that no package is needed. After a resume, TensorBoard drops what it had read from that step on."""
    path: Path | None = None
    table = [_crc_entry(byte) for byte in range(256)]

    def framed(event: bytes) -> bytes:
        length = struct.pack("<Q", len(event))
        return length + _masked_crc(length, table) + event + _masked_crc(event, table)

    def event(step: int, content: bytes) -> bytes:
        return framed(b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + content)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal path
        data = b""
        if path is None:
            path = Path(folder) / "tensorboard" / f"events.out.tfevents.{time.time():.0f}.trueline.{os.getpid()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = event(0, _field(3, b"brain.Event:2")) + event(step, _field(7, b"\x08\x01"))  # session started here
        values = (_field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", x)) for tag, x in metrics.items())
        with open(path, "ab") as file:
            file.write(data + event(step, _field(5, b"".join(values))))

    return write


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli, reflected
    return byte


def _masked_crc(data: bytes, table: list[int]) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def wandb_sink(project: str, *, name: str | None = None, config: Mapping[str, Any] | None = None) -> Sink:
    """Weights & Biases, through its own package."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise ValueError("logging to Weights & Biases needs its package: pip install wandb") from None
    run = wandb.init(project=project, name=name, config=dict(config or {}), resume="allow")

    def write(step: int, metrics: Mapping[str, float]) -> None:
        run.log(dict(metrics), step=step)

    return write
