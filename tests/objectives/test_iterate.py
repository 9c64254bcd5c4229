"""Iterate: what its rounds say, whose choices are refused, and that a pair's loss is DPO's with a fixed reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.objectives.plain import decoder, logps, rows_of
from trueline.models.scorer import PolicyScorer
from trueline.objectives.base import Budget
from trueline.objectives.iterate import Exploration, Iterate
from trueline.objectives.rounds import OnPolicy, Second
from trueline.protocols import Crew


def test_rounds_with_and_without_an_enhancer() -> None:
    plain, reference = Iterate(exploration=Exploration(margin=0.5)), Iterate(exploration=Exploration(enhancer="reference"))
    assert isinstance(plain, OnPolicy) and plain.rounds.select == "best_vs_worst" and plain.rounds.options == {"margin": 0.5}
    assert plain.rounds.second is None and not plain.rounds.asks_reference and plain.rounds.steps == 32
    assert reference.rounds.select == "main_vs_enhancer" and reference.rounds.second == Second("reference")
    assert reference.rounds.asks_reference and not reference.rounds.frozen
    hot = Iterate(exploration=Exploration(enhancer="policy", enhancer_temperature=1.5)).rounds
    assert hot.second == Second("policy", 1.5) and not hot.asks_reference


@pytest.mark.parametrize(
    "wrong", [{"enhancer": "older"}, {"enhancer": "policy", "enhancer_temperature": -1.0}, {"enhancer_temperature": 1.2}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="enhancer"):
        Exploration(**wrong)
    with pytest.raises(ValueError, match="batches is 0"):
        Iterate(batches=0)


def test_the_loss_is_that_of_cdpo_and_kl_is_told_where_one_policy_drew() -> None:
    """- (1 - e) log sigma(b h) - e log sigma(-b h), the mean over pairs, from log-probabilities computed plainly."""
    model, reference = decoder(0), decoder(1)
    rows = []
    for row in rows_of(3, 2):
        drawn = tuple(np.zeros(int(scored_L.sum()), np.float32) for scored_L in row.scored)
        rows.append(replace(row, numbers={"temperature": np.ones(2, np.float32)}, tokens={"logps": drawn}))
    crew, expected = Crew(reference=PolicyScorer(reference)), []
    with torch.no_grad():
        for row in rows:
            (a, b), (c, d) = ([one.sum() for one in logps(each, row)] for each in (model, reference))
            h = 0.1 * (a - b - c + d)
            expected.append(-(0.9 * torch.nn.functional.logsigmoid(h) + 0.1 * torch.nn.functional.logsigmoid(-h)))
    for objective in (Iterate(batches=1), Iterate(batches=1, exploration=Exploration(enhancer="reference"))):
        (batch,) = next(objective.steps(objective.annotate(rows, crew), Budget(rows=9, tokens=999)))
        losses = objective.loss(model, batch, crew)
        assert float(losses.terms["loss"].detach()) / 3 == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
        assert ("objective/kl" in losses.metrics) == (objective.exploration.second is None)
