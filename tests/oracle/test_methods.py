"""Every method ends at its optimum: at pi* where that is its optimum, else where its paper's formula is least."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.evals.oracle import gibbs, total_variation
from trueline.objectives.dpo import DPO

sys.path.insert(0, str(Path(__file__).parents[2]))
METHODS = {method.name: method for method in importlib.import_module("recipes.oracle").methods()}
sys.path.pop(0)


FAST = ("sft, draws of pi*", "dpo", "kto", "rloo")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in METHODS]
)
def test_a_method_ends_at_its_optimum(oracle: Any, small: Any, name: str) -> None:
    found = oracle.main.measured(METHODS[name], small, 150)
    assert METHODS[name].bound is None or found["own"] <= METHODS[name].bound
    assert METHODS[name].left is None or found["left"] <= METHODS[name].left


def test_the_comparison_can_fail(oracle: Any, small: Any) -> None:
    """Half the pull to the reference: far from pi*."""
    wrong = replace(METHODS["dpo"], objective=DPO(beta=oracle.main.BETA / 2))
    assert oracle.main.measured(wrong, small, 150)["own"] > 0.1


def test_optima_have_no_gradient_left_and_ipo_s_is_its_closed_form(oracle: Any, small: Any) -> None:
    """IPO over all pairs is a least-squares problem: log pi / pi_ref = mean over the others of (2 p - 1) / (2 beta), centred."""
    optima, beta = oracle.optima, oracle.main.BETA
    rows = oracle.main.everything(small)
    pairs = optima.pairs_in(small, rows)
    found_PV = optima.minimum(small, optima.ipo(small, pairs, beta))
    preferred_PVV = 1 / (1 + np.exp(small.reward_PV[:, None, :] - small.reward_PV[:, :, None]))
    h_PV = ((2 * preferred_PVV - 1) / (2 * beta)).mean(2)
    closed_PV = small.reference_PV * np.exp(h_PV)
    assert total_variation(found_PV, closed_PV / closed_PV.sum(1, keepdims=True)) < 1e-5
    for loss in (optima.dpo(small, pairs, beta), optima.simpo(small, pairs, 2.0, 1.0), optima.orpo(small, pairs, 0.1)):
        logits = torch.from_numpy(np.log(optima.minimum(small, loss))).requires_grad_()
        loss(torch.log_softmax(logits, 1)).backward()
        assert float(logits.grad.abs().max()) < 1e-5


def test_a_kl_loss_on_drawn_tokens_ends_elsewhere(oracle: Any, small: Any) -> None:
    """Found by following the expected gradient = the closed form, state by state; pi* where a response is one token."""
    beta, optima = oracle.main.BETA, oracle.optima
    best_PV = gibbs(small.reference_PV, small.reward_PV, beta)
    found_PV = optima.group_relative(small, beta, estimator="k2", draws=10**9)
    assert total_variation(found_PV, optima.tilted_by_state(small, beta)) < 1e-3
    assert total_variation(found_PV, best_PV) > 0.02
    short = oracle.world.make_world("smooth", 3, prompts=2, longest=1)
    short_PV = gibbs(short.reference_PV, short.reward_PV, beta)
    assert total_variation(optima.tilted_by_state(short, beta), short_PV) < 1e-9
    assert total_variation(optima.penalised_reward(small, beta, estimator="k1"), best_PV) < 1e-3
    assert total_variation(optima.penalised_reward(small, beta, estimator="k3"), best_PV) > 0.02


def test_exact_preferences_are_those_of_the_reward(oracle: Any, small: Any) -> None:
    best_PV = gibbs(small.reference_PV, small.reward_PV, oracle.main.BETA)
    for rows in (oracle.main.everything(small), oracle.main.flipped(small, 0.0)):
        pairs = oracle.optima.pairs_in(small, rows)
        found_PV = oracle.optima.minimum(small, oracle.optima.dpo(small, pairs, oracle.main.BETA))
        assert total_variation(found_PV, best_PV) < 1e-4


def test_cells_are_kept(oracle: Any, tmp_path: Path) -> None:
    first = oracle.main.run(tmp_path, seeds=2, updates=2, only=("ipo",))
    files = sorted((tmp_path / "cells").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2 and oracle.main.run(tmp_path, seeds=2, updates=2, only=("ipo",)) == first
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert "seed 0: TV to own optimum" in first, "two updates are too few, and it says so"
