"""The exact objective of out-of-preference training, and the parts of its bandits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recipes.out_of_preference import (
    ascend,
    compared,
    gap,
    layers,
    likeliest_reward,
    pair_loss,
    policy_objective,
    through,
)

REWARD = torch.tensor([[0.3, -1.0, 0.8, 0.0], [2.0, 0.0, 0.0, -1.0]], dtype=torch.float64)


def test_the_objective_by_hand() -> None:
    """Uniform over four: the mean reward, and no KL from the uniform reference."""
    uniform = torch.full((2, 4), -math.log(4), dtype=torch.float64)
    assert policy_objective(uniform, REWARD, 0.5).tolist() == pytest.approx([0.025, 0.25])
    half = torch.log(torch.tensor([[0.5, 0.5, 1e-300, 1e-300]], dtype=torch.float64))
    assert policy_objective(half, REWARD[:1], 0.5).item() == pytest.approx(-0.35 - 0.5 * math.log(2))
    reference = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64))
    kl = 0.25 * sum(math.log(0.25 / p) for p in (0.1, 0.2, 0.3, 0.4))
    assert policy_objective(uniform[:1], REWARD[:1], 0.5, reference).item() == pytest.approx(0.025 - 0.5 * kl)


def test_its_maximum_is_the_reference_tilted_by_the_reward() -> None:
    """A table of logits climbs to pi_ref exp(r / beta) / Z, where the value is beta log Z."""
    reference = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2, dtype=torch.float64))
    logits, beta = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True), 0.5
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=60, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -policy_objective(torch.log_softmax(logits, -1), REWARD, beta, reference).sum()
        loss.backward()
        return loss

    value = -float(optimizer.step(closure))  # before the climb
    best = torch.softmax(reference + REWARD / beta, -1)
    torch.testing.assert_close(torch.softmax(logits, -1).detach(), best, atol=1e-6, rtol=0)
    log_z = torch.logsumexp(reference + REWARD / beta, -1)
    assert -closure().item() == pytest.approx(beta * log_z.sum().item()) and -closure().item() > value


def test_the_pair_loss_is_dpo_s_and_the_gap_counts_from_the_best() -> None:
    logps = torch.log_softmax(torch.tensor([[1.0, 0.0, 2.0]]), -1)
    assert pair_loss(logps, torch.tensor([[2, 1]]), 0.5).item() == pytest.approx(math.log(1 + math.exp(-1)))
    sure = torch.tensor([[[0.0, -1e9], [-1e9, 0.0]]])
    assert gap(sure, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])).tolist() == [0.5]


def test_comparisons_are_of_two_actions_and_as_often_right_as_bradley_and_terry_say() -> None:
    pairs = compared(torch.tensor([0.0, 1.5]).expand(1, 20_000, 2), torch.Generator().manual_seed(0))
    assert (pairs[..., 0] != pairs[..., 1]).all()
    assert pairs[..., 0].float().mean().item() == pytest.approx(1 / (1 + math.exp(-1.5)), abs=0.01)
    three = compared(torch.zeros(1, 3000, 3), torch.Generator().manual_seed(0))
    assert np.bincount(three.flatten().numpy(), minlength=3) / 6000 == pytest.approx(1 / 3, abs=0.03)


def test_reward_and_ascent_find_what_is_there() -> None:
    """Newton's theta solves its equation; ascent by its own steps ends at the top of a hill."""
    differences = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theta = likeliest_reward(differences, ridge=0.1)
    p = torch.sigmoid((differences @ theta[..., None]).squeeze(-1))
    slope = ((1 - p)[..., None] * differences).sum(1) - 0.1 * theta
    assert slope.abs().max() < 1e-9
    top = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    found = ascend(lambda x: -((x - top) ** 2).sum(-1), torch.zeros(2, 2, dtype=torch.float64), 300)
    torch.testing.assert_close(found, top, atol=1e-3, rtol=0)


def test_worlds_side_by_side_are_networks_of_their_own() -> None:
    chance = torch.Generator().manual_seed(0)
    weights, x = layers(3, [4, 5, 2], chance), torch.randn(3, 7, 4, generator=chance)
    together = through(x, weights, torch.relu)
    for world in range(3):
        w1, b1, w2, b2 = (parameter[world] for parameter in weights)
        torch.testing.assert_close(together[world], torch.relu(x[world] @ w1 + b1) @ w2 + b2)
