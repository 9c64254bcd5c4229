"""A checkpoint is there whole or not at all, and brings everything back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.models.files import save_model
from trueline.records import Row
from trueline.train.checkpoint import (
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from trueline.train.config import OptimConfig
from trueline.train.optim import adamw
from trueline.train.state import TrainState

Saved = tuple[Decoder, torch.optim.Optimizer]


@pytest.fixture
def trained(decoder: Callable[..., Decoder], text_rows: Callable[..., list[Row]]) -> Saved:
    model = decoder()
    optimizer = adamw(model, OptimConfig())
    model(Layout.packed([row.ids[0] for row in text_rows(2)])).square().sum().backward()
    optimizer.step()
    return model, optimizer


def write(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Decoder)
    save_model(model, folder)


def save(folder: Path, trained: Saved, step: int) -> Path:
    state = TrainState(step=step, total_steps=99, window={"loss": (0.1 + 0.2, 3.0)}, best_metric=1 / 3, best_step=1)
    return save_checkpoint(folder, *trained, state, {"given": 7 * step}, write)


def test_state_and_generators_come_back(tmp_path: Path, trained: Saved) -> None:
    path = save(tmp_path, trained, 5)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(123)
    state, feed = load_checkpoint(path, *trained)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
    assert feed == {"given": 35} and state.step == 5
    assert state.window == {"loss": (0.1 + 0.2, 3.0)} and state.best_metric == 1 / 3  # to the last bit


@pytest.mark.parametrize("file", ["optimizer.safetensors", "model.safetensors", "trainer_state.json", "complete.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_an_incomplete_one_is_passed_over(tmp_path: Path, trained: Saved, file: str, damage: str) -> None:
    save(tmp_path, trained, 5)
    newest = save(tmp_path, trained, 10) / file
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[:-7])
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "checkpoint-5"
    assert said == [f"{tmp_path / 'checkpoint-10'} is incomplete or damaged: passed over"]


def test_a_failure_while_writing_leaves_the_one_before(tmp_path: Path, trained: Saved) -> None:
    save(tmp_path, trained, 5)

    def full(model: nn.Module, folder: Path) -> None:
        write(model, folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, *trained, TrainState(step=10), {}, full)
    assert [step for step, _ in checkpoints(tmp_path)] == [5]
    save(tmp_path, trained, 15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-15", "checkpoint-5"]


def test_the_best_one_survives_pruning(tmp_path: Path, trained: Saved) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, trained, step)
    prune_checkpoints(tmp_path, 0, best_step=1, newest=4)
    assert len(checkpoints(tmp_path)) == 4
    prune_checkpoints(tmp_path, 2, best_step=1, newest=4)
    assert [step for step, _ in checkpoints(tmp_path)] == [4, 3, 1]


def test_a_damaged_newer_one_does_not_push_out_what_is_saved(tmp_path: Path, trained: Saved) -> None:
    """A run that passed over checkpoint-5 as damaged and went on from step 1 keeps what it saves."""
    for step in (1, 5, 2):
        save(tmp_path, trained, step)
    prune_checkpoints(tmp_path, 1, best_step=0, newest=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [2]
