"""A small model learns by its own responses what a rule wants: drawing, judging, selecting and learning as they are put together."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.decoder import Decoder
from trueline.objectives.online_dpo import OnlineDPO
from trueline.records import TEXT, Conversation, Message, Messages
from trueline.run import read_lines
from trueline.serve.engine import Engine
from trueline.tokens import Tokenizer
from trueline.train import train

Make = Callable[..., Decoder]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog"]


def prompts(count: int) -> list[Conversation]:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(count)]
    return [Conversation(messages=(Message(role=TEXT, content=text, train=False),)) for text in texts]


def vowels(prompt: Messages, response: Messages) -> float:
    return float(sum(letter in "aeiou" for letter in response[0].content))


def learn(out: Path, model: Decoder, tokenizer: Tokenizer, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    rollouts = Rollouts(Engine, judge=RuleJudge(vowels, "vowels"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # sampler and trainer agree in every round
        train(OnlineDPO(), model, prompts(16), tokenizer=tokenizer, rollouts=rollouts, out=out, lr_scheduler_type="constant",
              per_device_train_batch_size=8, num_generations=4, max_completion_length=6, max_length=64, save_steps=0,
              **options)  # fmt: skip
    return read_lines(out / "metrics.jsonl"), [row["event"] for row in read_lines(out / "events.jsonl")]


def test_the_reward_rises(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    lines, said = learn(tmp_path / "run", decoder(0, tokenizer.vocab_size), tokenizer, max_steps=16, learning_rate=2e-2, logging_steps=4)
    rewards = [line["reward"] for line in lines]
    assert rewards[-1] > 1.5 * rewards[0], rewards
    assert lines[-1]["objective/kl"] > lines[0]["objective/kl"] > -0.1 and lines[-1]["rewards/margins"] > 0.05
    assert any("second copy" in text for text in said)
    assert sum("sampler vs trainer log-probs" in text for text in said) == 1


def test_the_reference_of_an_adapter_is_its_base(tmp_path: Path, decoder: Make, tokenizer: Tokenizer) -> None:
    """At the first step the policy is the reference; later it is not, and the base has not moved."""
    model = decoder(0, tokenizer.vocab_size)
    before = model.embed_tokens.weight.detach().clone()
    lines, said = learn(tmp_path / "run", model, tokenizer, max_steps=3, learning_rate=5e-2, lora_r=4, logging_steps=1)
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and lines[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert abs(lines[2]["objective/kl"]) > 1e-3 and torch.equal(model.embed_tokens.weight, before)
    assert any("without the adapter" in text for text in said)
