"""Transport losses against linear programming, hand numbers and finite differences."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from trueline.objectives.transport import cross_entropy, plane_cost, sinkhorn, sinkhorn_divergence, wasserstein

WORTH = (-3.0, -1.5, -1.0, -1.0, 0.5, 1.0)  # the paper's six categories, worst first
HELPFUL, HARM = (-1.0, 0.5, 1.0, -1.0, 0.5, 1.0), (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def drawn(seed: int, S: int, C: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(C), S))


def linear_program(s_C: np.ndarray, t_C: np.ndarray, cost_CC: np.ndarray) -> float:
    """min <P, cost> over plans with these margins: the best of all vertices of the polytope (2C - 1 cells hold mass)."""
    C = len(s_C)
    rows = np.zeros((2 * C, C * C))
    for i in range(C):
        rows[i, i * C : (i + 1) * C] = 1
        rows[C + i, i::C] = 1
    cells = np.array(list(combinations(range(C * C), 2 * C - 1)))
    bases = rows[:-1][:, cells].transpose(1, 0, 2)  # the last equation follows from the others
    solvable = np.abs(np.linalg.det(bases)) > 0.5  # determinants are -1, 0 or 1
    found = np.linalg.solve(bases[solvable], np.concatenate([s_C, t_C])[:-1, None])[..., 0]
    allowed = (found >= -1e-12).all(1)
    return float((found * cost_CC.reshape(-1)[cells[solvable]]).sum(1)[allowed].min())


def test_closed_form_is_the_linear_program() -> None:
    s_SC, t_SC = drawn(0, 2, 4), drawn(1, 2, 4)
    for positions in (None, (-2.0, -0.5, -0.5, 3.0)):
        x_C = np.array(positions or range(4), dtype=float)
        cost_CC = np.abs(x_C[:, None] - x_C)
        expected = [linear_program(s, t, cost_CC) for s, t in zip(s_SC.numpy(), t_SC.numpy(), strict=True)]
        np.testing.assert_allclose(wasserstein(s_SC, t_SC, positions).numpy(), expected, atol=1e-9)


def test_sinkhorn_approaches_the_linear_program() -> None:
    """For a cost of no line; entropic transport lies above exact transport and comes down to it with epsilon."""
    rng = np.random.default_rng(2)
    s_SC, t_SC = drawn(3, 2, 4), drawn(4, 2, 4)
    points = rng.normal(size=(4, 3))
    cost_CC = np.abs(points[:, None] - points).sum(-1)
    exact_S = np.array([linear_program(s, t, cost_CC) for s, t in zip(s_SC.numpy(), t_SC.numpy(), strict=True)])
    cost = torch.from_numpy(cost_CC)
    apart = [np.abs(sinkhorn(s_SC, t_SC, cost, eps, 800).numpy() - exact_S).max() for eps in (0.5, 0.1, 0.03)]
    assert apart[2] < 0.03 * np.log(4) and apart[0] > apart[1] > apart[2]
    debiased = np.abs(sinkhorn_divergence(s_SC, t_SC, cost, 0.03, 800).numpy() - exact_S).max()
    assert debiased < 0.02


def test_transport_tells_a_near_mistake_from_a_far_one() -> None:
    """0.9 on the right category, the best one, and 0.1 on its neighbour, the next, or the worst."""
    target = torch.eye(6, dtype=torch.float64)[5].expand(3, 6)
    guess = torch.zeros(3, 6, dtype=torch.float64)
    guess[:, 5] = 0.9
    guess[range(3), [4, 3, 0]] = 0.1
    assert cross_entropy(guess.clamp_min(1e-9).log(), target).tolist() == pytest.approx([0.105] * 3, abs=5e-4)
    assert wasserstein(guess, target).tolist() == pytest.approx([0.1, 0.2, 0.5])
    assert wasserstein(guess, target, WORTH).tolist() == pytest.approx([0.05, 0.2, 0.4])


def test_transport_bounds_the_error_of_the_expected_utility() -> None:
    s_SC, t_SC = drawn(5, 200, 6), drawn(6, 200, 6)
    error_S = ((s_SC - t_SC) @ torch.tensor(WORTH, dtype=torch.float64)).abs()
    assert (error_S <= wasserstein(s_SC, t_SC, WORTH) + 1e-12).all()
    assert (error_S < wasserstein(s_SC, t_SC, WORTH) - 1e-3).any() and (error_S > wasserstein(s_SC, t_SC)).any()


def test_equal_utilities_are_one_place_to_transport_and_two_on_the_plane() -> None:
    """Harmful but helpful, and harmless but useless, are both worth -1."""
    s, t = torch.eye(6, dtype=torch.float64)[[2]], torch.eye(6, dtype=torch.float64)[[3]]
    assert wasserstein(s, t, WORTH).item() == 0
    cost_CC = plane_cost(HELPFUL, HARM, kappa=1.5)
    assert cost_CC[2, 3].item() == 2 + 1.5 and cost_CC[4, 5].item() == 0.5 and torch.equal(cost_CC, cost_CC.T)
    assert sinkhorn_divergence(s, t, cost_CC).item() == pytest.approx(3.5, abs=1e-6)


def test_gradients_reach_the_logits() -> None:
    """Cross-entropy: s - t. All: finite differences. Each pulls towards the target."""
    logits = torch.from_numpy(np.random.default_rng(7).normal(size=(1, 6))).requires_grad_()
    t_SC, cost_CC = drawn(8, 1, 6), plane_cost(HELPFUL, HARM)
    losses = {
        "cross_entropy": lambda x: cross_entropy(x.log_softmax(-1), t_SC),
        "wasserstein": lambda x: wasserstein(x.softmax(-1), t_SC),
        "transport": lambda x: wasserstein(x.softmax(-1), t_SC, WORTH),
        "sinkhorn": lambda x: sinkhorn(x.softmax(-1), t_SC, cost_CC, 1.0, 60),
        "divergence": lambda x: sinkhorn_divergence(x.softmax(-1), t_SC, cost_CC, 1.0, 60),
    }
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
        step, found = 1e-5, torch.zeros_like(gradient)
        for place in np.ndindex(1, 6):
            moved = torch.zeros(1, 6, dtype=torch.float64)
            moved[place] = step
            with torch.no_grad():
                found[place] = (loss(logits + moved).sum() - loss(logits - moved).sum()) / (2 * step)
        torch.testing.assert_close(gradient, found, atol=2e-6, rtol=0, msg=name)
        assert gradient.sum(-1).abs().max() < 1e-9  # a softmax knows no common shift
        assert loss(logits - 0.01 * gradient).sum() < loss(logits).sum(), name
        if name == "cross_entropy":
            torch.testing.assert_close(gradient, logits.softmax(-1) - t_SC, atol=1e-12, rtol=0)


def test_the_divergence_is_least_at_the_target_and_entropic_transport_is_not() -> None:
    t_SC, cost_CC = drawn(9, 1, 6), plane_cost(HELPFUL, HARM)
    assert sinkhorn_divergence(t_SC, t_SC, cost_CC, 0.5).item() == pytest.approx(0, abs=1e-9)
    for loss, right in ((sinkhorn_divergence, True), (sinkhorn, False)):
        logits = t_SC.log().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits.softmax(-1), t_SC, cost_CC, 0.5).sum(), logits)
        assert (gradient.abs().max().item() < 1e-6) == right


def test_transport_to_single_picks_learns_their_median() -> None:
    """Of picks 0, 2, 2 by three people: pooled, both losses are least at the shares; one by one, transport at the median."""
    one_by_one = torch.eye(3, dtype=torch.float64)[[0, 2, 2]]
    pooled = one_by_one.mean(0, keepdim=True)
    median = torch.tensor([[1e-6, 1e-6, 1 - 2e-6]], dtype=torch.float64)
    for loss, targets, best in (
        (wasserstein, pooled, pooled),
        (wasserstein, one_by_one, median),
        (lambda s, t: cross_entropy(s.clamp_min(1e-9).log(), t), one_by_one, pooled),
    ):
        other = pooled if best is median else median
        assert loss(best, targets).mean() < loss(other, targets).mean()


def test_falling_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="from worst to best"):
        wasserstein(drawn(0, 1, 3), drawn(1, 1, 3), (1.0, 0.0, 2.0))
