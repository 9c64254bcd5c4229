"""Closed form: on an enumerable response space sigmoid DPO ends at pi_ref exp(r/beta)/Z (Rafailov et al. 2023, section 4).

The world is that of recipes/oracle_world.py: every response of up to 3 letters, a policy as a table of logits. Here the minimum is
found by L-BFGS with the objective's own loss, to a tighter bound than the recipe's fixed number of updates.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trueline.evals.oracle import gibbs, total_variation
from trueline.objectives.base import Budget
from trueline.objectives.dpo import DPO
from trueline.protocols import Crew
from trueline.records import Row

BUDGET = Budget(rows=10**6, tokens=10**9)
BETA = 0.5


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("recipes.oracle")


@pytest.fixture
def world(oracle: Any) -> Any:
    """One prompt, 15 responses."""
    return oracle.make_world("smooth", 5, prompts=1)


def fit(oracle: Any, world: Any, rows: list[Row], iterations: int = 300) -> np.ndarray:
    """The policy at the minimum of the objective over all rows, found with its own steps and loss."""
    objective, policy = DPO(beta=BETA), oracle.Table(world)
    crew = Crew(reference=oracle.TablePolicy(world, policy.token_table()))
    (step,) = objective.steps(objective.annotate(rows, crew), BUDGET)
    total = sum(batch.weights["loss"] for batch in step)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=iterations, history_size=50, tolerance_grad=1e-9,
                                  tolerance_change=1e-12, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((objective.loss(policy, batch, crew).terms["loss"] for batch in step), torch.zeros(())) / total
        loss.backward()
        return loss

    optimizer.step(closure)
    return policy.probs()


def test_exact_preferences_lead_to_the_optimum(oracle: Any, world: Any) -> None:
    best = gibbs(world.reference_PV, world.reward_PV, BETA)
    assert total_variation(world.reference_PV, best) > 0.1
    assert total_variation(fit(oracle, world, oracle.everything(world)), best) < 1e-3


def test_drawn_labels_lead_near_the_optimum(oracle: Any, world: Any) -> None:
    """All pairs equally often, 200,000 labels."""
    rows = oracle.drawn_pairs(world, np.full_like(world.reference_PV, 1 / 15), count=200_000)
    assert total_variation(fit(oracle, world, rows), gibbs(world.reference_PV, world.reward_PV, BETA)) < 0.02
