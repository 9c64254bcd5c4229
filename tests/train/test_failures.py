"""Runs that fail in the middle: what is said, what is kept, and that the same command ends where a run without the failure ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.train.test_rollouts import Scripted, prompts
from trueline.models.decoder import Decoder
from trueline.objectives.base import Batch, Losses
from trueline.objectives.dpo import DPO
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.sft import SFT
from trueline.protocols import Crew, Drawn
from trueline.records import Row
from trueline.run import read_lines
from trueline.tokens import Tokenizer
from trueline.train import train

OPTIONS: dict[str, Any] = {
    "max_steps": 5, "save_steps": 100, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_length": 64,
}  # fmt: skip
Make = Callable[..., Decoder]


@dataclass(frozen=True)
class Unreachable(Scripted):
    """From a round on the judge gives no answer."""

    rounds: list[int] = field(default_factory=list)
    fails_at: int = 0

    def draw(self, *words: Any, **more: Any) -> Drawn:
        self.rounds.append(1)
        if len(self.rounds) == self.fails_at:
            raise ValueError("the judge at http://x gave no answer in 7 tries")
        return super().draw(*words, **more)


def said(out: Path) -> list[str]:
    return [str(row["event"]) for row in read_lines(out / "events.jsonl")]


def test_a_judge_that_is_gone_costs_no_step(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    """It goes at the fourth round; the three steps before it are kept, though save_steps is far off."""

    def go(name: str, fails_at: int = 0) -> Path:
        return train(OnlineDPO(), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer, out=tmp_path / name,
                     rollouts=Unreachable(fails_at=fails_at), max_completion_length=8, **OPTIONS)  # fmt: skip

    straight = go("straight")
    with pytest.raises(ValueError, match="gave no answer in 7 tries"):
        go("cut", fails_at=4)
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-3"]
    assert said(tmp_path / "cut")[-1].endswith("checkpoint-3 is the last good checkpoint: a model, and the same command goes on from it")
    cut = go("cut")
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        assert (cut / "checkpoint-5" / name).read_bytes() == (straight / "checkpoint-5" / name).read_bytes(), name
    losses = [[row["loss"] for row in read_lines(out / "metrics.jsonl")] for out in (straight, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_a_judge_that_never_was_there_leaves_nothing_to_go_on_from(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="gave no answer"):
        train(OnlineDPO(), decoder(0, tokenizer.vocab_size), prompts(20), tokenizer=tokenizer, out=tmp_path / "run",
              rollouts=Unreachable(fails_at=1), max_completion_length=8, **OPTIONS)  # fmt: skip
    assert not list((tmp_path / "run").glob("checkpoint-*")) and "last good" not in " ".join(said(tmp_path / "run"))


@pytest.mark.parametrize("save_steps", [2, 100])
def test_weights_that_are_no_numbers_are_not_kept(save_steps: int, tmp_path: Path, decoder: Make, text_rows: Callable[..., Any]) -> None:
    """They break behind step 3: the loss of step 4 says so, and no checkpoint has them."""
    model = decoder()

    def poison(step: int, metrics: Mapping[str, float]) -> None:
        if step == 3:
            with torch.no_grad():
                next(model.parameters())[0, 0] = float("nan")

    with pytest.raises(ValueError, match=r"step 4 has loss nan .*: not taken; its rows are in .*nonfinite-step-4\.json; .*learning_rate"):
        train(SFT(), model, text_rows(20), out=tmp_path / "run", sinks=[poison], **(OPTIONS | {"save_steps": save_steps}))
    kept = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    last = said(tmp_path / "run")[-1]
    assert kept == (["checkpoint-2"] if save_steps == 2 else [])
    assert "checkpoint-2 is the last good checkpoint" in last if kept else "no checkpoint was saved before step 3" in last


class BrokenReference:
    """Knows nothing of one row."""

    fingerprint = "broken"

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        return [np.full(2, np.nan if row.key == "pair-7" else -5.0, np.float32) for row in rows]


def test_a_loss_that_is_no_number_keeps_the_weights_before_it(tmp_path: Path, decoder: Make, pair_rows: Callable[..., Any]) -> None:
    """The weights are whole: one row is not. The step before it is a checkpoint."""
    with pytest.raises(ValueError, match=r"step [2-5] has loss nan") as caught:
        train(DPO(), decoder(), pair_rows(20), out=tmp_path / "run", crew=Crew(reference=BrokenReference()), seed=1, **OPTIONS)
    (kept,) = (tmp_path / "run").glob("checkpoint-*")
    assert int(kept.name[-1]) == int(str(caught.value).split()[1]) - 1
    assert f"{kept} is the last good checkpoint" in said(tmp_path / "run")[-1]


@pytest.mark.parametrize("noise", ["neftune", "dropout"])
def test_noise_of_a_step_that_failed_is_drawn_again(noise: str, tmp_path: Path, decoder: Make, text_rows: Callable[..., Any]) -> None:
    """Its noise or dropout is drawn when the loss breaks; both depend on seed and step alone, so the run ends bit for bit the same."""

    class Breaks(SFT):
        seen: ClassVar[list[int]] = []

        def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
            found = super().loss(model, batch, crew)
            self.seen.append(1)
            if len(self.seen) == 3:
                raise ValueError("the third breaks")
            return found

    def go(objective: SFT, name: str) -> Path:
        more: dict[str, Any] = {"lora_r": 2, "lora_dropout": 0.5} if noise == "dropout" else {}
        return train(objective, decoder(), text_rows(20), out=tmp_path / name, **OPTIONS, **more)

    alpha = 5.0 if noise == "neftune" else 0.0
    straight = go(SFT(neftune_noise_alpha=alpha), "straight")
    broken = Breaks(neftune_noise_alpha=alpha)
    with pytest.raises(ValueError, match="the third breaks"):
        go(broken, "cut")
    cut = go(broken, "cut")
    for name in ("optimizer.safetensors",):
        assert (cut / "checkpoint-5" / name).read_bytes() == (straight / "checkpoint-5" / name).read_bytes(), name
