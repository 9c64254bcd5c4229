"""Statistical rejection sampling against its exact law, its limits, and the pairs made of what it accepts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from trueline.align.group import Group
from trueline.align.rejection import accept, acceptance_rate, first_round, tournament
from trueline.align.select import picks, statistical_rejection

Make = Callable[..., Group]


def law(rewards: Sequence[float], wanted: int, beta: float) -> dict[tuple[int, ...], float]:
    """P(accepted, in this order), by walking through every way the passes can go."""
    found: Counter[tuple[int, ...]] = Counter()

    def walk(left: tuple[int, ...], place: int, accepted: tuple[int, ...], top: float, p: float) -> None:
        if len(accepted) == wanted or p == 0:
            found[accepted] += p
            return
        if place == len(left):  # the pass is over: who was accepted leaves, and the best of the rest is the new bound
            rest = tuple(k for k in left if k not in accepted)
            walk(rest, 0, accepted, max(rewards[k] for k in rest), p)
            return
        k, chance = left[place], math.exp((rewards[left[place]] - top) / beta)
        walk(left, place + 1, (*accepted, k), top, p * chance)
        walk(left, place + 1, accepted, top, p * (1 - chance))

    walk(tuple(range(len(rewards))), 0, (), max(rewards), 1.0)
    assert abs(sum(found.values()) - 1) < 1e-12
    return found


@pytest.mark.parametrize(("beta", "wanted"), [(0.3, 1), (0.3, 2), (1.0, 3)])
def test_what_is_accepted_has_the_exact_law(beta: float, wanted: int) -> None:
    """8,000 draws against the law of five candidates: chi-square within its degrees of freedom."""
    rewards, draws = [0.4, -0.3, 1.0, 0.9, 0.0], 8_000
    rng, expected = np.random.default_rng(1), law(rewards, wanted, beta)
    seen = Counter(tuple(accept(rewards, wanted, beta, rng)) for _ in range(draws))
    assert set(seen) <= set(expected)
    usual = [way for way, p in expected.items() if p * draws >= 5]
    rare = 1 - sum(expected[way] for way in usual)
    terms = [(seen[way] - expected[way] * draws) ** 2 / (expected[way] * draws) for way in usual]
    if rare * draws >= 5:
        others = draws - sum(seen[way] for way in usual)
        terms.append((others - rare * draws) ** 2 / (rare * draws))
    freedom = len(terms) - 1
    assert sum(terms) < freedom + 4 * math.sqrt(2 * freedom), (sum(terms), freedom)


def test_many_candidates_give_the_optimum() -> None:
    """One of 4,096 draws from pi is a draw from pi exp(r / beta) / Z; one of 4 is not."""
    rng, beta, draws = np.random.default_rng(2), 0.5, 1_000
    pi, rewards = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 0.5, 1.0, 1.5])
    target = pi * np.exp(rewards / beta)
    target /= target.sum()

    def seen(candidates: int) -> np.ndarray:
        """Counts of the accepted one; what repeats is kept, as texts of a large space would be different ones."""
        found = np.zeros(4)
        for _ in range(draws):
            ys = np.searchsorted(np.cumsum(pi)[:3], rng.random(candidates))
            found[ys[accept(rewards[ys], 1, beta, rng)[0]]] += 1
        return found

    chi_square = ((seen(4096) - target * draws) ** 2 / (target * draws)).sum()
    assert chi_square < 16.3  # 0.1% of draws from the target are beyond, at 3 degrees of freedom
    assert ((seen(4) - target * draws) ** 2 / (target * draws)).sum() > 50


def test_limits() -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=64)
    best = np.argsort(-rewards)[:8].tolist()
    assert accept(rewards, 8, 1e9, rng) == list(range(8)) == accept(rewards, 8, math.inf, rng)
    assert accept(rewards, 8, 1e-9, rng) == best == accept(rewards, 8, 0.0, rng)
    assert accept(rewards, 8, 5e-324, rng) == best
    assert accept(np.ones(20), 8, 0.5, rng) == list(range(8)) == accept(np.ones(20), 8, 0.0, rng)
    assert sorted(accept(rewards[:3], 8, 0.1, rng)) == [0, 1, 2]
    assert accept([], 8, 0.5, rng) == []


def test_milder_rejection_means_less_reward() -> None:
    """The order of the method sheet's figures for 8 of 64 standard normal rewards: 1.62, 1.31, 0.92, 0.21, 0."""
    rng = np.random.default_rng(3)
    sets = rng.normal(size=(300, 64))
    means = [np.mean([one[accept(one, 8, beta, rng)].mean() for one in sets]) for beta in (0.0, 0.5, 1.0, 5.0, 1e9)]
    np.testing.assert_allclose(means, [1.62, 1.31, 0.92, 0.21, 0.0], atol=0.06)


def test_the_rate_of_acceptance() -> None:
    assert acceptance_rate([0.0, math.log(2)], 1.0) == pytest.approx(0.75)
    rng, rewards = np.random.default_rng(0), np.random.default_rng(1).normal(size=200)
    first_pass = np.mean([rng.random(200) < np.exp((rewards - rewards.max()) / 0.7) for _ in range(2000)])
    assert acceptance_rate(rewards, 0.7) == pytest.approx(first_pass, rel=0.03)


def test_pairs() -> None:
    rng, rewards = np.random.default_rng(0), [0.0, 3.0, 1.0, 2.0, 5.0, 4.0, 1.0]
    for _ in range(50):
        pairs = first_round([0, 1, 3, 4, 5, 6], rewards, rng)
        assert sorted(itertools.chain(*pairs)) == [0, 1, 3, 4, 5, 6] and all(rewards[a] > rewards[b] for a, b in pairs)
        games = tournament([0, 1, 3, 4, 5], rewards, rng)
        assert len(games) == 4 and all(rewards[a] > rewards[b] for a, b in games)
        assert Counter(b for _, b in games) == dict.fromkeys([0, 1, 3, 5], 1)  # everybody but the best one loses once
        assert len(first_round([0, 1, 3], rewards, rng)) == 1
    assert first_round([2, 6], rewards, rng) == [] == tournament([2, 6], rewards, rng) == first_round([4], rewards, rng)
    assert len({tuple(first_round([0, 1, 3, 4], rewards, rng)) for _ in range(50)}) > 2  # pairs are drawn, not fixed


def test_as_a_selector(make_group: Make) -> None:
    """Equal texts count once, in the order they were drawn; the pairs are best first; chance depends on seed and prompt."""
    scores = [0.0, 1.0, 0.0, 3.0, 2.0, 3.0]
    group = make_group(scores, texts=["a", "b", "a", "c", "d", "c"])
    ((_, pair),) = picks([group], partial(statistical_rejection, beta=math.inf, num_samples=2))
    assert pair == (1, 0)
    pairs = [pick for _, pick in picks([group], partial(statistical_rejection, num_samples=4, beta=1.0))]
    assert sorted(itertools.chain(*pairs)) == [0, 1, 3, 4] and all(scores[a] > scores[b] for a, b in pairs)
    games = picks([group], partial(statistical_rejection, num_samples=4, ranking="tournament"))
    assert len(games) == 3
    again = [pick for _, pick in picks([group], partial(statistical_rejection, num_samples=4, beta=1.0))]
    assert again == pairs and picks([make_group([1.0] * 4)], statistical_rejection) == []


@pytest.mark.parametrize(
    ("rewards", "wanted", "beta", "said"),
    [([1.0, math.nan], 1, 0.5, "candidate 1 has the reward nan"), ([1.0], 1, -1.0, "beta is -1"), ([1.0], 1, math.nan, "beta is nan"),
     ([1.0], 0, 0.5, "num_samples is 0")],
)  # fmt: skip
def test_refusals(rewards: list[float], wanted: int, beta: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        accept(rewards, wanted, beta, np.random.default_rng(0))
