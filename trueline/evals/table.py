"""Tables of results as Markdown, for model cards, docs and the terminal.

    markdown([{"model": "sft", "score": Interval(...)}, ...]) -> "| model | score | ..."

Left out: colours and HTML (the report of the quickstart).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueline.evals.result import Interval


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), *, digits: int = 3) -> str:
    """One line per row; columns in the order of first appearance unless named. Numbers align right, a missing cell is empty."""
    names = list(columns) or list(dict.fromkeys(name for row in rows for name in row))
    cells = [[cell(row.get(name), digits=digits) for name in names] for row in rows]
    numeric = [any(isinstance(row.get(name), (int, float, Interval)) for row in rows) for name in names]
    widths = [max([3, len(name), *(len(line[i]) for line in cells)]) for i, name in enumerate(names)]

    def line(parts: Sequence[str]) -> str:
        padded = [
            part.rjust(w) if right else part.ljust(w) for part, w, right in zip(parts, widths, numeric, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join("-" * (w + 1) + ":" if right else "-" * (w + 2) for w, right in zip(widths, numeric, strict=True))
        + "|"
    )
    return "\n".join([line(names), rule, *(line(parts) for parts in cells)])


def cell(value: Any, *, digits: int = 3) -> str:
    """One value as text: intervals as "0.61 [0.55, 0.67]", numbers rounded, None as nothing, bars escaped."""
    if value is None:
        return ""
    if isinstance(value, Interval):
        return f"{value.estimate:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
