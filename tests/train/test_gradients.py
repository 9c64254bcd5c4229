"""However a step is cut into microbatches and laid out, its gradient is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.adapters import attach
from trueline.models.attention import Layout
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.lora import LoRAConfig
from trueline.objectives.base import Budget
from trueline.objectives.dpo import DPO
from trueline.objectives.next_token import NextToken
from trueline.objectives.reward import Reward
from trueline.objectives.sft import SFT
from trueline.protocols import Crew
from trueline.records import Row
from trueline.train.ranks import ALONE, Ranks
from trueline.train.step import backward, clip

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


METHODS = {"next_token": NextToken(), "sft": SFT(), "dpo": DPO(beta=0.3), "reward": Reward()}


def rows_and_model(name: str, pair_rows: Rows, make: Callable[..., Decoder]) -> tuple[list[Row], Any]:
    """Eight rows of two responses to one prompt. Pretraining predicts the prompt too; a tree must count it for both."""
    rows = with_reference(pair_rows(8))
    if name == "next_token":
        rows = [replace(row, scored=tuple(np.arange(len(ids)) > 0 for ids in row.ids)) for row in rows]
    return rows, ScalarModel(make()) if name == "reward" else make()


def measured(what: str, found: torch.Tensor, expected: torch.Tensor, limit: float = 1e-5) -> None:
    """The largest difference over the largest value: said (pytest -s shows it), then held to the limit."""
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"{what}: {difference:.2e} of the largest, at most {limit:.0e}")
    assert difference <= limit, what


class Alone(torch.nn.Module):
    """A decoder that is given one sequence at a time, whatever the layout asks for: nothing is packed, nothing shared."""

    def __init__(self, decoder: Decoder, rows: list[Row]):
        super().__init__()
        self.decoder, self.ids, self.config = decoder, [ids for row in rows for ids in row.ids], decoder.config
        self.neftune_alpha = 0.0

    token_logps = Decoder.token_logps

    @property
    def head_weight(self) -> torch.Tensor:
        return self.decoder.head_weight

    def forward(self, layout: Layout, wanted_N: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.decoder(Layout.packed([ids])) for ids in self.ids])[wanted_N]


@pytest.mark.parametrize("name", METHODS)
def test_packed_is_unpacked_is_a_tree(name: str, decoder: Callable[..., Decoder], pair_rows: Rows) -> None:
    rows, model = rows_and_model(name, pair_rows, decoder)
    ((batch,),) = METHODS[name].steps(rows, Budget(rows=8, tokens=1000))
    rows = list(batch.rows)
    packed = Layout.packed([ids for row in rows for ids in row.ids], [scored for row in rows for scored in row.scored])
    assert batch.layout.num_tokens < packed.num_tokens  # the tree does share the prompts
    flat: dict[str, torch.Tensor] = {}
    for kind, layout in (("tree", batch.layout), ("packed", packed), ("unpacked", packed)):
        model.zero_grad()
        used = Alone(model.decoder if name == "reward" else model, rows) if kind == "unpacked" else model
        if kind == "unpacked" and name == "reward":
            used, model.decoder = model, used
        METHODS[name].loss(used, replace(batch, layout=layout), Crew()).terms["loss"].backward()
        if isinstance(used, ScalarModel) and isinstance(used.decoder, Alone):
            model.decoder = used.decoder.decoder
        flat[kind] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    measured(f"{name}, gradient of packed against unpacked", flat["packed"], flat["unpacked"])
    measured(f"{name}, gradient of the tree against unpacked", flat["tree"], flat["unpacked"])


@pytest.mark.parametrize("name", METHODS)
def test_eight_microbatches_of_one_are_one_of_eight(
    name: str, decoder: Callable[..., Decoder], pair_rows: Rows
) -> None:
    """8x1 = 4x2 = 1x8, and as many as a small budget of tokens makes."""
    rows, model = rows_and_model(name, pair_rows, decoder)
    eight, metrics_eight = gradient(METHODS[name], model, rows, Budget(rows=8, tokens=1000))
    for size, tokens in ((1, 1000), (2, 1000), (8, 60)):
        some, metrics = gradient(METHODS[name], model, rows, Budget(rows=size, tokens=tokens))
        measured(f"{name}, gradient by microbatches of {size} rows and {tokens} tokens against one of 8", some, eight)
        assert metrics == pytest.approx(metrics_eight, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_activation_checkpointing_changes_no_bit(name: str, decoder: Callable[..., Decoder], pair_rows: Rows) -> None:
    rows, model = rows_and_model(name, pair_rows, decoder)
    kept, _ = gradient(METHODS[name], model, rows, Budget(rows=4, tokens=1000))
    inner = model.decoder if name == "reward" else model
    inner.activation_checkpointing = True
    calls: list[int] = []
    inner.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again, _ = gradient(METHODS[name], model, rows, Budget(rows=4, tokens=1000))
    assert len(calls) == 4  # two microbatches, each computed twice
    measured(f"{name}, gradient with recomputation against without", again, kept, 0.0)


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
        (-model.token_logps(layout).logps_N.sum() / total).backward()
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


class Part(Ranks):
    """One of two ranks that hears nothing of the other."""

    def sum_gradients(self, model: torch.nn.Module) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        return [value]


def test_noise_is_a_microbatch_s_own(decoder: Callable[..., Decoder], pair_rows: Rows) -> None:
    """NEFTune and dropout: whoever computes a microbatch, whatever was drawn before, it draws the same; another step, other noise."""
    model, objective = decoder(), SFT(neftune_noise_alpha=20.0)
    attach(model, LoRAConfig(r=4, lora_dropout=0.3))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))

    def drawn(ranks: Ranks, step_number: int = 7) -> torch.Tensor:
        model.train().zero_grad()
        (step,) = objective.steps(pair_rows(12), Budget(rows=4, tokens=1000))
        backward(objective, model, step, Crew(), False, ranks, (3, step_number))
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    whole = drawn(ALONE)
    measured("a step of three microbatches, computed by two", drawn(Part(0, 2)) + drawn(Part(1, 2)), whole)
    assert float((drawn(ALONE, 8) - whole).abs().max()) > 1e-3 * float(whole.abs().max())


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
