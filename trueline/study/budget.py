"""A budget to updates: the same for every arm, decided before any policy is trained, and kept.

    updates   as they are: equal steps of equally many prompts; what they cost differs, and the report says how
    tokens    the positions that an arm trains on, its reward model's included, divided by those of one update
    minutes   less the reward model's, and what passes before the first update, divided by the seconds of one update (a probe)

Left out: the cost of measuring, which is the study's and not the method's; tuning trials, which are as many for every arm.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueline.objectives.rounds import OnPolicy
from trueline.study.arms import Arm
from trueline.study.settings import Budget
from trueline.study.training import Bench, Drive, Material, probe


@dataclass(frozen=True, kw_only=True)
class Share:
    """What an arm's budget comes to."""

    updates: int
    how: str
    """One sentence."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def share_of(
    bench: Bench, arm: Arm, material: Material, budget: Budget, drive: Drive | None, shared: dict[str, float]
) -> Share:
    """The updates of each of the arm's policies. `shared`: tokens and seconds of the reward model that it uses, both 0 without one."""
    objective = arm.main.objective
    assert objective is not None, "a selector trains nothing"
    if budget.updates:
        return Share(updates=budget.updates, how="as given")
    rate = float(np.median(arm.learning_rates))
    if budget.tokens:
        stored = not isinstance(objective, OnPolicy)
        each = tokens_per_update(material) if stored else probe(bench, objective, material, rate, drive)["tokens_per_update"]
        left = budget.tokens - shared["tokens"]
        return checked(arm, budget, left / each, f"{left:,.0f} of {budget.tokens:,} tokens at {each:,.0f} per update")
    found = probe(bench, objective, material, rate, drive)
    left = 60 * budget.minutes - shared["seconds"] - found["seconds_before"]
    how = f"{left:,.0f} of {60 * budget.minutes:,.0f} s at {found['seconds_per_update']:.2f} s per update"
    return checked(arm, budget, left / found["seconds_per_update"], how)


def checked(arm: Arm, budget: Budget, updates: float, how: str) -> Share:
    """Refuse a budget that the reward model or the preparations use up."""
    if updates < 1:
        raise ValueError(f"{budget} are too few for {arm.name}: they leave {how}; give more")
    return Share(updates=int(updates), how=how)


def tokens_per_update(material: Material) -> float:
    """Mean positions of one step over stored rows."""
    lengths = [length for length in material.positions if length]
    if not lengths:
        raise ValueError("no row of the training part can be encoded: look at it with trueline data inspect")
    return float(np.mean(lengths)) * material.bench.settings.per_device_train_batch_size
