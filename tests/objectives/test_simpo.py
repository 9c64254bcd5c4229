"""SimPO: numbers by hand, signs, limits, and the formula on separate sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.objectives.plain import Listed, assert_step_is, decoder, listed, logps, loss_of, rows_of
from trueline.objectives.simpo import SimPO, margin_loss
from trueline.records import Row


def test_by_hand() -> None:
    d = torch.tensor([0.0, 1.0, -3.0])
    expected = [math.log(1 + math.exp(1.0)), math.log(2), math.log(1 + math.exp(4.0))]
    assert margin_loss(d, 1.0).tolist() == pytest.approx(expected)


def test_pulls_the_right_way_and_starts_from_no_reference() -> None:
    policy = Listed([0.0, 0.0, 0.0, 0.0])
    loss, means = loss_of(SimPO(beta=2.0, gamma=0.5), policy, [listed([1, 3])])
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.5)), abs=1e-6)
    assert means["rewards/chosen"] == pytest.approx(-2 * math.log(4), abs=1e-5) == means["rewards/rejected"]
    assert means["logps/chosen"] == pytest.approx(-math.log(4), abs=1e-5) and means["rewards/margins"] == 0
    loss.backward()
    assert policy.logits.grad is not None
    weight = 2 / (1 + math.exp(-0.5))  # beta sigmoid(gamma - d)
    assert policy.logits.grad.tolist() == pytest.approx([0, -weight, 0, weight], abs=1e-6)


def test_length_is_no_reward() -> None:
    """A token said once and said twice has the same mean log-probability; a sum would prefer the short one."""
    ids = (np.array([0, 2], dtype=np.int32), np.array([0, 2, 2], dtype=np.int32))
    pair = Row(ids=ids, scored=tuple(np.arange(len(x)) > 0 for x in ids))
    loss, means = loss_of(SimPO(gamma=0.0), Listed([0.5, -1.0, 0.2]), [pair])
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and means["rewards/margins"] == pytest.approx(
        0, abs=1e-6
    )


def test_votes_and_rankings_are_weighted_pairs() -> None:
    """Three responses weigh as much as one pair; votes mix the two directions; a pair without votes counts nothing."""
    policy = Listed([0.3, -0.4, 1.0])
    p = torch.log_softmax(policy.logits.detach(), 0).tolist()

    def at(i: int, j: int) -> float:
        return math.log(1 + math.exp(1.0 - 2.0 * (p[i] - p[j])))

    def loss(ks: list[int], **numbers: list[float]) -> float:
        return loss_of(SimPO(), policy, [listed(ks, **numbers)])[0].item()

    assert loss([0, 1, 2], rank=[1, 2, 3]) == pytest.approx((at(0, 1) + at(0, 2) + at(1, 2)) / 3, abs=1e-5)
    assert loss([0, 1], counts=[3, 1]) == pytest.approx(0.75 * at(0, 1) + 0.25 * at(1, 0), abs=1e-5)
    assert loss([0, 1], rank=[1, 1]) == pytest.approx((at(0, 1) + at(1, 0)) / 2, abs=1e-5)
    assert loss([0, 1], counts=[0, 0]) == 0


def test_the_loop_computes_the_formula() -> None:
    rows, model = rows_of(7, 2), decoder()
    losses = []
    for row in rows:
        chosen, rejected = (one.mean() for one in logps(model, row))
        losses.append(-logsigmoid(2.5 * (chosen - rejected) - 0.7))
    assert_step_is(SimPO(beta=2.5, gamma=0.7), model, rows, torch.stack(losses).mean())


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"gamma": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SimPO(**wrong)
