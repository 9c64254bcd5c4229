"""What a run that draws its responses is said to need: the count is that of real tensors, and rounds are those of the method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.test_forecast import real
from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import save_model
from trueline.objectives.grpo import GRPO
from trueline.objectives.iterate import Exploration, Iterate
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.ppo import PPO
from trueline.objectives.rso import RSO
from trueline.objectives.updates import Update
from trueline.records import TEXT, Conversation, Message
from trueline.serve.engine import Engine
from trueline.tokens import Tokenizer
from trueline.train import meter
from trueline.train.api import Job, resolve
from trueline.train.footprint import Sketch, sketch_of
from trueline.train.forecast import forecast
from trueline.train.forecast_drawn import Pace, held_by, played, readers

SHAPE = DecoderConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
)  # fmt: skip
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 2, "num_generations": 3, "max_completion_length": 5, "max_length": 32, "max_steps": 4,
}  # fmt: skip


def rollouts() -> Rollouts:
    return Rollouts(Engine, judge=RuleJudge(lambda prompt, response: float(hash(response[0].content) % 1000)))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(Decoder(SHAPE), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def prompts(count: int = 6) -> list[Conversation]:
    return [Conversation(messages=(Message(role=TEXT, content="the cat " * (1 + k % 3), train=False),)) for k in range(count)]


@pytest.fixture
def planned(folder: Path) -> Callable[..., tuple[Job, Sketch]]:
    """planned(objective, **options) -> the job and its sketch."""

    def make(objective: Any, **options: Any) -> tuple[Job, Sketch]:
        job = resolve(objective, folder, prompts(), None, None, None, OPTIONS | {"learning_rate": 0.0} | options, None)
        return job, sketch_of(job, folder)

    return make


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        pytest.param(GRPO(), {}, id="grpo", marks=pytest.mark.slow),
        pytest.param(PPO(), {"num_generations": 1}, id="ppo"),
        pytest.param(OnlineDPO(), {"lora_r": 2}, id="online-dpo lora", marks=pytest.mark.slow),
    ],
)
def test_counted_is_real(
    objective: Any, more: dict[str, int], planned: Callable[..., tuple[Job, Sketch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every phase, but for numbers of a few bytes, without memory and with it; what stays is what it must be."""
    job, sketch = planned(objective, **more)
    found = played(job, sketch, rollouts())
    counted = held_by(job, sketch, found, [SHAPE])
    monkeypatch.setattr(meter, "weightless", real)
    there = held_by(job, sketch, found, [SHAPE])
    assert there.parts == counted.parts and there.phases == pytest.approx(counted.phases, rel=1e-3)
    size = 4 * sum(parameter.numel() for parameter in Decoder(SHAPE).parameters())
    parts = list(counted.parts.values())
    critic = 4 * SHAPE.hidden_size if objective.verb == "ppo" else 0
    if "lora_r" not in more:
        assert parts[0] == size * (1 + bool(critic)) + critic
        assert parts[1] == size and parts[2] == size + 4 * SHAPE.hidden_size  # the reference, and the reward model with its head
        assert parts[3] >= 2 * parts[0]
    else:
        assert parts[0] > size and parts[1] == 0 and parts[3] < size  # a base is its own reference; only the adapter has moments
    assert parts[4] == 2 * SHAPE.num_hidden_layers * found.slots * found.length * SHAPE.num_key_value_heads * SHAPE.head_dim * 4
    assert counted.peak >= counted.phases["learning"] > sum(parts)


def test_the_round_is_the_methods_own(planned: Callable[..., tuple[Job, Sketch]]) -> None:
    """By hand: 2 prompts a step, responses of 5 tokens that share nothing but their prompt."""
    job, sketch = planned(GRPO(update=Update(num_iterations=2, num_mini_batches=2)))
    found = played(job, sketch, rollouts())
    assert len(found.prompts) == 4 and found.responses == 12 and found.slots == 16 and found.length == 64 and len(found.steps) == 4
    asked = sum(row.num_tokens for row in found.prompts)
    assert found.positions == 2 * (asked + 12 * 5)  # two passes
    assert readers(job, sketch, [SHAPE]) == pytest.approx(2)  # the reference, and a reward model of the same size
    pace = Pace(position=1.0, forward=0.1, update=10.0, token=2.0)
    split = pace.of_run(job, found, 2.0)  # 4 steps are one round
    assert split["learning"] == found.positions + 40 and split["scoring"] == pytest.approx((asked + 60) * 0.1 * 2)
    assert split["sampling"] == pytest.approx(12 / 16 * 5 * 2 + asked * 0.1)
    pairs = played(*planned(RSO(num_samples=4), num_generations=6), rollouts())
    assert {len(row.ids) for row in pairs.scored} == {2} and len(pairs.scored) > 2  # several pairs of a prompt


def test_a_round_that_nothing_is_selected_of(planned: Callable[..., tuple[Job, Sketch]]) -> None:
    """Rewards by chance never differ by so much: said in a sentence."""
    chance = Rollouts(Engine, judge=RuleJudge(lambda prompt, response: float(hash(response[0].content) % 1000) / 1000))
    with pytest.raises(ValueError, match=r"iterate selects none of \d+ responses \(best_vs_worst, margin 1.5\), so there is no round"):
        played(*planned(Iterate(exploration=Exploration(margin=1.5))), chance)


@pytest.mark.slow
@pytest.mark.sample
def test_a_forecast_and_its_ways(folder: Path) -> None:
    """What is advised is enough by a count of its own."""
    options: dict[str, Any] = OPTIONS | {"num_generations": 8, "max_completion_length": 16, "per_device_train_batch_size": 4}
    more: dict[str, Any] = {"rollouts": rollouts(), "scorers": [SHAPE]}
    objective = GRPO()
    whole = forecast(objective, folder, prompts(), limit=1 << 40, **more, **options)
    assert whole.fits and whole.seconds is not None and whole.seconds == pytest.approx(sum(whole.split.values()))
    assert "sampling" in str(whole) and "every response taken to be as long as it may be" in str(whole)
    blind = forecast(objective, folder, prompts(), limit=1 << 40, start=0, **more, **options)
    assert blind.seconds is None and blind.peak == sum(blind.parts.values())
    less = forecast(objective, folder, prompts(), limit=blind.peak - 1, start=0, **more, **options)
    assert not less.fits and less.ways
    for way in less.ways:
        again = forecast(objective, folder, prompts(), limit=less.limit, start=0, **more, **(options | way.settings))
        assert again.fits and again.peak == way.peak
