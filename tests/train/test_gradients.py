"""However a step is cut into microbatches and laid out, its gradient is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.head import token_logps
from trueline.objectives.base import Budget
from trueline.objectives.dpo import DPO
from trueline.objectives.next_token import NextToken
from trueline.objectives.reward import Reward
from trueline.objectives.sft import SFT
from trueline.protocols import Crew
from trueline.records import Row
from trueline.train.loop import backward, clip

Rows = Callable[..., list[Row]]


def gradient(
    objective: Any, model: torch.nn.Module, rows: list[Row], budget: Budget
) -> tuple[torch.Tensor, dict[str, float]]:
    model.zero_grad()
    (step,) = objective.steps(rows, budget)
    sums = backward(objective, model, step, Crew(), bf16=False)
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return flat, {name: total / count for name, (total, count) in sums.items() if count}


def with_reference(rows: list[Row]) -> list[Row]:
    rng = np.random.default_rng(3)
    return [replace(row, numbers={"reference_logps": rng.normal(-20, 1, 2).astype(np.float32)}) for row in rows]


@pytest.mark.parametrize("name", ["next_token", "sft", "dpo", "reward"])
def test_eight_microbatches_of_one_are_one_of_eight(
    name: str, decoder: Callable[..., Decoder], text_rows: Rows, pair_rows: Rows
) -> None:
    objective = {"next_token": NextToken(), "sft": SFT(), "dpo": DPO(beta=0.3), "reward": Reward()}[name]
    rows = text_rows(8) if name in ("next_token", "sft") else with_reference(pair_rows(8))
    model = ScalarModel(decoder()) if name == "reward" else decoder()
    one, metrics_one = gradient(objective, model, rows, Budget(rows=1, tokens=1000))
    eight, metrics_eight = gradient(objective, model, rows, Budget(rows=8, tokens=1000))
    some, _ = gradient(objective, model, rows, Budget(rows=8, tokens=40))
    scale = eight.abs().max()
    assert (one - eight).abs().max() <= 1e-5 * scale and (some - eight).abs().max() <= 1e-5 * scale
    assert metrics_one == pytest.approx(metrics_eight, rel=1e-5)


def test_microbatches_keep_every_row_within_the_budget(pair_rows: Rows) -> None:
    rows = pair_rows(30)
    (step,) = DPO().steps(rows, Budget(rows=4, tokens=60))
    assert all(batch.layout.num_tokens <= 60 and len(batch.rows) <= 4 for batch in step)
    assert sorted(row.key for batch in step for row in batch.rows) == sorted(row.key for row in rows)
    assert sum(batch.weights["loss"] for batch in step) == 30


def test_a_row_above_the_budget_is_named(text_rows: Rows) -> None:
    with pytest.raises(ValueError, match=r"row text-\d takes \d+ token positions and max_tokens_per_batch is 4"):
        list(NextToken().steps(text_rows(3), Budget(rows=8, tokens=4)))


def test_packed_equals_one_by_one(decoder: Callable[..., Decoder], text_rows: Rows) -> None:
    rows, model = text_rows(6), decoder()
    packed, _ = gradient(NextToken(), model, rows, Budget(rows=6, tokens=1000))
    model.zero_grad()
    total = sum(int(row.scored[0].sum()) for row in rows)
    for row in rows:
        layout = Layout.packed(row.ids, row.scored)
        (-token_logps(model(layout), model.head_weight, layout).logps_N.sum() / total).backward()
    alone = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (packed - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_dpo_by_the_trees_equals_the_formula_on_separate_sequences(
    decoder: Callable[..., Decoder], pair_rows: Rows
) -> None:
    rows, model = with_reference(pair_rows(5)), decoder()
    tree, metrics = gradient(DPO(beta=0.3), model, rows, Budget(rows=5, tokens=1000))
    model.zero_grad()
    losses = []
    for row in rows:
        logps = []
        for ids, scored in zip(row.ids, row.scored, strict=True):
            logits = torch.log_softmax(model.logits(torch.from_numpy(ids.astype(np.int64)))[:-1], -1)
            picked = logits.gather(1, torch.from_numpy(ids[1:].astype(np.int64))[:, None]).squeeze(1)
            logps.append(picked[torch.from_numpy(scored[1:])].sum())
        reference = row.numbers["reference_logps"]
        h = (logps[0] - logps[1]) - float(reference[0] - reference[1])
        losses.append(-torch.nn.functional.logsigmoid(0.3 * h))
    mean = torch.stack(losses).mean()
    mean.backward()
    alone = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert metrics["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert (tree - alone).abs().max() <= 2e-5 * alone.abs().max()


def test_a_step_without_any_weight_changes_nothing(decoder: Callable[..., Decoder], pair_rows: Rows) -> None:
    rows = [
        replace(row, numbers={**row.numbers, "counts": np.zeros(2, np.float32)}) for row in with_reference(pair_rows(2))
    ]
    flat, means = gradient(DPO(), decoder(), rows, Budget(rows=2, tokens=1000))
    assert flat.abs().max() == 0 and means["loss"] == 0


def test_clipping_scales_to_the_limit_and_tells_the_norm_before(decoder: Callable[..., Decoder]) -> None:
    model = decoder()

    def norm_after(limit: float) -> float:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = sum(parameter.numel() for parameter in model.parameters()) ** 0.5
        assert clip(model, limit) == pytest.approx(before, rel=1e-5)
        return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()) / before

    assert norm_after(0.5) == pytest.approx(0.5 / sum(p.numel() for p in model.parameters()) ** 0.5, rel=1e-4)
    assert norm_after(0) == norm_after(1e9) == pytest.approx(1)


def test_neftune_makes_noise_in_training_only(decoder: Callable[..., Decoder], text_rows: Rows) -> None:
    model, objective = decoder(), SFT(neftune_noise_alpha=20.0)
    (step,) = objective.steps(text_rows(4), Budget(rows=4, tokens=1000))
    (batch,) = objective.prepare(model, step)

    def loss() -> float:
        return objective.loss(model, batch, Crew()).terms["loss"].item()

    model.train()
    assert loss() != loss()
    model.eval()
    assert loss() == loss()
