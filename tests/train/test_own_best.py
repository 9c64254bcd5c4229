"""RSO, RAFT and iterate through the whole loop, with the real sampler: who draws, and that the policy learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_rollouts import prompts
from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.decoder import Decoder
from trueline.objectives.iterate import Exploration, Iterate
from trueline.objectives.raft import RAFT
from trueline.objectives.rso import RSO
from trueline.records import Messages
from trueline.run import read_lines
from trueline.serve.engine import Engine
from trueline.tokens import Tokenizer
from trueline.train import train

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "num_generations": 6, "max_length": 32, "max_completion_length": 6, "logging_steps": 1,
    "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1.0,
}  # fmt: skip


class Heard:
    """A rule that keeps what it was asked: the share of the letter e, and a little for length so that few are tied."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, prompt: Messages, response: Messages) -> float:
        text = response[0].content
        self.texts.append(text)
        return text.count("e") / (1 + len(text)) + 0.001 * len(text)


@pytest.fixture
def run(
    tmp_path: Path, decoder: Callable[..., Decoder], tokenizer: Tokenizer
) -> Iterator[Callable[..., tuple[Path, list[str]]]]:
    """run(objective, name, **options) -> the run's folder, and all responses in the order that they were judged."""

    def go(objective: Any, name: str, **options: Any) -> tuple[Path, list[str]]:
        rule = Heard()
        folder = train(
            objective, decoder(0, tokenizer.vocab_size), prompts(16), tokenizer=tokenizer, out=tmp_path / name,
            rollouts=Rollouts(Engine, judge=RuleJudge(rule)), **(OPTIONS | options),
        )  # fmt: skip
        return folder, rule.texts

    yield go


def test_rso_draws_from_the_start_model_whatever_it_has_learned(run: Callable[..., Any]) -> None:
    objective, options = RSO(num_samples=4, gamma=0.5), {"max_steps": 2, "temperature": 1.0}
    folder, still = run(objective, "still", learning_rate=1e-12, **options)
    moved_folder, moved = run(objective, "moved", learning_rate=3e-2, **options)
    _, adapted = run(objective, "adapted", learning_rate=3e-1, lora_r=2, **options)
    assert len(still) == 2 * 4 * 6 and still == moved == adapted
    first, last = read_lines(moved_folder / "metrics.jsonl")
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4) and abs(last["rewards/margins"]) > 1e-3
    assert read_lines(folder / "metrics.jsonl")[-1]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    _, live = run(RAFT(num_mini_batches=1), "live", learning_rate=3e-2, **options)
    assert live[:24] == still[:24] and live[24:] != still[24:]  # the policy in training draws


def test_an_enhancer_draws_the_second_half(run: Callable[..., Any]) -> None:
    """The start model's half is what it was, whatever the policy has learned; at another temperature it is another player."""

    def halves(enhancer: str, rate: float, temperature: float = 0.0, **more: Any) -> tuple[list[str], list[str]]:
        objective = Iterate(batches=1, epochs=1, exploration=Exploration(enhancer=enhancer, enhancer_temperature=temperature))  # type: ignore[arg-type]
        folder, texts = run(objective, f"{enhancer}{rate}{temperature}{more}", max_steps=2, learning_rate=rate, **more)
        assert len(texts) == 2 * 4 * 6 and "loss" in read_lines(folder / "metrics.jsonl")[-1]
        last = [texts[24 + 6 * prompt : 30 + 6 * prompt] for prompt in range(4)]
        return [text for six in last for text in six[:3]], [text for six in last for text in six[3:]]

    start, moved, adapted = halves("reference", 1e-12), halves("reference", 3e-2), halves("reference", 3e-1, lora_r=2)
    assert start[1] == moved[1] == adapted[1] and start[0] != moved[0]
    assert start[0] != start[1]  # not the same draws twice
    live, cold = halves("policy", 3e-2), halves("policy", 1e-12, 1e-3)
    assert live[0] == moved[0] and live[1] != moved[1]
    assert cold[0] == start[0] and len(set(cold[1])) <= 4 < len(set(start[1]))  # the likeliest one to each prompt


def test_raft_learns_what_its_judge_likes(run: Callable[..., Any]) -> None:
    folder, _ = run(RAFT(num_mini_batches=1), "raft", max_steps=8, learning_rate=2e-2)
    lines = read_lines(folder / "metrics.jsonl")
    before, after = (np.mean([line["reward"] for line in part]) for part in (lines[:2], lines[-2:]))
    assert after > 1.5 * before > 0, (before, after)
    assert all(line["rewards/chosen"] > line["reward"] for line in lines[:3])
