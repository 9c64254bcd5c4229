"""The reproductions along exact runs: equal labels, nothing to clip in one pass, and how the square-root law is read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recipes import iterative_vs_offline as iterative
from recipes import ppo_clipping as clipping
from recipes import reward_kl_law as law
from recipes.oracle_tables import NoisyScorer
from recipes.oracle_world import make_world
from trueline.evals.oracle import gibbs_at_kl


def test_all_arms_ask_for_as_many_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 updates in 1, 4 or 60 rounds; here a fifth of them. The offline arm asks once, of the start policy alone."""
    asked: list[int] = []

    class Counted(NoisyScorer):
        def score(self, rows):  # type: ignore[no-untyped-def]
            asked.append(sum(len(row.ids) for row in rows))
            return super().score(rows)

    monkeypatch.setattr(iterative, "NoisyScorer", Counted)
    monkeypatch.setattr(iterative, "COPIES", 2)
    rounds = {}
    for arm in iterative.ARMS:
        iterative.measured(arm, 0.1, 0, updates=12)
        rounds[arm] = len(asked)
        assert sum(asked) == 2 * 12 * 4 * 2, arm
        asked.clear()
    assert list(rounds.values()) == [1, 4, 12, 4]


def test_one_pass_has_nothing_to_clip_and_many_have() -> None:
    one, other = (clipping.measured(epsilon, 1, 0.3, 0, rounds=2) for epsilon in clipping.EPSILON)
    assert one == other
    one, other = (clipping.measured(epsilon, 8, 0.3, 0, rounds=1) for epsilon in clipping.EPSILON)
    assert other["moved"][0] > 1.2 * one["moved"][0] > 0


def test_small_steps_of_the_best_policies_have_the_laws_slope() -> None:
    world = make_world("smooth", 1, letters=3, longest=4)
    found = [gibbs_at_kl(world.reference_PV, world.reward_PV, x**2) for x in np.linspace(0, 0.1, 5)]
    run = law.curve(world, found)
    assert law.reached(run, 0.099) / 0.099 == pytest.approx(math.sqrt(2), rel=0.05)
    assert law.straightness(run) > 0.999
    most = law.best(1)
    assert most[0] == pytest.approx(0, abs=1e-6) and most[1] / law.EDGES[1] == pytest.approx(math.sqrt(2), rel=0.15)


def test_a_window_is_read_where_the_run_first_gets_there() -> None:
    run = {"x": [0.0, 0.5, 0.3, 1.0], "y": [0.0, 1.0, 0.4, 1.2]}
    assert law.reached(run, 0.25) == pytest.approx(0.5) and law.reached(run, 0.0) == 0
    assert law.reached(run, 0.75) == pytest.approx(0.4 + 0.8 * 0.45 / 0.7)
    assert math.isnan(law.reached(run, 1.5))
    assert law.slopes([0.0, 0.4, 0.6, 0.6, 0.5, 0.5]) == pytest.approx([1.0, 0.5, 0.0, -0.25, 0.0])
