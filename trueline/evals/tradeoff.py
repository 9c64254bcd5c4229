"""Two goals and one choice: what is gained of one when the other weighs more.

    scores of two reward models on the same responses --tradeoff--> a point per weight --table--> Markdown
    score gaps of models on sets of pairs --cross_accuracy--> who is right about whose pairs

At weight w the response with the highest w a + (1 - w) b is chosen, best of n: the curve that a policy trained on the weighted sum
is compared with. A preference model of one kind of data can be worse than a coin on the other (Bai et al., 2204.05862).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.evals.interval import normal_mean, wilson
from trueline.evals.result import Interval, to_plain
from trueline.evals.table import markdown

WEIGHTS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, kw_only=True)
class Compromise:
    """What the best of n give at one weight, each goal less its mean over all responses."""

    weight: float
    """Of the first goal; the second has 1 - weight."""
    first: Interval
    second: Interval

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def tradeoff(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], weights: Sequence[float] = WEIGHTS
) -> list[Compromise]:
    """A point per weight; `first` and `second` are both models' scores of each prompt's responses. Ties go to the first response."""
    if not first or [len(a) for a in first] != [len(b) for b in second]:
        raise ValueError("a trade-off needs both models' scores of the same responses, prompt by prompt")
    a, b = ([np.asarray(scores_K, dtype=np.float64) for scores_K in goal] for goal in (first, second))
    mean_a, mean_b = (float(np.concatenate(goal).mean()) for goal in (a, b))
    points = []
    for weight in weights:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight} should lie between 0 and 1: it is the share of the first goal")
        best = [int(np.argmax(weight * (a_K - mean_a) + (1 - weight) * (b_K - mean_b))) for a_K, b_K in zip(a, b, strict=True)]
        chosen = [
            normal_mean([goal_K[k] - mean for goal_K, k in zip(goal, best, strict=True)]) for goal, mean in ((a, mean_a), (b, mean_b))
        ]
        points.append(Compromise(weight=weight, first=chosen[0], second=chosen[1]))
    return points


def table(points: Sequence[Compromise], names: tuple[str, str] = ("first", "second")) -> str:
    """The curve as Markdown."""
    return markdown([{f"weight of {names[0]}": p.weight, names[0]: p.first, names[1]: p.second} for p in points])


def cross_accuracy(gaps: Mapping[tuple[str, str], Sequence[float]]) -> list[dict[str, Any]]:
    """A line per model: its accuracy on every set of pairs. `gaps[model, pairs]` are preferred minus other score; 0 is half right."""
    lines: dict[str, dict[str, Any]] = {}
    for (model, pairs), values in gaps.items():
        gap_N = np.asarray(values, dtype=np.float64)
        right = float((gap_N > 0).sum() + 0.5 * (gap_N == 0).sum())
        lines.setdefault(model, {"model": model})[pairs] = wilson(right, len(gap_N))
    return list(lines.values())
