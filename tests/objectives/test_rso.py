"""RSO's losses by hand and against DPO's; what its rounds ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from tests.objectives.plain import Listed, assert_step_is, decoder, listed, logps, loss_of, rows_of
from trueline.objectives.dpo import DPO
from trueline.objectives.rounds import OnPolicy
from trueline.objectives.rso import RSO
from trueline.protocols import Crew
from trueline.records import Row

UNIFORM = -math.log(4)


def test_losses_by_hand() -> None:
    h = torch.tensor([0.0, 5.0, 30.0, -20.0])
    assert RSO(gamma=0.1).pair_loss(h).tolist() == pytest.approx(
        [math.log(2), math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-3)), math.log(1 + math.exp(2))]
    )
    assert RSO(gamma=0.1, loss_type="hinge_norm").pair_loss(h).tolist() == pytest.approx([1.0, 0.5, 0.0, 3.0])


@pytest.mark.parametrize(("loss_type", "as_dpo"), [("sigmoid_norm", "sigmoid"), ("hinge_norm", "hinge")])
def test_the_normalised_losses_are_those_of_dpo(loss_type: str, as_dpo: str) -> None:
    """gamma is DPO's beta; a row comes best first with ranks 1 and 2, as the selector makes it."""
    policy = Listed([0.3, -0.4, 1.0, 0.0])
    rows = [
        listed([0, 2], rank=[1, 2], reference_logps=[-1.0, -2.0]),
        listed([3, 1], rank=[1, 2], reference_logps=[-1.5, -0.5]),
    ]
    ours, metrics = loss_of(RSO(gamma=0.2, loss_type=loss_type), policy, rows)  # type: ignore[arg-type]
    theirs, expected = loss_of(DPO(beta=0.2, loss_type=as_dpo), policy, rows)  # type: ignore[arg-type]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6) and metrics == expected


def test_the_plain_hinge_knows_no_reference() -> None:
    policy, objective = Listed([0.0] * 4), RSO(gamma=0.5, loss_type="hinge")
    loss, means = loss_of(objective, policy, [listed([1, 3], rank=[1, 2], reference_logps=[-9.0, -1.0])])
    assert loss.item() == pytest.approx(1.0, abs=1e-6)
    assert means["rewards/chosen"] == pytest.approx(
        0.5 * (UNIFORM + 9), abs=1e-5
    )  # metrics are against the reference still
    loss.backward()
    assert policy.logits.grad is not None
    assert policy.logits.grad.tolist() == pytest.approx([0, -0.5, 0, 0.5], abs=1e-6)
    far = Listed([0.0, 9.0, 0.0, 0.0])
    done, _ = loss_of(objective, far, [listed([1, 3], rank=[1, 2], reference_logps=[0.0, 0.0])])
    assert done.item() == 0  # beyond the margin of 1 / gamma = 2 nothing pulls


def test_soft_labels_are_bradley_terry_s_and_lead_to_the_tilted_reference() -> None:
    """All pairs of four listed responses: the least loss is at pi_ref exp(r / gamma) / Z, whatever pairs were kept."""
    objective, reward = RSO(gamma=0.5, soft_labels=True), np.array([0.3, -0.5, 0.8, 0.0], np.float32)
    reference = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))

    class Reference:
        fingerprint = "listed"

        def score(self, rows: list[Row]) -> list[np.ndarray]:
            return [np.array([float(reference[ids[1]]) for ids in row.ids], np.float32) for row in rows]

    pairs = [(0, 1), (2, 0), (2, 1), (3, 1), (0, 3)]  # best first
    rows = objective.annotate(
        [listed(p, rank=[1, 2], reward=reward[list(p)]) for p in pairs], Crew(reference=Reference())
    )
    policy = Listed([0.0] * 4)
    loss, _ = loss_of(objective, policy, rows[:1])
    q, h = 1 / (1 + math.exp(-0.8)), math.log(2.0)  # uniform over a reference of 0.1 and 0.2
    assert loss.item() == pytest.approx(
        q * math.log(1 + math.exp(-h / 2)) + (1 - q) * math.log(1 + math.exp(h / 2)), abs=1e-5
    )
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=100, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss, _ = loss_of(objective, policy, rows)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = torch.softmax(reference + torch.from_numpy(reward) / 0.5, 0)
    torch.testing.assert_close(torch.softmax(policy.logits.detach(), 0), best, atol=1e-3, rtol=0)


def test_the_loop_computes_the_formula() -> None:
    model, references = decoder(), [[-20.0 - k, -22.0 + k] for k in range(6)]
    rows = [
        replace(row, numbers={"reference_logps": np.array(pair, np.float32)})
        for row, pair in zip(rows_of(6, 2), references, strict=True)
    ]
    losses = []
    for row, reference in zip(rows, references, strict=True):
        chosen, rejected = (one.sum() for one in logps(model, row))
        losses.append(-logsigmoid(0.3 * (chosen - rejected - reference[0] + reference[1])))
    assert_step_is(RSO(gamma=0.3), model, rows, torch.stack(losses).mean())


def test_rounds_are_of_the_start_model() -> None:
    objective = RSO(beta=0.7, num_samples=6, ranking="tournament")
    assert isinstance(objective, OnPolicy) and objective.rounds.frozen
    assert objective.rounds.select == "statistical_rejection"
    assert objective.rounds.options == {"beta": 0.7, "num_samples": 6, "ranking": "tournament"}


@pytest.mark.parametrize(
    "wrong", [{"beta": -1.0}, {"gamma": 0.0}, {"num_samples": 1}, {"ranking": "random"}, {"loss_type": "ipo"}]
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RSO(**wrong)  # type: ignore[arg-type]
