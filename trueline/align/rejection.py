"""Statistical rejection sampling: from many candidates of one policy a few that look drawn from a better one.

    pi_r(y|x) = pi(y|x) exp(r(x, y) / beta) / Z(x)             the optimum of reward - beta KL(. || pi)
    accept a candidate of pi with probability exp((r - r_max) / beta)

    accept(rewards, 8, beta, rng) -> numbers      Liu et al. (RSO), 2309.06657, algorithm 1
    first_round, tournament       -> pairs        ranked by the rewards, the better response first

r_max is the largest reward of the candidates that are left, taken once per pass; accepted candidates leave after the pass. So the
best one left is accepted in every pass, and the result has the law of pi_r only as the number of candidates goes to infinity.
beta = infinity keeps the first ones, which are draws from pi; beta = 0 keeps the best ones, best first. Candidates are walked through
in the order that they were drawn in: sorted by reward they would give another law. Against the printed algorithm: beta = 0, fewer
candidates than are wanted, and rewards that are no numbers end here instead of dividing by zero or going round for ever.

Left out: which responses are the same text (`select.statistical_rejection` drops them first).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]


def accept(rewards: Sequence[float] | np.ndarray, num_samples: int, beta: float, rng: np.random.Generator) -> list[int]:
    """Numbers of the accepted candidates, in the order of acceptance: `num_samples` of them, or all where there are fewer."""
    rewards_N = np.asarray(rewards, dtype=np.float64)
    if not beta >= 0:
        raise ValueError(f"beta is {beta}: it must be at least 0 (0 takes the best, infinity the first)")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}: it must be at least 1")
    if not np.isfinite(rewards_N).all():
        worst = int(np.flatnonzero(~np.isfinite(rewards_N))[0])
        raise ValueError(f"candidate {worst} has the reward {rewards_N[worst]}: rewards must be finite")
    left, accepted = np.arange(len(rewards_N)), list[int]()
    if beta == 0:
        return np.argsort(-rewards_N, kind="stable")[:num_samples].tolist()
    while len(left) and len(accepted) < num_samples:
        with np.errstate(over="ignore"):  # far below the best: exp(-infinity) is 0, as it should be
            chances = np.exp((rewards_N[left] - rewards_N[left].max()) / beta)
        passes = rng.random(len(left)) < chances
        accepted += left[passes][: num_samples - len(accepted)].tolist()
        left = left[~passes]
    return accepted


def acceptance_rate(rewards: Sequence[float] | np.ndarray, beta: float) -> float:
    """The share of candidates that a first pass accepts in expectation: mean of exp((r - r_max) / beta), theorem 1."""
    rewards_N = np.asarray(rewards, dtype=np.float64)
    return float(np.exp((rewards_N - rewards_N.max()) / beta).mean())


def first_round(numbers: Sequence[int], rewards: Sequence[float] | np.ndarray, rng: np.random.Generator) -> list[Pair]:
    """Random pairs of them, each used once, the better one first; equal rewards make no pair, an odd one is left over."""
    return _played(rng.permutation(np.asarray(numbers, dtype=np.int64)).tolist(), rewards)


def tournament(numbers: Sequence[int], rewards: Sequence[float] | np.ndarray, rng: np.random.Generator) -> list[Pair]:
    """All games of a knock-out between them: n - 1 pairs. Of equal ones chance decides who goes on, and they make no pair."""
    pairs: list[Pair] = []
    players = rng.permutation(np.asarray(numbers, dtype=np.int64)).tolist()
    while len(players) > 1:
        pairs += _played(players, rewards)
        rest = players[len(players) // 2 * 2 :]  # an odd one goes on without a game
        games = zip(players[::2], players[1::2], strict=False)
        players = [a if rewards[a] >= rewards[b] else b for a, b in games] + rest
    return pairs


def _played(players: Sequence[int], rewards: Sequence[float] | np.ndarray) -> list[Pair]:
    games = zip(players[::2], players[1::2], strict=False)
    return [(a, b) if rewards[a] > rewards[b] else (b, a) for a, b in games if rewards[a] != rewards[b]]
