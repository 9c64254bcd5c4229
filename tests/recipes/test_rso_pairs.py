"""The bandit of RSO's claim: its labels, its pairs, and where its arms are read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recipes.rso_pairs import ARMS, KL, World, best_gain, gain, labelled, own_pairs


@pytest.fixture
def world() -> World:
    return World.drawn(np.random.default_rng(3))


def test_labels_are_the_better_one_or_drawn() -> None:
    rewards, pairs = np.array([0.0, 1.5]), np.tile([[0, 1], [1, 0]], (5000, 1))
    rng = np.random.default_rng(0)
    assert (labelled(pairs, rewards, rng, hard=True)[:, 0] == 1).all()
    assert (labelled(pairs, rewards, rng, hard=False)[:, 0] == 1).mean() == pytest.approx(
        1 / (1 + math.exp(-1.5)), abs=0.01
    )


def test_own_pairs_are_different_arms_and_better_as_rejection_is_stronger(world: World) -> None:
    means = []
    for beta in (math.inf, 2.0, 0.05):
        pairs = own_pairs(world, 400, beta, np.random.default_rng(0), hard=True)
        assert pairs.shape == (400, 2) and (world.proxy_A[pairs[:, 0]] > world.proxy_A[pairs[:, 1]]).all()
        means.append(world.proxy_A[pairs].mean())
    assert means[0] < means[1] < means[2]


def test_arms_are_read_where_they_cross_the_kl(world: World) -> None:
    """One pair alone pulls along one line, on which the place of KL 1 can be found by halving."""
    chosen, rejected = int(world.gold_A.argmax()), int(world.gold_A.argmin())
    found = gain(world, np.array([[chosen, rejected]] * 3), 0.05)
    line, low, high = world.features_AD @ (world.features_AD[chosen] - world.features_AD[rejected]), 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        p = np.exp(world.start_A + middle * line)
        p /= p.sum()
        low, high = (low, middle) if float(p @ (np.log(p) - world.start_A)) > KL else (middle, high)
    assert found == pytest.approx(float((p - np.exp(world.start_A)) @ world.gold_A), abs=2e-3)
    assert math.isnan(gain(world, np.array([[chosen, chosen]]), 0.05))


def test_nothing_beats_the_tilted_start_policy(world: World) -> None:
    most = best_gain(world)
    assert 0 < most <= world.gold_A.std() * math.sqrt(2 * KL) * 1.2
    for beta in (math.inf, 1.0):
        assert gain(world, own_pairs(world, 1500, beta, np.random.default_rng(0), hard=False), 0.05) < most
    p = np.exp(world.start_A)
    assert p.sum() == pytest.approx(1) and len(p) == ARMS
