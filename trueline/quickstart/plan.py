"""Minutes to step counts: decided once, before any training, and kept, so that a resumed quickstart does the same work.

    a probe measures training tokens/s and sampled responses/s on this machine -> Plan -> plan.json

Left out: doing the work (stages).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from trueline.models.attention import tree_tokens
from trueline.models.decoder import Decoder
from trueline.objectives.base import Budget
from trueline.objectives.sft import SFT
from trueline.protocols import Crew
from trueline.records import Row, Sampling
from trueline.serve.engine import Engine
from trueline.store import write_atomic
from trueline.tokens import Tokenizer

ROWS_PER_STEP = {"sft": 32, "reward": 4, "methods": 16}
"""Rows per optimizer step; a reward row is one prompt with its ranked summaries, a row of a compared method a prompt."""
SHARES = {"base": 0.0, "sft": 0.21, "sample": 0.07, "reward": 0.1, "methods": 0.44, "evaluate": 0.14}
"""Of the minutes that the harvest leaves; the rest is for what the probe misjudges."""
SCRATCH_SHARES = {"base": 0.36, "sft": 0.1, "sample": 0.05, "reward": 0.06, "methods": 0.25, "evaluate": 0.12}
SUMMARY_TOKENS = 20
"""Length of a usual summary."""
CANDIDATES = 8
"""Summaries sampled per prompt and ranked by the annotator."""
LEAST = {"base": 20, "sft": 4, "sample": 64, "reward": 3, "methods": 2, "evaluate": 32}
MOST = {"base": 10**9, "sft": 10**9, "sample": 2400, "reward": 10**9, "methods": 32, "evaluate": 600}
"""32 updates of 16 prompts: about 500 for every compared method, half as many for PPO, which takes two updates from each round."""
TUNING_SHARE = 0.05
"""Of the rankings, what is not trained on; the learning rates are set beforehand, so this share only shows that all is well."""
ANSWERS_PER_TEST_PROMPT = 55
"""What a held-out prompt costs in sampled summaries: two for the reward model's test, twice eight to choose from, of every policy a greedy
and two sampled ones, and reading them with two policies and the reward model."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method takes for each prompt of an update. Learned and read: (rows, responses); a row holds its prompt once."""

    draws: float
    learned: tuple[float, float]
    read: tuple[float, float]

    def seconds(self, row_tokens: float, train_speed: float, sample_speed: float) -> float:
        """From tokens per row of one response, trained tokens and sampled responses per second; reading is a third of training."""
        prompt = row_tokens - SUMMARY_TOKENS
        learned, read = (rows * prompt + responses * SUMMARY_TOKENS for rows, responses in (self.learned, self.read))
        return self.draws / sample_speed + (learned + read / 3) / train_speed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps and prompts of every stage."""

    minutes: float
    seed: int
    from_scratch: bool
    base_steps: int
    sft_steps: int
    preference_prompts: int
    reward_steps: int
    method_updates: int
    """Of every compared method."""
    test_prompts: int
    training_tokens_per_second: float
    responses_per_second: float


def load_or_make(path: Path, minutes: float, seed: int, from_scratch: bool, make: Plan | None) -> Plan:
    """The plan kept at `path`, when it answers the same command; else `make`, which is written there."""
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if set(kept) != {field.name for field in fields(Plan)}:
            raise ValueError(f"{path.parent} was begun by another version of Trueline: give another --out")
        plan = Plan(**kept)
        for name, value in (("minutes", minutes), ("seed", seed), ("from_scratch", from_scratch)):
            if getattr(plan, name) != value:
                raise ValueError(
                    f"{path.parent} was begun with {name} = {getattr(plan, name)}, not {value}: give that, or another --out"
                )
        return plan
    assert make is not None
    write_atomic(path, json.dumps(asdict(make), indent=1))
    return make


def make_plan(minutes: float, seed: int, from_scratch: bool, used_seconds: float, model: Decoder, tokenizer: Tokenizer, rows: Sequence[Row],
              prompts: Sequence[np.ndarray], costs: Sequence[Cost]) -> Plan:  # fmt: skip
    """Counts that fit `minutes`, of which `used_seconds` are gone. `rows` are SFT rows and `prompts` prompt ids of this data, `costs`
    those of the methods that are compared."""
    train_speed, sample_speed = training_speed(model, rows), sampling_speed(model, tokenizer, prompts)
    seconds, shares = max(20.0, 60 * minutes - used_seconds), SCRATCH_SHARES if from_scratch else SHARES
    row_tokens = float(np.mean([tree_tokens(row) for row in rows]))
    group_tokens = row_tokens + (CANDIDATES - 1) * SUMMARY_TOKENS
    per_update = ROWS_PER_STEP["methods"] * sum(cost.seconds(row_tokens, train_speed, sample_speed) for cost in costs)
    updates = fit("methods", shares["methods"] * seconds / per_update) // 2 * 2  # PPO takes two in a round
    others = max(1.0, (1 - updates * per_update / seconds) / (1 - shares["methods"]))  # get what the methods have no use for

    def count(stage: str, each: float) -> int:
        return fit(stage, others * shares[stage] * seconds / each)

    prompts_ranked = count("sample", CANDIDATES / sample_speed)
    one_pass = int((1 - TUNING_SHARE) * prompts_ranked) // ROWS_PER_STEP["reward"]  # a second one learns the annotator's noise
    return Plan(
        minutes=minutes,
        seed=seed,
        from_scratch=from_scratch,
        base_steps=count("base", 4096 / train_speed) if from_scratch else 0,
        sft_steps=count("sft", ROWS_PER_STEP["sft"] * row_tokens / train_speed),
        preference_prompts=prompts_ranked,
        reward_steps=min(one_pass, count("reward", ROWS_PER_STEP["reward"] * group_tokens / train_speed)),
        method_updates=updates,
        test_prompts=count("evaluate", ANSWERS_PER_TEST_PROMPT / sample_speed),
        training_tokens_per_second=round(train_speed, 1),
        responses_per_second=round(sample_speed, 2),
    )


def fit(stage: str, count: float) -> int:
    """A count within the stage's bounds."""
    return int(min(MOST[stage], max(LEAST[stage], count)))


def training_speed(model: Decoder, rows: Sequence[Row]) -> float:
    """Tokens per second of forward and backward; the model's weights stay as they are."""
    batches = next(SFT().steps(list(rows[: ROWS_PER_STEP["sft"]]), Budget(rows=32, tokens=8192)))
    seconds: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        for batch in batches:
            sum(SFT().loss(model, batch, Crew()).terms.values(), torch.zeros(())).backward()
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return sum(batch.layout.num_tokens for batch in batches) / min(seconds)


def sampling_speed(model: Decoder, tokenizer: Tokenizer, prompts: Sequence[np.ndarray]) -> float:
    """Summaries of usual length per second, CANDIDATES to a prompt."""
    chosen, engine = list(prompts[:48]), Engine(model, tokenizer, max_batch=256, stop_ids=())
    start = time.perf_counter()
    engine.sample(chosen, Sampling(n=CANDIDATES, max_new_tokens=SUMMARY_TOKENS))
    return CANDIDATES * len(chosen) / (time.perf_counter() - start)
