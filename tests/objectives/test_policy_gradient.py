"""The shared policy-gradient loss: hand-computed numbers, signs, where gradients stop, what it is averaged over."""

from __future__ import annotations

import math

import pytest
import torch

from trueline.objectives.policy_gradient import clipped_loss, clipped_value_loss, ratios, token_weights

OWNERS = torch.tensor([0, 0, 0, 1])
"""Three tokens of response 0, one of response 1."""


def test_clipped_loss_by_hand() -> None:
    ratio, advantages = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5]), torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0])
    found = clipped_loss(ratio, advantages, 0.2, 0.2)
    assert found.loss_N.tolist() == pytest.approx([-2.0, -1.2, -0.5, 1.5, 0.8])
    assert found.clipped_N.tolist() == [False, True, False, False, True]
    assert clipped_loss(ratio, advantages, 0.2, 0.28).loss_N.tolist() == pytest.approx([-2.0, -1.28, -0.5, 1.5, 0.8])


def test_gradients_push_where_they_should_and_stop_at_the_clip() -> None:
    logps = torch.tensor([0.0, 0.0, math.log(1.5), math.log(0.5)], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    ratio = ratios(logps, torch.zeros(4), OWNERS, 2, "token")
    clipped_loss(ratio, advantages, 0.2, 0.2).loss_N.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1.0, 1.0, 0.0, 0.0]  # better than expected: more likely; beyond the clip: left alone


def test_ratio_of_tokens_and_of_sequences() -> None:
    logps = torch.tensor([0.1, 0.2, 0.3, -0.5], requires_grad=True)
    old = torch.zeros(4)
    assert ratios(logps, old, OWNERS, 2, "token").tolist() == pytest.approx([math.exp(x) for x in (0.1, 0.2, 0.3, -0.5)])
    found = ratios(logps, old, OWNERS, 2, "sequence")
    assert found.tolist() == pytest.approx([math.exp(0.2)] * 3 + [math.exp(-0.5)])
    weights, total = token_weights(torch.ones(2), OWNERS, "sequences")
    ((found * weights).sum() / total).backward()  # the mean of two sequence ratios: each token moves its own by 1 / length
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([math.exp(0.2) / 6] * 3 + [math.exp(-0.5) / 2])


@pytest.mark.parametrize(
    ("averaged", "loss"),
    [("tokens", (1 + 2 + 3 + 10) / 4), ("sequences", (2 + 10) / 2), ("sums", (6 + 10) / 2), ("constant", (6 + 10) / 5 / 2)],
)
def test_what_the_loss_is_averaged_over(averaged: str, loss: float) -> None:
    weights, total = token_weights(torch.ones(2), OWNERS, averaged, longest=5)  # type: ignore[arg-type]
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert float((weights * values).sum() / total) == pytest.approx(loss)
    weights, total = token_weights(torch.tensor([1.0, 0.0]), OWNERS, averaged, longest=5)  # type: ignore[arg-type]
    alone = {"tokens": 2.0, "sequences": 2.0, "sums": 6.0, "constant": 6 / 5}[averaged]
    assert float((weights * values).sum() / total) == pytest.approx(alone)  # the other response counts nowhere


def test_clipped_value_loss_by_hand() -> None:
    values, old, returns = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([0.0, 2.0, 0.0]), torch.tensor([2.0, 2.0, 1.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 1.0, 0.5 * 0.9**2])
    assert clipped.tolist() == [True, False, False]
    assert clipped_value_loss(values, old, returns, 0.0)[0].tolist() == pytest.approx([0.5, 0.5, 0.5 * 0.9**2])
