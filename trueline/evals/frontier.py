"""The reward-KL frontier: what a method gains for how far it moved.

    Point(name, kl, reward) ... --frontier--> the undominated ones, by KL
    reward_at(points, kl)       linear between points: methods compared at equal KL

Left out: drawing; the KL and reward of best-of-n (`trueline.align.best_of_n`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueline.evals.result import Interval, to_plain


@dataclass(frozen=True, kw_only=True)
class Point:
    """One policy: KL from the reference in nats per sequence, and mean reward."""

    name: str
    kl: Interval
    reward: Interval
    family: str = ""
    """What it is a setting of: "dpo", "best-of-n"."""
    setting: Mapping[str, float] = field(default_factory=dict)
    """beta, n, steps, ..."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both KL (lower) and reward (higher), by increasing KL."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.kl.estimate, -p.reward.estimate)):
        if not best or point.reward.estimate > best[-1].reward.estimate:
            best.append(point)
    return best


def reward_at(points: Sequence[Point], kl: float) -> float:
    """Reward of the frontier at this KL, linear between its points; NaN outside of them (nothing is extrapolated)."""
    line = frontier(points)
    if not line or not line[0].kl.estimate <= kl <= line[-1].kl.estimate:
        return float("nan")
    return float(np.interp(kl, [p.kl.estimate for p in line], [p.reward.estimate for p in line]))
