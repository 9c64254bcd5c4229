"""A measured number with its uncertainty, and how results become plain data.

    Interval(estimate, low, high, se, level, n, method)     every figure of this room is one, or holds some
    to_plain(result) -> JSON-ready dictionary

Left out: how the intervals are computed (`trueline.evals.interval`), how they are printed (`trueline.evals.table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, its standard error and its confidence interval."""

    estimate: float
    low: float
    high: float
    se: float
    level: float = 0.95
    n: int = 0
    """Independent units behind it: prompts, not responses."""
    method: str = ""
    """ "wilson", "bootstrap over prompts" or "normal"."""

    @property
    def excludes_zero(self) -> bool:
        """True when the interval lies wholly on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def to_plain(result: Any) -> Any:
    """Dataclasses, arrays and tuples as dictionaries, lists and numbers; NaN becomes None, as JSON has no word for it."""
    if is_dataclass(result) and not isinstance(result, type):
        return {field.name: to_plain(getattr(result, field.name)) for field in fields(result)}
    if isinstance(result, Mapping):
        return {str(key): to_plain(value) for key, value in result.items()}
    if isinstance(result, np.ndarray):
        return to_plain(result.tolist())
    if isinstance(result, (list, tuple)):
        return [to_plain(value) for value in result]
    if isinstance(result, np.generic):
        return to_plain(result.item())
    if isinstance(result, float) and not np.isfinite(result):
        return None
    return result
