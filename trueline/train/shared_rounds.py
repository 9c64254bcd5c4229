"""A round that several processes draw: each answers and judges its share of the prompts, then every one of them has all rows.

    share(prompts, ranks)          a stretch of the prompts, so that the rows of all shares are in the order of the prompts
    together(drawn, ranks)         what all of them drew, the same everywhere

Chance depends on the seed and the prompt, so that two processes draw what one does (but for a prompt that is there twice in one round,
in both shares: it gets the same responses twice). What processes tell one another is JSON: float32 survives it exactly.
Left out: sharing the reference's work; every process scores all rows of the round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from trueline.protocols import Drawn
from trueline.records import Row
from trueline.train.ranks import Ranks

T = TypeVar("T")


def share(items: Sequence[T], ranks: Ranks) -> Sequence[T]:
    """This rank's stretch; a rank may have none."""
    first, last = (len(items) * (ranks.rank + k) // ranks.world for k in (0, 1))
    return items[first:last]


def together(drawn: Drawn, ranks: Ranks) -> Drawn:
    """All ranks' rows in the order of the prompts, sums of their metrics; samples of them all, the first one's remark and clock."""
    if ranks.world == 1:
        return drawn
    about = {
        "rows": [row_json(row) for row in drawn.rows], "metrics": dict(drawn.metrics), "samples": list(drawn.samples),
        "seconds": dict(drawn.seconds), "remark": drawn.remark,
    }  # fmt: skip
    parts = ranks.gather(about)
    metrics: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part["metrics"].items():
            before = metrics.get(name, (0.0, 0.0))
            metrics[name] = (before[0] + total, before[1] + count)
    return Drawn(
        rows=[row_of(row) for part in parts for row in part["rows"]],
        metrics=metrics,
        seconds=parts[0]["seconds"],
        samples=[sample for part in parts for sample in part["samples"]],
        remark=parts[0]["remark"],
    )


def row_json(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "key": row.key,
        "ids": [ids_L.tolist() for ids_L in row.ids],
        "scored": [scored_L.astype(int).tolist() for scored_L in row.scored],
        "numbers": {name: values.tolist() for name, values in row.numbers.items()},
        "tokens": {name: [values.tolist() for values in parts] for name, parts in row.tokens.items()},
    }


def row_of(about: dict[str, Any]) -> Row:
    """The reverse."""
    return Row(
        key=about["key"],
        ids=tuple(np.array(ids, np.int32) for ids in about["ids"]),
        scored=tuple(np.array(flags, bool) for flags in about["scored"]),
        numbers={name: np.array(values, np.float32) for name, values in about["numbers"].items()},
        tokens={name: tuple(np.array(values, np.float32) for values in parts) for name, parts in about["tokens"].items()},
    )
