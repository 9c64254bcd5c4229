"""RAFT: its loss is supervised tuning's, its rounds keep the best response of each prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.objectives.plain import Listed, assert_step_is, decoder, listed, logps, rows_of
from trueline.objectives.base import Budget
from trueline.objectives.raft import RAFT
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Crew
from trueline.records import Row


def rewarded(rows: list[Row]) -> list[Row]:
    return [replace(row, numbers={"reward": np.array([k], np.float32)}) for k, row in enumerate(rows)]


def test_the_loop_computes_the_formula() -> None:
    """Every kept token counts the same, however long its response is; the kept rewards are logged."""
    rows, model = rewarded(rows_of(6, 1)), decoder()
    tokens = torch.cat([one for row in rows for one in logps(model, row)])
    means = assert_step_is(RAFT(num_mini_batches=1), model, rows, -tokens.mean())
    assert means["rewards/chosen"] == pytest.approx(2.5) and 0 <= means["mean_token_accuracy"] <= 1


def test_it_pulls_to_what_was_kept() -> None:
    policy, objective = Listed([0.0] * 4), RAFT(num_mini_batches=1)
    (row,) = rewarded([listed([2])])
    scores = policy.token_logps

    def token_logps(layout: object, equal_weights: bool = False) -> object:
        found = scores(layout)
        found.correct_N, found.entropy_N = torch.ones(1, dtype=torch.bool), torch.zeros(1)
        return found

    policy.token_logps = token_logps  # type: ignore[method-assign, assignment]
    ((batch,),) = objective.steps([row], Budget(rows=1, tokens=100))
    objective.loss(policy, batch, Crew()).terms["loss"].backward()
    assert policy.logits.grad is not None and policy.logits.grad.tolist() == pytest.approx([0.25, 0.25, -0.75, 0.25])


def test_a_round_is_dealt_out_to_its_steps() -> None:
    objective, rows = RAFT(num_mini_batches=3, num_iterations=2), rewarded(rows_of(7, 1))
    assert isinstance(objective, OnPolicy) and objective.rounds.select == "best_of_n" and not objective.rounds.frozen
    steps = list(objective.steps(rows, Budget(rows=8, tokens=1000)))
    assert [sum(len(batch.rows) for batch in step) for step in steps] == [3, 2, 2, 3, 2, 2]


@pytest.mark.parametrize("wrong", [{"num_mini_batches": 0}, {"num_iterations": 0}])
def test_nonsense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RAFT(**wrong)
