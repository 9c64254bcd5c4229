"""The differences that need no training are what theory says; the others are rehearsed with two updates (tests/recipes)."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("recipes.oracle_differences")


def test_a_small_step_gains_the_square_root_of_two_deviations(differences: Any) -> None:
    found = []
    for seed in range(3):
        world = differences.make_world("smooth", seed)
        near, far = (differences.gibbs_at_kl(world.reference_PV, world.reward_PV, kl) for kl in (0.001, 0.5))
        found.append([differences.slope(policy_PV, world) for policy_PV in (near, far)])
    gains = [[one["gain per deviation and root of KL"] for one in both] for both in found]
    assert np.allclose([near for near, _ in gains], math.sqrt(2), rtol=0.03)
    assert gains[0][1] != pytest.approx(math.sqrt(2), rel=0.005), "the reward is not Gaussian"
    assert np.allclose([[one["share of the curve"] for one in both] for both in found], 1)


def test_rejection_nears_the_optimum(differences: Any) -> None:
    found = differences.rejection(0, trials=1000)
    one, many, noise = (found[f"{name}: to pi*"] for name in ("1 candidates", "256 candidates", "draws of pi*"))
    assert one > 2 * many and many < 2 * noise


def test_a_linear_reward_says_something_of_what_it_did_not_see(differences: Any) -> None:
    """Labels on the five likeliest responses: a table knows nothing of the others, a linear reward ranks them."""
    world = differences.make_world("smooth", 2)
    rows = differences.drawn_pairs(world, differences.narrow(world), 4096)
    unseen_PV = differences.narrow(world) == 0
    pairs = []
    for basis in (None, differences.features(world.responses, world.letters)):
        model, still = (
            differences.ScoreTable(world, basis=basis),
            differences.Still(differences.Reward(), rows, differences.Crew()),
        )
        differences.train_table(still, model, differences.StoredFeed(rows[:1], 1, 0), differences.Crew(), 40, 0)
        pairs.append(model.table())
    assert (pairs[0][unseen_PV] == 0).all() and np.abs(pairs[1][unseen_PV]).min() > 1e-3
    agreement = np.corrcoef(pairs[1][unseen_PV], world.reward_PV[unseen_PV])[0, 1]
    assert agreement > 0.3


def test_a_narrow_policy_says_five_things(differences: Any) -> None:
    world = differences.make_world("smooth", 0)
    narrow_PV = differences.narrow(world)
    assert ((narrow_PV > 0).sum(1) == 5).all() and np.allclose(narrow_PV.sum(1), 1)
    pairs = differences.drawn_pairs(world, narrow_PV, 400)
    assert {world.number(x)[1] for row in pairs for x in row.ids} <= set(np.flatnonzero(narrow_PV.any(0)))
