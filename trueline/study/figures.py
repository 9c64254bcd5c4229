"""Figures of a study as arrays, and their intervals: of a policy by itself, and of policies against one another.

    Taken(...)                                  one policy at one step, over all seeds: figures [S, P, A]
    pool = Pool(mains)                          the policies that are compared
    pool.alone(one, "reward", reward)           95 % each: where one policy stands
    pool.against(a, b, "won", won)              hold together: what every comparison and the verdict go by

Figures are means over answers first, then over seeds and report prompts (evals.interval.crossed_mean). What seeds are worth is estimated
from all methods together (evals.pooled). An answer that the judge said nothing of is NaN: a mean over answers goes without it, and a prompt
with nothing else in one of the policies of a figure is left out of that figure.

A policy's answers to a prompt are drawn with the luck of its seed, the same for all policies, which makes differences of rewards exact.
Who wins is asked of answers with different luck, as two people would get them: those of the next seed, or with one seed of the next answer.
Legend: S seeds, P prompts, A answers per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import numpy as np

from trueline.align.best_of_n import kl_bound
from trueline.evals.interval import crossed_mean
from trueline.evals.pooled import UNTRAINED, Spread, spread_of_one
from trueline.evals.result import Interval
from trueline.evals.winrate import outcomes
from trueline.study.work import Measured

LEAST = 2
"""Prompts that a figure needs."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One policy at one step, or one way to answer, over all seeds: figures [S, P, A]."""

    arm: str
    label: str
    step: int
    main: bool
    """The arm's last policy at its main setting: what it is compared by."""
    seeded: bool
    """Whether a seed is another training, of the policy or of the reward model that chooses; else it is other luck in drawing only."""
    true: np.ndarray
    """The judge's scores; of a judge that compares, 1 for a win against the start, 0.5 for a tie, 0 for a loss. NaN: it said nothing."""
    learned: np.ndarray | None
    kl: np.ndarray
    tokens: np.ndarray
    finished: np.ndarray
    texts: Sequence[Sequence[Sequence[str]]]
    """[S][P][A]."""


Figure = Callable[[Taken], np.ndarray]
Gap = Callable[[Taken, Taken], np.ndarray]


def taken(arm: str, main: bool, seeded: bool, one: Measured) -> Taken:
    """The figures of all seeds as arrays."""
    found = one.found
    arrays = {name: np.array([by[name] for by in found], dtype=np.float64) for name in ("true", "tokens", "finished")}
    bound = np.full_like(arrays["true"], kl_bound(int(found[0]["n"])))  # of one draw of the start it is 0
    kl = np.array([by["kl"] for by in found], dtype=np.float64) if "kl" in found[0] else bound
    learned = None if found[0]["learned"] is None else np.array([by["learned"] for by in found], dtype=np.float64)
    texts = [by["texts"] for by in found]
    return Taken(arm=arm, label=one.label, step=one.step, main=main, seeded=seeded, kl=kl, learned=learned, texts=texts, **arrays)


def gained(a: Taken, b: Taken) -> np.ndarray:
    """Score of a less that of b, with the same luck."""
    return a.true - b.true


def won(a: Taken, b: Taken) -> np.ndarray:
    """1 where a's answer is scored above b's, 0.5 for a tie, 0 below."""
    other = unlucky(b.true)
    return np.where(np.isfinite(a.true + other), outcomes(a.true, other), np.nan)


def unlucky(values_SPA: np.ndarray) -> np.ndarray:
    """The same figures with another luck: of the next seed; with one seed of the next answer; one of one keeps its own."""
    return np.roll(values_SPA, -1, axis=0 if len(values_SPA) > 1 else 2)


class Pool:
    """The policies that are compared, and what their seeds say together."""

    def __init__(self, mains: Sequence[Taken]) -> None:
        self.mains, self.seeded = mains, [one for one in mains if one.seeded]
        self._spreads: dict[str, Spread | None] = {}

    def alone(self, one: Taken, name: str, figure: Figure, *, share: bool = False) -> Interval:
        """Of one policy, 95 %. `share`: the figure differs by far between methods (KL, length), and seeds scatter it by equal shares."""

        def unit(of: Taken) -> float:
            return float(figure(of).mean()) if share else 1.0

        varied = [m for m in self.seeded if unit(m) > 0 and scatters(figure(m))]  # a bound is the same for every seed
        spread = self._spread(name, lambda: spread_of_one(seed_means([figure(m) / unit(m) for m in varied])))
        by = unit(one) or 1.0
        still = not one.seeded or (share and not scatters(figure(one)))
        found = mean_of(figure(one) / by, UNTRAINED if still else spread)
        return replace(found, estimate=by * found.estimate, low=by * found.low, high=by * found.high, se=by * found.se)

    def against(self, a: Taken, b: Taken, name: str, gap: Gap) -> Interval:
        """Of two policies; all of a kind hold together."""
        among = len(self.mains)
        if not a.seeded and not b.seeded:
            return mean_of(gap(a, b), UNTRAINED, among)
        if a.seeded and b.seeded:
            return mean_of(gap(a, b), self._spread(f"{name} of two", lambda: self._of_pairs(gap)), among)
        still = b if a.seeded else a
        means = lambda: spread_of_one(seed_means([gap(one, still) for one in self.seeded]))  # noqa: E731
        return mean_of(gap(a, b), self._spread(f"{name} over {still.arm}", means), among)

    def _of_pairs(self, gap: Gap) -> Spread | None:
        """The mean over all pairs of what their differences scatter over seeds: evals.pooled.spread_of_two, and the same of win rates."""
        means_NS = seed_means([gap(a, b) for a, b in combinations(self.seeded, 2)])
        methods, seeds = len(self.seeded), means_NS.shape[1]
        if seeds < 2:
            return None
        return Spread(variance=float(means_NS.var(1, ddof=1).mean()), dof=(methods - 1.0) * (seeds - 1))

    def _spread(self, name: str, compute: Callable[[], Spread | None]) -> Spread | None:
        if name not in self._spreads:
            self._spreads[name] = compute() if self.seeded else None
        return self._spreads[name]


def scatters(values_SPA: np.ndarray) -> bool:
    """Whether those that are known differ."""
    known = values_SPA[np.isfinite(values_SPA)]
    return known.size > 0 and bool(np.ptp(known) > 0)


def complete(values_SPA: np.ndarray) -> np.ndarray:
    """Means over the answers that are known, [S, P'], of the prompts that have one with every seed."""
    known_SPA = np.isfinite(values_SPA)
    counts_SP = known_SPA.sum(2)
    whole_P = (counts_SP > 0).all(0)
    if whole_P.sum() < LEAST:
        raise ValueError(
            f"the judge said something of {int(whole_P.sum())} of {len(whole_P)} report prompts, and at least {LEAST} are needed: look at "
            "what it answers (stored votes know only responses that somebody voted on)"
        )
    sums_SP = np.where(known_SPA, values_SPA, 0.0).sum(2)
    found: np.ndarray = sums_SP[:, whole_P] / counts_SP[:, whole_P]
    return found


def mean_of(values_SPA: np.ndarray, spread: Spread | None, among: int = 2) -> Interval:
    """Over answers first, then seeds and prompts."""
    return crossed_mean(complete(values_SPA), spread=spread, among=among)


def seed_means(several: Sequence[np.ndarray]) -> np.ndarray:
    """Of several [S, P, A] the means by seed: [N, S]."""
    return np.array([complete(values_SPA).mean(1) for values_SPA in several])


def clipped(interval: Interval, low: float, high: float) -> Interval:
    """Within what the figure can be."""
    return replace(interval, low=max(low, interval.low), high=min(high, interval.high))


def in_sd(share: Interval) -> Interval:
    """A win rate as the gap of two normal scores of equal spread, in their standard deviations: sqrt(2) Phi^-1(share) (Thurstone 1927)."""
    bound = 0.5 / max(1, share.n)  # a share of 0 or 1 would lie infinitely far away

    def gap(value: float) -> float:
        return float(np.sqrt(2)) * NormalDist().inv_cdf(min(1 - bound, max(bound, value)))

    return replace(share, estimate=gap(share.estimate), low=gap(share.low), high=gap(share.high), se=0.0)
