"""What the verbs share: how models and rows are named on the command line, and what is said when rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from trueline.rows import Rows

BASE = "base"
"""Names the model that ships with Trueline; a folder of that name is written ./base."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that torch.save writes."""
MODEL = tyro.conf.arg(metavar="DIR_OR_HUB_ID")
DATA = tyro.conf.arg(metavar="FILE_OR_HUB_ID ...")
MORE_DATA = tyro.conf.arg(metavar="FILE_OR_HUB_ID ...", help_behavior_hint="(optional)")
JUDGES = "DIR_OR_HUB_ID|URL|FILE.py:FUNCTION|exact_answer|regex:PATTERN|json_schema:FILE|unit_tests|votes:FILE"
"""How people name a judge."""
JUDGE = tyro.conf.arg(metavar=JUDGES, help_behavior_hint="(this or --reward_model)")
COLUMNS = tyro.conf.arg(metavar="OURS=THEIRS ...", help_behavior_hint="(optional)")
FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")


def model_folder(name: str) -> str:
    """The folder or hub id of a model named on the command line."""
    if name == BASE:
        from trueline.quickstart.base_model import base_model_dir

        return str(base_model_dir())
    if Path(name).is_file():
        if Path(name).suffix in PICKLED:
            raise ValueError(f"{name} holds pickled weights, which can run code: save them again as safetensors, in a folder")
        raise ValueError(f"{name} is a file: name the folder that holds the model, {Path(name).parent}")
    return name


def column_names(columns: Sequence[str]) -> dict[str, str]:
    """["prompt=question"] -> {"prompt": "question"}."""
    pairs = [column.split("=") for column in columns]
    for column, pair in zip(columns, pairs, strict=True):
        if len(pair) != 2:
            raise ValueError(f"--columns {column!r}: write ours=theirs, such as prompt=question")
    return {ours: theirs for ours, theirs in pairs}


def say_read(rows: Rows, console: Console) -> None:
    """What the files are, and what of them cannot be used."""
    many = f" and {len(rows.paths) - 2} more" if len(rows.paths) > 2 else ""
    rejected = sum(rows.rejected.values())
    console.print(f"rows: {escape(', '.join(rows.paths[:2]))}{many}: {rows.format}, {rows.read - rejected:,} rows")
    if rejected:
        kept = f"; all in {escape(str(rows.rejects))}" if rows.rejects else ""
        reasons = ", ".join(f"{escape(reason)} ({number:,})" for reason, number in rows.rejected.most_common(3))
        console.print(f"      [yellow]{rejected:,} rows cannot be used[/yellow]: {reasons}{kept}")
