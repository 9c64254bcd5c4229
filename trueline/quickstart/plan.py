"""Minutes to step counts: decided once, before any training, and kept, so that a resumed quickstart does the same work.

    a probe measures training tokens/s and sampled responses/s on this machine -> Plan -> plan.json

Left out: doing the work (stages).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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

ROWS_PER_STEP = {"sft": 32, "reward": 4, "dpo": 32}
"""Rows per optimizer step; a reward row is one prompt with its ranked summaries, a DPO row one with two."""
SHARES = {"base": 0.0, "sft": 0.36, "sample": 0.12, "reward": 0.16, "dpo": 0.14, "evaluate": 0.14}
"""Of the minutes; the rest is for the harvest and for what the probe misjudges."""
SCRATCH_SHARES = {"base": 0.42, "sft": 0.12, "sample": 0.08, "reward": 0.07, "dpo": 0.1, "evaluate": 0.12}
SUMMARY_TOKENS = 20
"""Length of a usual summary."""
CANDIDATES = 8
"""Summaries sampled per prompt and ranked by the annotator."""
LEAST = {"base": 20, "sft": 4, "sample": 48, "reward": 3, "dpo": 3, "evaluate": 32}
MOST = {"base": 10**9, "sft": 10**9, "sample": 2400, "reward": 10**9, "dpo": 10**9, "evaluate": 600}


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
    dpo_steps: int
    test_prompts: int
    training_tokens_per_second: float
    responses_per_second: float


def load_or_make(path: Path, minutes: float, seed: int, from_scratch: bool, make: Plan | None) -> Plan:
    """The plan kept at `path`, when it answers the same command; else `make`, which is written there."""
    if path.exists():
        plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
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
              prompts: Sequence[np.ndarray]) -> Plan:  # fmt: skip
    """Counts that fit `minutes`, of which `used_seconds` are gone. `rows` are SFT rows and `prompts` prompt ids of this data."""
    train_speed, sample_speed = training_speed(model, rows), sampling_speed(model, tokenizer, prompts)
    seconds = max(20.0, 60 * minutes - used_seconds)
    time_for = {stage: share * seconds for stage, share in (SCRATCH_SHARES if from_scratch else SHARES).items()}
    row_tokens = float(np.mean([tree_tokens(row) for row in rows]))
    group_tokens, pair_tokens = row_tokens + (CANDIDATES - 1) * SUMMARY_TOKENS, row_tokens + SUMMARY_TOKENS

    def steps(stage: str, tokens_per_row: float, cost: float = 1.0) -> int:
        per_step = ROWS_PER_STEP[stage] * tokens_per_row * cost / train_speed
        return fit(stage, time_for[stage] / per_step)

    prompts_ranked = fit("sample", time_for["sample"] * sample_speed / CANDIDATES)
    one_pass = max(1, prompts_ranked // ROWS_PER_STEP["dpo"])
    return Plan(
        minutes=minutes,
        seed=seed,
        from_scratch=from_scratch,
        base_steps=fit("base", time_for["base"] * train_speed / 4096) if from_scratch else 0,
        sft_steps=steps("sft", row_tokens),
        preference_prompts=prompts_ranked,
        reward_steps=steps("reward", group_tokens),
        dpo_steps=min(one_pass, steps("dpo", pair_tokens, cost=4 / 3)),  # a second pass learns the annotator's noise
        test_prompts=fit("evaluate", time_for["evaluate"] * sample_speed / 16),
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
