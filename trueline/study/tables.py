"""The results as CSV, for people who draw their own plots.

    frontier.csv     a row per policy and step: arm, setting, step, KL, reward, gain and their intervals, length
    matrix.csv       win rates of every arm against every other
    differences.csv  the difference of every two arms: what the verdict goes by
    arms.csv         a row per arm: its main point, learning rate, cost

Intervals (NAME_low, NAME_high) of KL, reward and tokens are 95 % for one policy by itself; of gains, win rates and differences they are
wider, so that all of one kind hold together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueline.store import write_atomic

INTERVALS = ("kl", "reward", "gain", "gain_sd", "learned_gain_sd", "tokens")


def write_tables(results: Mapping[str, Any], folder: Path) -> None:
    """The four files."""
    points = [flat(point, ("arm", "label", "step", "main", "finished", "no_verdict")) for point in results["points"]]
    write_atomic(folder / "frontier.csv", csv_text(points))
    names = [arm["name"] for arm in results["arms"]]
    matrix = [
        {"arm": a, "against": b, "win_rate": cell["estimate"], "low": cell["low"], "high": cell["high"]}
        for a, row in zip(names, results["matrix"], strict=True)
        for b, cell in zip(names, row, strict=True)
        if cell is not None
    ]
    write_atomic(folder / "matrix.csv", csv_text(matrix))
    gaps = [{"arm": one["a"], "against": one["b"]} | spread(one["difference"], "difference") for one in results["differences"]]
    write_atomic(folder / "differences.csv", csv_text(gaps))
    arms = []
    for arm in results["arms"]:
        cost = dict(arm["cost"])
        answer = cost.pop("per_answer")
        about = {"arm": arm["name"], "verb": arm["verb"], "learning_rate": arm["learning_rate"], "updates": arm["updates"]}
        arms.append(
            about | {f"cost_{name}": value for name, value in cost.items()}
            | {f"per_answer_{name}": value for name, value in answer.items()}
            | flat(arm["main"], ("label", "step", "finished", "no_verdict"))
        )  # fmt: skip
    write_atomic(folder / "arms.csv", csv_text(arms))


def flat(point: Mapping[str, Any], plain: Sequence[str]) -> dict[str, Any]:
    """Intervals as three columns each."""
    row = {name: point[name] for name in plain}
    for name in INTERVALS:
        row |= spread(point[name], name)
    return row


def spread(interval: Mapping[str, float] | None, name: str) -> dict[str, Any]:
    """NAME, NAME_low, NAME_high."""
    columns = {"estimate": name, "low": f"{name}_low", "high": f"{name}_high"}
    return {column: interval[part] if interval is not None else "" for part, column in columns.items()}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with one header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
