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
    found = [differences.square_root(seed, updates=1) for seed in range(3)]
    assert np.allclose([one["the best at KL 0.001"] for one in found], math.sqrt(2), rtol=0.03)
    assert found[0]["the best at KL 0.5"] != pytest.approx(math.sqrt(2), rel=0.005), "the reward is not Gaussian"


def test_rejection_nears_the_optimum(differences: Any) -> None:
    found = differences.rejection(0, trials=1000)
    assert found["1 candidates"] > 2 * found["256 candidates"] and found["256 candidates"] < 2 * found["draws of pi*"]


def test_a_narrow_policy_says_five_things(differences: Any) -> None:
    world = differences.make_world("smooth", 0)
    narrow_PV = differences.narrow(world)
    assert ((narrow_PV > 0).sum(1) == 5).all() and np.allclose(narrow_PV.sum(1), 1)
    pairs = differences.drawn_pairs(world, narrow_PV, 400)
    assert {world.number(x)[1] for row in pairs for x in row.ids} <= set(np.flatnonzero(narrow_PV.any(0)))
