"""What a run does beside taking steps: logs, evaluates, keeps the best, stops, draws samples, refuses what is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.decoder import Decoder
from trueline.models.files import load_model
from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.next_token import NextToken
from trueline.protocols import Crew
from trueline.records import Row
from trueline.run import read_lines
from trueline.train import train
from trueline.train.config import EvalConfig
from trueline.train.state import TrainState
from trueline.train.step import backward, following

Rows = Callable[..., list[Row]]
Make = Callable[..., Decoder]


def test_a_run_learns_and_logs_the_usual_names(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    rows = text_rows(40)
    out = train(NextToken(), decoder(), rows, out=tmp_path / "run", eval_rows=text_rows(10, seed=5), max_steps=20,
                learning_rate=3e-3, eval_steps=10, logging_steps=5, sample_steps=10,
                draw=lambda model: [{"prompt": "a", "response": str(model.training)}])  # fmt: skip
    metrics = read_lines(out / "metrics.jsonl")
    trained = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in trained] == [5, 10, 15, 20]
    names = "loss mean_token_accuracy entropy grad_norm learning_rate epoch num_tokens tokens_per_second"
    assert set(names.split()) <= set(trained[0])
    assert trained[0]["loss"] > trained[-1]["loss"] and trained[-1]["epoch"] == 4.0
    assert trained[-1]["num_tokens"] == 4 * sum(row.num_tokens for row in rows)
    evaluated = [row for row in metrics if "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [10, 20] and evaluated[1]["eval_loss"] < math.log(64)
    assert [row["response"] for row in read_lines(out / "samples.jsonl")] == [
        "False",
        "False",
    ]  # drawn in evaluation mode
    assert "| eval_loss |" in (out / "README.md").read_text()
    assert json.loads((out / "finished.json").read_text())["eval_loss"] == evaluated[1]["eval_loss"]


def test_accumulated_microbatches_end_at_the_same_weights(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    def run(name: str, **options: Any) -> dict[str, torch.Tensor]:
        rows = text_rows(40)
        out = train(
            NextToken(), decoder(), rows, out=tmp_path / name, max_steps=6, learning_rate=1e-3, save_steps=0, **options
        )
        return load_model(out).state_dict()

    whole = run("whole", per_device_train_batch_size=8)
    pieces = run("pieces", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    few = run("few", per_device_train_batch_size=8, max_tokens_per_batch=60, gradient_checkpointing=True)
    for other in (pieces, few):
        assert all(torch.allclose(whole[name], other[name], atol=2e-5) for name in whole)


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    """A learning rate that ruins the model after a while: the last step is not the best."""
    out = train(Ruined(), decoder(), text_rows(30), out=tmp_path / "run", eval_rows=text_rows(8, seed=4), max_steps=24, learning_rate=3e-3,
                lr_scheduler_type="constant", eval_steps=4, save_steps=4, save_total_limit=1, load_best_model_at_end=True)  # fmt: skip
    metrics = {row["step"]: row["eval_loss"] for row in read_lines(out / "metrics.jsonl") if "eval_loss" in row}
    best = min(metrics, key=lambda step: metrics[step])
    assert 4 <= best < 24
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-24"}
    assert (out / "model.safetensors").read_bytes() == (out / f"checkpoint-{best}" / "model.safetensors").read_bytes()


def test_early_stopping_ends_the_run(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    out = train(Ruined(), decoder(), text_rows(30), out=tmp_path / "run", eval_rows=text_rows(8, seed=4), max_steps=100, learning_rate=3e-3,
                lr_scheduler_type="constant", eval_steps=4, save_steps=0, early_stopping_patience=2)  # fmt: skip
    steps = [row["step"] for row in read_lines(out / "metrics.jsonl") if "eval_loss" in row]
    best = json.loads((out / "finished.json").read_text())
    assert best["steps"] == steps[-1] < 100
    assert any("early" in row["event"] for row in read_lines(out / "events.jsonl"))


def test_early_stopping_logs_the_steps_since_the_last_line(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    out = train(Ruined(), decoder(), text_rows(30), out=tmp_path / "run", eval_rows=text_rows(8, seed=4), max_steps=100, learning_rate=3e-3,
                lr_scheduler_type="constant", eval_steps=4, logging_steps=9, save_steps=0, early_stopping_patience=2)  # fmt: skip
    end = json.loads((out / "finished.json").read_text())["steps"]
    assert end % 9, "the last window is a part of one"
    last = [row for row in read_lines(out / "metrics.jsonl") if "loss" in row][-1]
    assert last["step"] == end and {"grad_norm", "learning_rate", "epoch", "num_tokens"} <= set(last)


@dataclass(frozen=True)
class Ruined(NextToken):
    """Next-token prediction that unlearns after 12 steps of 8 rows."""

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        losses = super().loss(model, batch, crew)
        model.seen = getattr(model, "seen", 0) + model.training
        return (
            losses
            if model.seen <= 12
            else Losses({"loss": -losses.terms["loss"]} if model.training else losses.terms, losses.metrics)
        )


def test_patience_counts_evaluations_without_gain() -> None:
    state, config = (
        TrainState(total_steps=100),
        EvalConfig(early_stopping_patience=2, metric_for_best_model="eval_accuracy"),
    )
    gains = []
    for step, value in enumerate([0.5, 0.6, 0.6, 0.55], 1):
        state.step = step
        gains.append(state.note_evaluation({"eval_accuracy": value}, config))
    assert gains == [True, True, False, False] and state.best_step == 2 and state.stopped_early and state.ended
    with pytest.raises(ValueError, match="metric_for_best_model is 'eval_accuracy', and an evaluation gives eval_loss"):
        state.note_evaluation({"eval_loss": 1.0}, config)
    short = EvalConfig(metric_for_best_model="loss")  # as in transformers
    assert not short.maximize and TrainState().note_evaluation({"eval_loss": 1.0}, short)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"step 1 has loss nan .*; its rows are in .*nonfinite-step-1\.json"):
        train(NextToken(), model, text_rows(8), out=tmp_path / "run", max_steps=3)
    kept = json.loads((tmp_path / "run" / "nonfinite-step-1.json").read_text())
    assert sorted(row["key"] for row in kept) == sorted(row.key for row in text_rows(8))
    assert not (tmp_path / "run" / "finished.json").exists()


def test_bf16_is_close_to_float32_and_keeps_float32_weights(tmp_path: Path, decoder: Make, text_rows: Rows) -> None:
    losses = {}
    for bf16 in (False, True):
        out = train(NextToken(), decoder(), text_rows(16), out=tmp_path / str(bf16), max_steps=6, learning_rate=3e-3,
                    bf16=bf16, save_steps=0, logging_steps=1)  # fmt: skip
        assert {value.dtype for value in load_model(out).state_dict().values()} == {torch.float32}
        losses[bf16] = np.array([row["loss"] for row in read_lines(out / "metrics.jsonl")])
    assert losses[False][0] - losses[False][-1] > 0.1  # it learns
    gap = np.abs(losses[True] - losses[False])
    assert 0 < gap.max() < 0.02


def test_prepare_under_autocast_costs_no_gradient(decoder: Make, text_rows: Rows) -> None:
    """A forward without gradient comes first; modules then use autocast's casts of weights."""

    class Looks(NextToken):
        def prepare(self, model: Any, step: list[Batch]) -> list[Batch]:
            model(step[0].layout)
            return step

    gradients = []
    for objective in (NextToken(), Looks()):
        model = decoder()
        model.fused = False
        (step,) = objective.steps(text_rows(4), Budget(rows=4, tokens=1000))
        backward(objective, model, step, Crew(), bf16=True)
        gradients.append(model.layers[0].mlp.up_proj.weight.grad)
    assert gradients[0] is not None and gradients[1] is not None and torch.equal(*gradients)


def test_steps_may_come_from_a_list_or_listen() -> None:
    heard: list[object] = []

    def listening() -> Iterator[list[Batch]]:
        heard.append((yield []))

    def from_a_list() -> Iterator[list[Batch]]:
        yield from [[], []]
        yield from listening()

    sums = {"loss": (1.0, 1.0)}
    steps = from_a_list()
    assert [next(steps), following(steps, sums), following(steps, sums)] == [[], [], []] and not heard
    assert following(steps, sums) is None and heard == [sums]
    assert following(iter([[]]), sums) == []
