"""Win rate: how often one system's response beats another's on the same prompt.

    scores of both --win_rate--> WinRate(wins, ties, losses, rate with interval, sign test)
    verdicts in both orders --after_swap--> verdicts without position bias --win_rate_of_verdicts--> WinRate

A tie counts half. The interval is a bootstrap over prompts when there are ties or several responses per prompt; otherwise,
and when all outcomes are equal (a bootstrap of equal numbers has no width), it is Wilson's.
Left out: ratings of many systems at once (the arena's Bradley-Terry).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.evals.interval import Groups, Values, bootstrap_mean, paired_difference, sign_test, wilson
from trueline.evals.result import Interval, to_plain

VERDICTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """Outcome of A against B."""

    wins: int
    ties: int
    losses: int
    rate: Interval
    """(wins + ties/2) / N of A."""
    p_value: float
    """Exact two-sided sign test on the outcomes that are not ties."""
    difference: Interval | None = None
    """Mean score of A minus mean score of B, where scores were given."""

    @property
    def n(self) -> int:
        """Comparisons."""
        return self.wins + self.ties + self.losses

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def win_rate(
    scores_a: Values,
    scores_b: Values,
    prompts: Groups = None,
    *,
    margin: float = 0.0,
    level: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """A's win rate from scores on the same prompts. Scores at most `margin` apart are a tie.

    `prompts` labels each pair of values with its prompt; without it every pair is a prompt of its own.
    """
    difference = paired_difference(scores_a, scores_b, prompts, level=level, seed=seed)
    return _summary(outcomes(scores_a, scores_b, margin), prompts, difference, level, seed)


def outcomes(scores_a: Values, scores_b: Values, margin: float = 0.0) -> np.ndarray:
    """1 where a is ahead by more than `margin`, 0 where it is behind, 0.5 for a tie; arrays of any one shape."""
    if margin < 0:
        raise ValueError(f"margin must be at least 0, got {margin}: it is the largest score gap that still is a tie")
    gap = np.asarray(scores_a, dtype=np.float64) - np.asarray(scores_b, dtype=np.float64)
    return np.where(gap > margin, 1.0, np.where(gap < -margin, 0.0, 0.5))


def win_rate_of_verdicts(
    verdicts: Sequence[str], prompts: Groups = None, *, level: float = 0.95, seed: int = 0
) -> WinRate:
    """A's win rate from verdicts "a", "b" or "tie"."""
    outcomes = []
    for number, verdict in enumerate(verdicts):
        if verdict not in VERDICTS:
            raise ValueError(
                f'verdict {number} is {verdict!r}: use "a", "b" or "tie", and drop rows where the judge failed'
            )
        outcomes.append(VERDICTS[verdict])
    return _summary(np.array(outcomes), prompts, None, level, seed)


def after_swap(first: Sequence[str], second: Sequence[str]) -> tuple[list[str], float]:
    """Verdicts of a judge that saw each pair in both orders, and its consistency.

    `first[i]` is the verdict with A shown first, `second[i]` the one with B shown first, both already in terms of the systems
    A and B (not of positions). A win needs both to agree; anything else is a tie (MT-bench's conservative rule,
    arXiv 2306.05685). Consistency is the share of pairs with the same verdict twice.
    """
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} verdicts in one order, {len(second)} in the other: judge every pair in both orders"
        )
    merged = [one if one == two else "tie" for one, two in zip(first, second, strict=True)]
    same = sum(one == two for one, two in zip(first, second, strict=True))
    return merged, same / len(first) if first else float("nan")


def _summary(outcome_N: np.ndarray, prompts: Groups, difference: Interval | None, level: float, seed: int) -> WinRate:
    wins, ties, losses = (int((outcome_N == value).sum()) for value in (1.0, 0.5, 0.0))
    rate = bootstrap_mean(outcome_N, prompts, level=level, seed=seed)
    independent = ties == 0 and rate.n == len(outcome_N)
    if independent or rate.low == rate.high:
        rate = wilson(rate.estimate * rate.n, rate.n, level=level)
    return WinRate(
        wins=wins, ties=ties, losses=losses, rate=rate, p_value=sign_test(wins, losses), difference=difference
    )
