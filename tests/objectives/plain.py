"""Methods once more, the plain way: one sequence at a time, no layouts, no trees; and a model and rows to do it on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.objectives.base import Budget
from trueline.protocols import Crew
from trueline.records import Row
from trueline.train.step import backward

VOCAB = 64


def decoder(seed: int = 0) -> Decoder:
    """20,000 random parameters."""
    return new_model(
        DecoderConfig(
            model_type="qwen3", vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, qk_norm=True, tie_word_embeddings=True,
            pad_token_id=0, eos_token_id=1,
        ),
        seed,
    )  # fmt: skip


def rows_of(count: int, K: int, seed: int = 0) -> list[Row]:
    """`count` prompts of 3 to 8 tokens with K responses of 2 to 7."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        prompt = rng.integers(2, VOCAB, int(rng.integers(3, 9)))
        answers = [rng.integers(2, VOCAB, int(rng.integers(1, 7))) for _ in range(K)]
        ids = tuple(np.concatenate([prompt, answer, [1]]).astype(np.int32) for answer in answers)
        scored = tuple(np.arange(len(x)) >= len(prompt) for x in ids)
        rows.append(Row(ids=ids, scored=scored, key=f"row-{number}"))
    return rows


def token_logps(model: Decoder, ids: np.ndarray, scored: np.ndarray) -> Tensor:
    """log p of each scored token of one sequence, by the model's logits and torch's own softmax."""
    logps_LV = torch.log_softmax(model.logits(torch.from_numpy(ids.astype(np.int64)))[:-1], -1)
    picked_L = logps_LV.gather(1, torch.from_numpy(ids[1:].astype(np.int64))[:, None]).squeeze(1)
    return picked_L[torch.from_numpy(scored[1:])]


def logps(model: Decoder, row: Row) -> list[Tensor]:
    """The same for all sequences of a row."""
    return [token_logps(model, ids, scored) for ids, scored in zip(row.ids, row.scored, strict=True)]


def flat_gradient(model: nn.Module) -> np.ndarray:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy()


def trained(objective: Any, model: nn.Module, rows: Sequence[Row], size: int) -> tuple[np.ndarray, Mapping[str, float]]:
    """Gradient and metrics of one optimizer step over the rows, in microbatches of `size`, as the loop computes them."""
    model.zero_grad()
    (step,) = objective.steps(rows, Budget(rows=size, tokens=1000))
    sums = backward(objective, model, step, Crew(), bf16=False)
    return flat_gradient(model), {name: total / count for name, (total, count) in sums.items() if count}


def assert_step_is(objective: Any, model: nn.Module, rows: Sequence[Row], plain: Tensor) -> Mapping[str, float]:
    """The loop's loss and gradient equal those of the plain formula to 2e-5, in one microbatch and in many."""
    model.zero_grad()
    plain.backward()
    expected = flat_gradient(model)
    for size in (len(rows), 2, 1):
        found, means = trained(objective, model, rows, size)
        assert math.isclose(means["loss"], plain.item(), rel_tol=2e-5)
        worst = float(np.abs(found - expected).max() / np.abs(expected).max())
        assert worst <= 2e-5, f"microbatches of {size}: gradients differ by {worst:.1e} of the largest"
    return means


class Listed(nn.Module):
    """A policy whose response k (one token, k) has the logit that a table says; it sees no prompt."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def token_logps(self, layout: Any) -> Any:
        return SimpleNamespace(logps_N=torch.log_softmax(self.logits, 0)[layout.targets_N])


def listed(ks: Sequence[int], key: str = "", prompt: int = 0, **numbers: Sequence[float]) -> Row:
    """A row of these one-token responses."""
    return Row(
        ids=tuple(np.array([prompt, k], dtype=np.int32) for k in ks),
        scored=(np.array([False, True]),) * len(ks),
        key=key,
        numbers={name: np.array(value, dtype=np.float32) for name, value in numbers.items()},
    )


def loss_of(objective: Any, model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
    """The mean loss of one microbatch of all rows, with gradient, and its metrics."""
    (step,) = objective.steps(rows, Budget(rows=10**6, tokens=10**9))
    with torch.no_grad():
        (batch,) = objective.prepare(model, step)
    losses = objective.loss(model, batch, Crew())
    means = {name: float(total) / count for name, (total, count) in losses.metrics.items() if count}
    return losses.terms["loss"] / (batch.weights["loss"] or 1.0), means
