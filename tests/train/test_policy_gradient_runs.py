"""The policy-gradient methods through the whole loop, with the real sampler: they learn, go on bit for bit, and leave a plain model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_rollouts import prompts
from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.decoder import Decoder
from trueline.models.files import load_model, new_model
from trueline.objectives.grpo import GRPO, GroupLoss
from trueline.objectives.kl import KLPenalty
from trueline.objectives.ppo import PPO, Critic
from trueline.objectives.ptx import Pretraining
from trueline.objectives.reinforce_plus_plus import ReinforcePlusPlus
from trueline.objectives.rewards import Shaping
from trueline.objectives.rloo import RLOO
from trueline.objectives.updates import Update
from trueline.run import read_lines
from trueline.serve.engine import Engine
from trueline.tokens import Tokenizer
from trueline.train import train

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "num_generations": 4, "max_length": 32, "max_completion_length": 6, "logging_steps": 1,
    "lr_scheduler_type": "constant", "learning_rate": 1e-2, "save_steps": 0,
}  # fmt: skip


def small_letters(prompt: Any, response: Any) -> float:
    """The share of the letters of the alphabet, as a person writes them."""
    text = response[0].content
    return sum(letter.isascii() and letter.islower() for letter in text) / (1 + len(text))


class Killed(Exception):
    pass


@pytest.fixture
def go(tmp_path: Path, decoder: Callable[..., Decoder], tokenizer: Tokenizer) -> Callable[..., Path]:
    """go(objective, name, stop=0, **options) -> the run's folder; `stop` kills it at that step."""

    def run(objective: Any, name: str, stop: int = 0, **options: Any) -> Path:
        def killer(step: int, metrics: Mapping[str, float]) -> None:
            if 0 < stop <= step:
                raise Killed

        return train(
            objective, decoder(0, tokenizer.vocab_size), prompts(16), tokenizer=tokenizer, out=tmp_path / name, sinks=[killer],
            rollouts=Rollouts(Engine, judge=RuleJudge(small_letters)), **(OPTIONS | options),
        )  # fmt: skip

    return run


TWICE = Update(num_iterations=2)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(PPO(update=TWICE, values=Critic(critic="shared")), id="ppo shared"),
        pytest.param(PPO(update=TWICE, kl=KLPenalty(kl_coef=0.0)), id="ppo", marks=pytest.mark.slow),
        pytest.param(RLOO(update=TWICE, normalize_advantages=True), id="rloo", marks=pytest.mark.slow),
        pytest.param(ReinforcePlusPlus(update=TWICE), id="reinforce++", marks=pytest.mark.slow),
        pytest.param(
            GRPO(update=TWICE, group=GroupLoss(loss_type="dapo", drop_flat_groups=True), kl=KLPenalty(kl_coef=0.0)), id="grpo"
        ),
    ],
)
def test_it_learns_what_its_judge_likes(objective: Any, go: Callable[..., Path]) -> None:
    folder = go(
        objective, "run", max_steps=20, per_device_train_batch_size=16, num_generations=8, max_completion_length=2, learning_rate=2e-2
    )
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "reward" in line]
    before, after = (np.mean([line["reward"] for line in part]) for part in (lines[:2], lines[-2:]))
    assert after > 1.3 * before > 0, (before, after)
    assert lines[0]["val/ratio"] == pytest.approx(1, abs=1e-4) and lines[0]["policy/clipfrac_avg"] == 0
    assert (folder / "model.safetensors").is_file() and not (folder / "critic.safetensors").exists()
    load_model(folder)


def test_a_stopped_ppo_run_goes_on_bit_for_bit(go: Callable[..., Path], tmp_path: Path) -> None:
    """The critic, the steered coefficient, the statistics of scores and the place in the corpus are part of a checkpoint."""
    objective = PPO(
        update=Update(num_iterations=2, num_mini_batches=2), kl=KLPenalty(kl_coef=0.1, kl_target=0.5, kl_horizon=20),
        shaping=Shaping(normalize_scores=True), pretraining=Pretraining(ptx_data=str(tmp_path / "corpus.txt"), ptx_windows=1),
    )  # fmt: skip
    (tmp_path / "corpus.txt").write_text("the cat sat on a mat. " * 40, encoding="utf-8")
    options = {"max_steps": 12, "save_steps": 4, "per_device_train_batch_size": 2}
    straight = go(objective, "straight", **options)
    for stop in (6, 10):
        with pytest.raises(Killed):
            go(objective, "stopped", stop, **options)
    stopped = go(objective, "stopped", **options)
    files = sorted(path.name for path in (straight / "checkpoint-12").iterdir())
    assert "critic.safetensors" in files
    for name in files:
        assert (straight / "checkpoint-12" / name).read_bytes() == (stopped / "checkpoint-12" / name).read_bytes(), name
    memory = json.loads((straight / "checkpoint-12" / "trainer_state.json").read_bytes())["state"]["memory"]
    assert memory.keys() == {"kl_coef", "scores/count", "scores/mean", "scores/squares", "ptx/given"}
    assert memory["scores/count"] == 3 * 4 * 4 and memory["kl_coef"] != 0.1
    (first, *_), (*_, last) = (read_lines(straight / "metrics.jsonl"),) * 2
    assert memory["ptx/given"] == 3 * 4 * 4 and last["ptx/loss"] < first["ptx/loss"]
    assert first["objective/kl_coef"] == pytest.approx(0.1) and last["objective/kl_coef"] != pytest.approx(0.1)


def test_a_round_ends_early_when_the_policy_has_moved(go: Callable[..., Path]) -> None:
    folder = go(RLOO(update=Update(num_iterations=4, target_kl=1e-9)), "early", max_steps=6)
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "reward" in line] == [1, 3, 5]  # the second step finds that the first one moved it


def test_ppo_with_an_adapter(go: Callable[..., Path]) -> None:
    folder = go(PPO(update=TWICE, values=Critic(critic="shared")), "lora", max_steps=4, lora_r=2, save_steps=2)
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "checkpoint-4" / "critic.safetensors").is_file()
    events = " ".join(line["event"] for line in read_lines(folder / "events.jsonl"))
    assert "the critic is a head on the policy's own trunk" in events and "no second copy of the weights" in events


def test_a_critic_of_other_ids_is_refused(go: Callable[..., Path], decoder: Callable[..., Decoder], tmp_path: Path) -> None:
    from trueline.models.decoder import ScalarModel
    from trueline.models.files import save_model

    save_model(ScalarModel(new_model(decoder(0, 64).config)), tmp_path / "reward")
    with pytest.raises(ValueError, match="a critic reads the policy's ids"):
        go(PPO(values=Critic(critic=str(tmp_path / "reward"))), "other", max_steps=2)
