"""GSHF's bandit: both forms of pessimism against their definitions, and the enhancer against other policies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.gshf import (
    ETA,
    Worlds,
    behaviour,
    best_and_worst,
    compared,
    covariance,
    divergence,
    enhancer,
    expected,
    fitted,
    gibbs,
    labelled,
    pointwise,
    value,
)


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds.drawn(2)


def test_the_best_policy_has_no_gap(worlds: Worlds) -> None:
    best = gibbs(worlds.reward(worlds.theta_WD))
    np.testing.assert_allclose(worlds.gap(best), 0, atol=1e-12)
    assert (worlds.gap(gibbs(0.9 * worlds.reward(worlds.theta_WD))) > 0).all()
    partition = ETA * (worlds.reward(worlds.theta_WD) / ETA).exp().mean(-1).log().mean(-1)  # eta log Z
    np.testing.assert_allclose(value(worlds.reward(worlds.theta_WD), best), partition)


def test_labels_are_bradley_terrys() -> None:
    many = Worlds(torch.zeros(1, 1, 2, 5).double(), torch.tensor([[2.0, 0, 0, 0, 0]]).double())
    ahead = labelled(many, torch.tensor([0.75, 0, 0, 0, 0]).double().expand(1, 20_000, 5), torch.Generator().manual_seed(0))
    assert float((ahead[..., 0] > 0).double().mean()) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=0.01)


def test_option_one_is_the_maximum_of_its_objective(worlds: Worlds) -> None:
    """Its value equals that of the dual, which no policy exceeds; and other policies have less."""
    chance = torch.Generator().manual_seed(1)
    behaves = behaviour(worlds, "a random few", chance)
    pairs = compared(worlds, behaves, behaves, 40, chance)
    theta, sigma, nu, beta = fitted(pairs), covariance(pairs), worlds.mean_features(behaves), 1.0

    def objective(logps: torch.Tensor) -> torch.Tensor:
        off = worlds.mean_features(logps) - nu
        return value(worlds.reward(theta), logps) - beta * torch.einsum("wd,wde,we->w", off, sigma.inverse(), off).sqrt()

    found = expected(worlds, nu, theta, sigma, beta)
    off = worlds.mean_features(found) - nu
    push = torch.einsum("wde,we->wd", sigma.inverse(), off)
    worst = theta - beta * push / torch.einsum("wd,wd->w", off, push).sqrt()[:, None]  # of the ellipsoid, against this policy
    bound = ETA * (worlds.reward(worst) / ETA).exp().mean(-1).log().mean(-1) - ((worst - theta) * nu).sum(-1)
    np.testing.assert_allclose(objective(found), bound, atol=1e-6)
    for other in (gibbs(worlds.reward(theta)), pointwise(worlds, nu, theta, sigma, beta), gibbs(0 * found)):
        assert (objective(found) > objective(other)).all()


def test_no_pessimism_is_the_likeliest_reward(worlds: Worlds) -> None:
    pairs = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theta, sigma, nu = fitted(pairs), covariance(pairs), torch.zeros(2, 5).double()
    for form in (pointwise, expected):
        np.testing.assert_allclose(form(worlds, nu, theta, sigma, 1e-9), gibbs(worlds.reward(theta)), atol=1e-6)


def test_the_enhancer_is_as_unsure_as_its_distance_allows(worlds: Worlds) -> None:
    """At the bound of the KL, and no random policy that keeps to it is less sure."""
    chance = torch.Generator().manual_seed(3)
    behaves = behaviour(worlds, "a random few", chance)
    pairs = compared(worlds, behaves, behaves, 60, chance)
    main, sigma = gibbs(worlds.reward(fitted(pairs))), covariance(pairs)

    def unsure(logps: torch.Tensor) -> torch.Tensor:
        off = worlds.mean_features(logps) - worlds.mean_features(main)
        return torch.einsum("wd,wde,we->w", off, sigma.inverse(), off).sqrt()

    found = enhancer(worlds, main, sigma)
    kl = ETA * divergence(found, main)
    assert (kl <= 1.001 * unsure(found)).all() and (kl > 0.99 * unsure(found)).all()
    for _ in range(30):
        other = torch.log_softmax(main + 4 * torch.rand((), generator=chance) * torch.randn(main.shape, generator=chance), -1)
        kept = ETA * divergence(other, main) <= unsure(other)
        assert (~kept | (unsure(other) < unsure(found))).all()


def test_best_and_worst_are_of_the_fit(worlds: Worlds) -> None:
    theta = worlds.theta_WD
    pairs = best_and_worst(worlds, gibbs(0 * worlds.reward(theta)), theta, 200, torch.Generator().manual_seed(4), K=20)
    assert float((pairs @ theta[..., None]).abs().mean()) > 1.8  # of 20 draws, with rewards from -2 to 2
