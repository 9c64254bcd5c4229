"""Intervals of a study: which luck is compared, what is left out, and that seeds of all methods speak together."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from trueline.align.group import Group
from trueline.align.select import best_of_n
from trueline.records import Message
from trueline.study.figures import Pool, Taken, complete, gained, mean_of, won
from trueline.study.measure import Way, choose, draws_of
from trueline.study.settings import Settings


def policy(name: str, true: np.ndarray, seeded: bool = True) -> Taken:
    """With KL and length that grow with the reward."""
    kl = 0.5 + 0.1 * np.abs(true)
    return Taken(
        arm=name, label=name, step=1, main=True, seeded=seeded, true=true, learned=None, kl=kl, tokens=10 * kl,
        finished=np.ones_like(true), texts=(),
    )  # fmt: skip


def policies(seeds: tuple[float, ...], S: int = 2, P: int = 40) -> list[Taken]:
    """The start, and a method for each number: how far its seeds scatter."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(1, P, 1))
    trained = [policy(f"m{i}", sd * rng.normal(size=(S, 1, 1)) + prompts + rng.normal(size=(S, P, 2))) for i, sd in enumerate(seeds)]
    return [policy("start", prompts + rng.normal(size=(S, P, 2)), seeded=False), *trained]


def test_wins_are_of_other_luck() -> None:
    """An answer that is the other's, made better by a hair, does not win always: it is compared with what others would get."""
    rng = np.random.default_rng(1)
    for shape in ((2, 200, 1), (1, 200, 2)):
        same = policy("a", rng.normal(size=shape))
        better = replace(same, arm="b", true=same.true + 1e-6)
        assert abs(won(better, same).mean() - 0.5) < 0.1 and (gained(better, same) > 0).all()
    alone = policy("a", rng.normal(size=(1, 9, 1)))
    assert won(replace(alone, true=alone.true + 1e-6), alone).mean() == 1, "one answer of one seed has no other luck"


def test_a_selector_chooses_among_draws_of_its_own() -> None:
    """Best of n wins n times of n + 1 against one more draw. Against one of the n it would win more."""
    rng, wins = np.random.default_rng(2), 0.0
    way, settings = Way(label="best of 2", select=best_of_n, n=2), Settings(samples=2)
    assert draws_of(settings, (Way(), way)) == 6 and draws_of(settings, (Way(),)) == 2
    for number in range(400):
        scores = tuple(rng.normal(size=6))
        responses = tuple((Message(role="assistant", content=str(k)),) for k in range(6))
        group = Group(key=f"{number:016x}", prompt=(Message(role="user", content="?"),), responses=responses, scores=scores)
        picks = choose(group, way, 2, 0)
        assert picks[0] in (2, 3) and picks[1] in (4, 5) and choose(group, Way(), 2, 0) == [0, 1]
        wins += float(np.mean([scores[pick] > scores[k] for pick, k in zip(picks, (1, 0), strict=True)]))
    assert wins / 400 == pytest.approx(2 / 3, abs=0.05)


def test_comparisons_hold_together_and_figures_alone() -> None:
    pool = Pool(policies((0.3, 0.3, 0.3, 0.3)))
    start, a, b, *_ = pool.mains
    together = pool.against(a, b, "gain", gained)
    assert together.estimate == pytest.approx((a.true - b.true).mean()) and "5 methods together" in together.method
    pairs = list(combinations(pool.mains[1:], 2))
    apart = [mean_of(one.true - other.true, None, 5) for one, other in pairs]
    joint = [pool.against(one, other, "gain", gained) for one, other in pairs]
    assert max(x.high - x.low for x in joint) < max(x.high - x.low for x in apart) / 3, "three degrees of freedom, and not one"
    assert pool.against(b, a, "gain", gained).low == pytest.approx(-together.high)
    assert "nothing was trained" in pool.alone(start, "reward", lambda of: of.true).method
    assert "together" not in pool.alone(a, "reward", lambda of: of.true).method


def test_shares_keep_large_and_small_apart() -> None:
    """The KL of a method that hardly moved has an interval of its own size, though another one's scatters by more than all of it."""
    rng = np.random.default_rng(3)
    mains = policies((0.1, 0.1, 0.1))
    for one, size in zip(mains[1:], (0.01, 1.0, 20.0), strict=True):
        object.__setattr__(one, "kl", size * (1 + 0.1 * rng.normal(size=(2, 1, 1)) + 0.2 * rng.normal(size=one.kl.shape)))
    pool = Pool(mains)
    found = [pool.alone(one, "kl", lambda of: of.kl, share=True) for one in mains[1:]]
    assert all(0.05 < (one.high - one.low) / 2 / one.estimate < 0.9 for one in found), [str(one) for one in found]
    bound = replace(mains[1], kl=np.full_like(mains[1].kl, 1.2))
    still = pool.alone(bound, "kl", lambda of: of.kl, share=True)
    assert still.low == pytest.approx(1.2) == still.high, "a bound is no estimate"


def test_what_nobody_judged_is_left_out() -> None:
    values = np.array([[[1.0, np.nan], [np.nan, np.nan], [3.0, 5.0]], [[2.0, 4.0], [9.0, 9.0], [1.0, 1.0]]])
    assert complete(values).tolist() == [[1.0, 4.0], [3.0, 1.0]]
    assert mean_of(values, None).n == 2
    with pytest.raises(ValueError, match="said something of 1 of 3 report prompts"):
        complete(np.where(np.arange(3)[None, :, None] < 2, np.nan, values))


def test_a_silent_verdict_does_not_leave_the_pool() -> None:
    """One answer of each method without a verdict: its seeds speak as before."""
    mains = policies((0.3,) * 5)
    whole = [Pool(mains).alone(one, "reward", lambda of: of.true) for one in mains[1:]]
    for number, one in enumerate(mains[1:]):
        one.true[0, number, 0] = np.nan
    silent = [Pool(mains).alone(one, "reward", lambda of: of.true) for one in mains[1:]]
    for before, after in zip(whole, silent, strict=True):
        assert after.high - after.low == pytest.approx(before.high - before.low, rel=0.15)
