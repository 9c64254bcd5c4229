"""What best-of-n costs and gains: its KL from the policy it draws from, and its expected score.

    kl_bound(n) = log n - (n-1)/n          exact without ties as the largest probability goes to 0, else an upper bound
    exact_kl(probs, scores, n)             on a listed response space
    expected_best(scores, n)               unbiased, from N >= n scored samples of one prompt
    curve(groups, ns)                      mean over prompts for the reward-KL frontier

Legend: V responses of a listed space, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trueline.align.group import Group


def kl_bound(n: int) -> float:
    """log n - (n-1)/n in nats."""
    _check(n)
    return math.log(n) - (n - 1) / n


def distribution(probs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """Probability [V] that best-of-n returns each response: F(score)^n - F(below)^n, shared among tied ones by their probability."""
    _check(n)
    probs_V, scores_V = np.asarray(probs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    _, level_V = np.unique(scores_V, return_inverse=True)
    mass_L = np.bincount(level_V, weights=probs_V)
    upto_L = np.cumsum(mass_L) / mass_L.sum()
    below_L = np.concatenate([[0.0], upto_L[:-1]])
    best_L = upto_L**n - below_L**n
    return best_L[level_V] * probs_V / np.where(mass_L > 0, mass_L, 1)[level_V]


def exact_kl(probs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, n: int) -> float:
    """KL(best-of-n || policy) on a listed response space, in nats."""
    best_V, probs_V = distribution(probs, scores, n), np.asarray(probs, dtype=np.float64)
    held = best_V > 0
    return float((best_V[held] * np.log(best_V[held] / (probs_V[held] / probs_V.sum()))).sum())


def expected_best(
    scores: Sequence[float] | np.ndarray, n: int, values: Sequence[float] | np.ndarray | None = None
) -> float:
    """Unbiased estimate of the expected score of best-of-n from N >= n samples: the i-th smallest weighs C(i-1,n-1)/C(N,n).

    With `values` the best is chosen by `scores` but counted by `values` (proxy and true reward); tied scores share their weight.
    """
    scores_N = np.asarray(scores, dtype=np.float64)
    values_N = scores_N if values is None else np.asarray(values, dtype=np.float64)
    N = len(scores_N)
    _check(n)
    if n > N or len(values_N) != N:
        raise ValueError(
            f"best-of-{n} needs at least {n} samples and one value each, got {N} scores, {len(values_N)} values"
        )
    weight_N = np.array([math.comb(i - 1, n - 1) / math.comb(N, n) for i in range(1, N + 1)])
    order = np.argsort(scores_N, kind="stable")
    _, level_N = np.unique(scores_N[order], return_inverse=True)
    share_N = np.bincount(level_N, weights=weight_N)[level_N] / np.bincount(level_N)[level_N]
    return float((share_N * values_N[order]).sum())


def curve(
    groups: Sequence[Group], ns: Sequence[int], values: Sequence[Sequence[float]] | None = None
) -> list[tuple[int, float, np.ndarray]]:
    """For each n: (n, KL bound, expected score per prompt [P]); every group needs at least max(ns) samples.

    `values[p]` are the scores that count (a true judge's), where the groups' own only choose.
    """
    counted = [None] * len(groups) if values is None else values
    return [
        (n, kl_bound(n), np.array([expected_best(g.scores, n, v) for g, v in zip(groups, counted, strict=True)]))
        for n in ns
    ]


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, got {n}")
