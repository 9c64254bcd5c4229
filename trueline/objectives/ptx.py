"""Pretraining gradients beside a policy's own responses (PPO-ptx), so that what a corpus taught is not forgotten.

    L <- L - ptx_coef sum_t log p(x_t | x_<t) / tokens        over windows of a stored corpus, some of them in every optimizer step

Ouyang et al., 2203.02155, equation 2, the term with gamma (here ptx_coef; gamma is the discount). The paper mixes in 8 windows per
episode with 27.8. Windows are taken in the order of a permutation that the crew's memory keeps the place of: a resumed run goes on there.
They are microbatches of their own in a step, of weight 0 in every other term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from trueline.models.value import policy_of
from trueline.objectives.base import Batch, Budget, Losses, cross_entropy, microbatches, scored_tokens
from trueline.protocols import Crew
from trueline.records import Row

PLACE = "ptx/given"
"""Windows handed out so far, in the crew's memory."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A corpus that is mixed in."""

    ptx_data: str = ""
    """Texts to go on predicting, a file, folder or hub id; without any nothing is mixed in."""
    ptx_coef: float = 27.8
    """Weight of their loss."""
    ptx_windows: int = 8
    """Windows of at most max_length tokens per response."""

    def __post_init__(self) -> None:
        if self.ptx_coef < 0 or self.ptx_windows < 1:
            raise ValueError(f"ptx_coef is {self.ptx_coef} and ptx_windows {self.ptx_windows}: at least 0, and at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        """The corpus, where one is named."""
        return ("corpus",) if self.ptx_data else ()

    def with_windows(self, rows: Sequence[Row], crew: Crew) -> list[Row]:
        """The round's rows and, behind them, its windows."""
        if not self.ptx_data:
            return list(rows)
        if not crew.corpus:
            raise ValueError(f"{self.ptx_data} is to be mixed in: pass crew=Crew(corpus=rows), or let train read it")
        given = int(crew.memory.get(PLACE, 0.0))
        count = self.ptx_windows * sum(len(row.ids) for row in rows)
        crew.memory[PLACE] = float(given + count)
        marks = {"ptx": np.ones(1, np.float32)}
        return [*rows, *(replace(window, numbers=marks) for window in windows_from(crew.corpus, given, count))]


def windows_from(corpus: Sequence[Row], given: int, count: int) -> list[Row]:
    """The `count` windows behind the first `given` of an endless order: every pass over the corpus is another permutation."""
    size = len(corpus)
    passes = range(given // size, (given + count - 1) // size + 1)
    order = {one: np.random.default_rng([one, size]).permutation(size) for one in passes}
    return [corpus[int(order[place // size][place % size])] for place in range(given, given + count)]


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(responses, windows) of a round."""
    return [row for row in rows if "ptx" not in row.numbers], [row for row in rows if "ptx" in row.numbers]


def mixed(step: list[Batch], windows: Sequence[Row], budget: Budget) -> list[Batch]:
    """The step with microbatches of these windows."""

    def weights(part: Sequence[Row]) -> Mapping[str, float]:
        return dict.fromkeys(step[0].weights, 0.0) | {"ptx": scored_tokens(part)["loss"]}

    if not windows:
        return step
    return [*(replace(one, weights={**one.weights, "ptx": 0.0}) for one in step), *microbatches(windows, budget, weights)]


def ptx_losses(model: nn.Module, batch: Batch, coef: float) -> Losses:
    """Of a microbatch of windows."""
    losses = cross_entropy(policy_of(model), batch)
    total = losses.terms["loss"]
    return Losses({"ptx": coef * total}, {"ptx/loss": (total.detach(), batch.weights["ptx"])})
