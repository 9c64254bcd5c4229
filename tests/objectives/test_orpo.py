"""ORPO: numbers by hand, signs, limits, and the formula on separate sequences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.objectives.plain import Listed, assert_step_is, decoder, listed, logps, loss_of, rows_of
from trueline.objectives.orpo import ORPO, log_odds


def test_log_odds_by_hand_and_at_the_ends() -> None:
    """p = 1/2, 4/5, 1/5; then p so near 0 and 1 that p or 1 - p would be lost."""
    p = torch.log(torch.tensor([0.5, 0.8, 0.2]))
    assert log_odds(p).tolist() == pytest.approx([0.0, math.log(4), -math.log(4)], abs=1e-6)
    assert log_odds(torch.tensor([-80.0])).item() == pytest.approx(-80.0)
    assert log_odds(torch.tensor([-1e-5])).item() == pytest.approx(math.log(1e5), rel=1e-4)
    certain = torch.zeros(1, requires_grad=True)
    log_odds(certain).sum().backward()
    assert torch.isfinite(log_odds(certain)).all() and certain.grad is not None and torch.isfinite(certain.grad).all()


def test_by_hand_and_the_right_way() -> None:
    """Four equally likely responses: p = 1/4 each, equal odds, so the loss is log 4 + beta log 2."""
    policy = Listed([0.0, 0.0, 0.0, 0.0])
    loss, means = loss_of(ORPO(beta=0.5), policy, [listed([1, 3])])
    assert loss.item() == pytest.approx(math.log(4) + 0.5 * math.log(2), abs=1e-6)
    assert means["nll_loss"] == pytest.approx(math.log(4), abs=1e-6)
    assert means["log_odds_ratio"] == pytest.approx(-math.log(2), abs=1e-6)
    assert means["log_odds_chosen"] == pytest.approx(0, abs=1e-6)
    assert means["rewards/chosen"] == pytest.approx(-0.5 * math.log(4), abs=1e-6) and means["rewards/accuracies"] == 0
    loss.backward()
    assert policy.logits.grad is not None
    # d log odds / d log p = 1 / (1 - p) = 4/3; half of it from each side of the sigmoid
    imitate, contrast = [0.25, -0.75, 0.25, 0.25], 0.5 * 0.5 * 4 / 3
    assert policy.logits.grad.tolist() == pytest.approx(
        [imitate[0], imitate[1] - contrast, imitate[2], imitate[3] + contrast], abs=1e-6
    )


def test_without_the_odds_it_is_supervised_tuning() -> None:
    policy = Listed([0.3, -0.4, 1.0])
    p = torch.log_softmax(policy.logits.detach(), 0)
    loss, _ = loss_of(ORPO(beta=1e-9), policy, [listed([0, 1]), listed([2, 0])])
    assert loss.item() == pytest.approx(float(-(p[0] + p[2]) / 2), abs=1e-6)


def test_votes_and_ties() -> None:
    """A share of votes mixes the two directions; a tie imitates both alike and shows in no metric."""
    policy, objective = Listed([0.3, -0.4, 1.0]), ORPO()

    def loss(ks: list[int], **numbers: list[float]) -> float:
        return loss_of(objective, policy, [listed(ks, **numbers)])[0].item()

    first, second = loss([0, 1]), loss([1, 0])
    assert loss([0, 1], counts=[3, 1]) == pytest.approx(0.75 * first + 0.25 * second, abs=1e-6)
    assert loss([0, 1], rank=[1, 1]) == pytest.approx((first + second) / 2, abs=1e-6)
    assert loss([0, 1, 2], rank=[1, 2, 3]) == pytest.approx((first + loss([0, 2]) + loss([1, 2])) / 3, abs=1e-6)
    assert "nll_loss" not in loss_of(objective, policy, [listed([0, 1], rank=[1, 1])])[1]


def test_the_loop_computes_the_formula() -> None:
    rows, model = rows_of(7, 2), decoder()
    losses = []
    for row in rows:
        chosen, rejected = (one.mean() for one in logps(model, row))
        odds = [mean - torch.log1p(-torch.exp(mean)) for mean in (chosen, rejected)]
        losses.append(-chosen - 0.3 * logsigmoid(odds[0] - odds[1]))
    assert_step_is(ORPO(beta=0.3), model, rows, torch.stack(losses).mean())


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="beta is 0"):
        ORPO(beta=0.0)
