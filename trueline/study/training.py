"""One policy or one reward model, trained once for its inputs, and what that cost.

    cell = trained(bench, objective, records, learning_rate=..., updates=..., seed=...)     cell.folder/run is the model
    saved(cell, step)                                                                       the policy as it was after that step

A run that was killed goes on from its checkpoint, bit for bit; one that is there is not trained again.
Left out: which learning rate and how many updates (job, budget), and what the policy is worth (measure).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trueline.align.rollouts import Rollouts
from trueline.models.attention import tree_tokens
from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Judge, Scorer
from trueline.records import Record, RolloutConfig
from trueline.rows.inspection import prompt_of
from trueline.run import Sink, read_json, read_lines
from trueline.serve.engine import Engine
from trueline.store import fingerprint
from trueline.study.cells import Cell, Cells
from trueline.study.settings import Settings
from trueline.tokens import EncodeStats, Tokenizer
from trueline.tokens.encode import encode_prompt
from trueline.train import train
from trueline.train.checkpoint import checkpoints
from trueline.train.critic import Criticised
from trueline.train.data import encode_records

ABOUT = ("source", "annotator", "time")
"""What a record says of itself, which nothing is trained on: rows that lie in another file are the same rows."""
PROBE_UPDATES = 4
"""Steps of a probe; the first one also warms the machine up."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every training and measuring of a study shares."""

    start: Path
    start_key: str
    """Of its weights and tokenizer."""
    tokenizer: Tokenizer
    settings: Settings
    cells: Cells
    context: int = 2**30
    """Most tokens that the model reads."""

    def drawing(self, generations: int) -> Bench:
        """The same, where so many responses are drawn per prompt in training; 0 changes nothing."""
        return replace(self, settings=replace(self.settings, num_generations=generations)) if generations else self


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What a method that learns from its own responses is driven by."""

    key: str
    """Names the reward model or judge in fingerprints."""
    judge: Judge | None = None
    reward: Callable[[], Scorer] | None = None
    """Loads the reward model; a finished cell never does."""

    def rollouts(self) -> Rollouts:
        """What the training loop draws from."""
        return Rollouts(Engine, judge=self.judge, reward=self.reward() if self.reward is not None else None)


class Material:
    """Records to train on, with what is asked of them again and again computed once."""

    def __init__(self, bench: Bench, records: Sequence[Record]) -> None:
        self.bench, self.records = bench, records

    @cached_property
    def key(self) -> str:
        """Names them by what is trained on, not by where they lie."""
        about = ([name, part] for record in self.records for name, part in asdict(record).items() if name not in ABOUT)
        return fingerprint(list(about))

    @cached_property
    def positions(self) -> list[int]:
        """Token positions of each record's rows, a shared prompt counted once."""
        rows = encode_records(self.records, self.bench.tokenizer, self.bench.settings.max_length, EncodeStats())
        return [sum(map(tree_tokens, found)) for found in rows]

    @cached_property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each record's prompt."""
        return [len(encode_prompt(prompt_of(record), self.bench.tokenizer)) for record in self.records]


def trained(
    bench: Bench,
    objective: Objective,
    material: Material,
    *,
    learning_rate: float,
    updates: int,
    seed: int,
    drive: Drive | None = None,
    kind: str = "policy",
    tell: Sink = lambda step, metrics: None,
) -> Cell:
    """The cell of this training, finished: trained.json says what was computed, and which steps were kept. `tell` hears of every
    logged step."""
    options = training_options(bench, objective, learning_rate, updates, seed)
    marks = bench.settings.saved_steps(updates) if kind == "policy" else [updates]
    cell = bench.cells.of(kind, inputs_of(bench, objective, material, options, drive) | {"kept": marks})
    run = cell.folder / "run"

    def compute() -> dict[str, Any]:
        train(
            objective, bench.start, material.records, out=run, tokenizer=bench.tokenizer, sinks=[tell],
            save_steps=marks[0], save_total_limit=0,
            logging_steps=max(1, updates // 50), reference_cache=str(bench.cells.root / ".reference"), device=bench.settings.device,
            **helpers(objective, drive), **options,
        )  # fmt: skip
        spent = cost(bench, objective, material, run)
        there = sorted(step for step, _ in checkpoints(run) if step <= spent["updates"])  # a round may take several steps
        steps = {next(step for step in there if step >= mark) for mark in marks if mark <= there[-1]}
        return spent | {"saved": sorted(steps | {spent["updates"]})}

    cell.once("trained.json", compute)
    return cell


def training_options(bench: Bench, objective: Objective, learning_rate: float, updates: int, seed: int) -> dict[str, Any]:
    """Fields of TrainConfig by flat name. The rate is constant after its warm-up, so that a policy on the way is what a shorter
    run would have given."""
    settings = bench.settings
    options = {
        "learning_rate": learning_rate, "max_steps": updates, "seed": seed, "lr_scheduler_type": "constant", "warmup_ratio": 0.1,
        "per_device_train_batch_size": settings.per_device_train_batch_size, "max_length": settings.max_length,
        "max_tokens_per_batch": settings.max_tokens_per_batch, "bf16": settings.bf16, "lora_r": settings.lora_r,
    }  # fmt: skip
    if isinstance(objective, OnPolicy):
        drawing = {"num_generations": generations(objective, settings), "max_completion_length": settings.max_new_tokens}
        options |= drawing | {"temperature": settings.temperature}
    return options


def generations(objective: Objective, settings: Settings) -> int:
    """Responses that a method draws to each prompt."""
    own: int = objective.defaults.get("num_generations", RolloutConfig().num_generations)
    return settings.num_generations or own


def inputs_of(
    bench: Bench, objective: Objective, material: Material, options: Mapping[str, Any], drive: Drive | None
) -> dict[str, Any]:
    """What a training is made from."""
    method = {"verb": objective.verb} | asdict(objective)  # type: ignore[call-overload]
    driven = drive.key if drive is not None and isinstance(objective, OnPolicy) else ""
    return {"objective": method, "model": bench.start_key, "rows": material.key, "training": options, "driven by": driven}


def helpers(objective: Objective, drive: Drive | None) -> dict[str, Any]:
    """What `train` is handed besides rows."""
    return {"rollouts": drive.rollouts()} if isinstance(objective, OnPolicy) and drive is not None else {}


def cost(bench: Bench, objective: Objective, material: Material, run: Path) -> dict[str, Any]:
    """Token positions by what they went through, a shared prompt counted once."""
    finished = read_json(run / "finished.json", steps=int, num_tokens=int)
    spent = {"updates": finished["steps"], "trained": finished["num_tokens"], "critic": 0, "reference": 0, "sampled": 0, "scored": 0}
    if isinstance(objective, OnPolicy):
        drawn = prompts = 0.0
        for line in read_lines(run / "metrics.jsonl"):
            responses = line.get("counts", {}).get("completions/mean_length", 0)
            drawn += responses * (line.get("completions/mean_length") or 0.0)
            prompts += responses / generations(objective, bench.settings)
        spent["sampled"] = spent["scored"] = round(drawn + prompts * float(np.mean(material.prompt_lengths)))
        spent["reference"] = spent["sampled"] if "reference" in objective.needs else 0
        if isinstance(objective, Criticised) and objective.critic != "shared":  # a model of its own: trained, and asked for values
            spent["critic"] = spent["trained"]
            spent["scored"] += spent["sampled"]
    elif "reference" in objective.needs:
        spent["reference"] = sum(material.positions)
    return spent


def saved(cell: Cell, step: int) -> Path:
    """The folder of the policy after this step; FileNotFoundError when it was cleared away."""
    path = cell.folder / "run" / ("" if step == cell.read("trained.json")["updates"] else f"checkpoint-{step}")
    if not (path / "config.json").exists() and not (path / "adapter_config.json").exists():
        raise FileNotFoundError(path)
    return path


def forget_checkpoints(cell: Cell) -> None:
    """Once they are measured, the policies on the way go, and with them the optimizer's state."""
    for path in (cell.folder / "run").glob("checkpoint-*"):
        shutil.rmtree(path)


def probe(
    bench: Bench, objective: Objective, material: Material, learning_rate: float, drive: Drive | None
) -> dict[str, float]:
    """Seconds before the first update, and seconds and trained positions per update: from a few updates that are thrown away."""
    a_round = objective.rounds.steps if isinstance(objective, OnPolicy) else 1
    updates = max(PROBE_UPDATES, 3 * a_round)
    options = training_options(bench, objective, learning_rate, updates, 0)
    cell = bench.cells.of("probe", inputs_of(bench, objective, material, options, drive))
    run = cell.folder / "run"

    def compute() -> dict[str, float]:
        shutil.rmtree(run, ignore_errors=True)
        began = time.monotonic()
        train(
            objective, bench.start, material.records, out=run, tokenizer=bench.tokenizer, save_steps=0, logging_steps=1,
            reference_cache=str(run / "reference"), device=bench.settings.device, **helpers(objective, drive), **options,
        )  # fmt: skip
        seconds = time.monotonic() - began
        done = [float(line["time"]) for line in read_lines(run / "metrics.jsonl")]
        each = max(1e-6, (done[-1] - done[a_round - 1]) / (len(done) - a_round))
        tokens = read_json(run / "finished.json", num_tokens=int)["num_tokens"] / len(done)
        shutil.rmtree(run)
        return {"seconds_before": max(0.0, seconds - each * len(done)), "seconds_per_update": each, "tokens_per_update": tokens}

    found: dict[str, float] = cell.once("probe.json", compute)
    return found
