"""The reward models of a study: one per seed that methods are driven by, and, where no true judge is given, one that judges.

Both are Bradley-Terry models (objectives.reward), one pass over their pairs, trained at the learning rate that predicts the tuning
part's preferences best, of as many as every method tries. The judging one learns from other prompts than the driving ones, so what
pleases it has not only learned to please them (Bai et al., 2204.05862, section 4.2).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trueline.align.group import prompt_key
from trueline.evals.calibration import pair_calibration
from trueline.models.files import fingerprint as weights_fingerprint
from trueline.models.files import load_scalar_model
from trueline.models.scorer import RewardScorer
from trueline.objectives.reward import Reward
from trueline.records import Comparison
from trueline.run import read_json
from trueline.store import fingerprint
from trueline.study.cells import Cell
from trueline.study.training import Bench, Material, forget_checkpoints, trained
from trueline.tokens import EncodeStats, encode_comparison

OBJECTIVE = Reward(center_rewards_coefficient=0.01)


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Reward models by seed, and how they were tuned."""

    cells: dict[int, Cell]
    learning_rate: float
    trials: list[dict[str, float]]

    def scorer(self, bench: Bench, seed: int) -> RewardScorer:
        """Loaded."""
        return scorer_of(bench, self.cells[seed])


def train_rewards(
    bench: Bench, pairs: Sequence[Comparison], tuning: Sequence[Comparison], seeds: Sequence[int], tell: Callable[[str, int], None]
) -> Rewards:
    """One trial per learning rate with the first seed, then one model per seed. `tell` hears how far each is."""
    updates, material, rates = updates_of(bench, pairs), Material(bench, pairs), bench.settings.learning_rates

    def one(rate: float, seed: int) -> Cell:
        name = f"reward model, learning rate {rate:g}, seed {seed}"
        told = partial(tell, name)
        found = trained(
            bench, OBJECTIVE, material, learning_rate=rate, updates=updates, seed=seed, kind="reward", tell=lambda step, _: told(step),
        )  # fmt: skip
        told(updates)
        forget_checkpoints(found)
        return found

    trials = [{"learning_rate": rate, "score": -calibration(bench, one(rate, seeds[0]), tuning)["nll"]} for rate in rates]
    best = max(trials, key=lambda trial: trial["score"])["learning_rate"]
    return Rewards(cells={seed: one(best, seed) for seed in seeds}, learning_rate=best, trials=trials)


def given_reward(bench: Bench, folder: Path) -> Rewards:
    """A reward model that is there already, for all seeds. What it trained on is charged where its run says it; its time is not known."""
    model = load_scalar_model(folder)
    theirs, ours = (path / "tokenizer.json" for path in (folder, bench.start))
    if theirs.exists() and ours.exists() and theirs.read_bytes() != ours.read_bytes():
        raise ValueError(f"--reward {folder} reads other tokens than {bench.start}: name it as --judge, with --reward judge")
    cell = bench.cells.of("reward", {"given": weights_fingerprint(model)})
    run = cell.folder / "run"

    def compute() -> dict[str, Any]:
        shutil.copytree(folder, run, ignore=shutil.ignore_patterns("checkpoint-*", "*.lock"), dirs_exist_ok=True)
        finished = folder / "finished.json"
        return {"trained": read_json(finished, num_tokens=int)["num_tokens"] if finished.exists() else 0}

    cell.once("trained.json", compute)
    return Rewards(cells=dict.fromkeys(bench.settings.seeds, cell), learning_rate=0.0, trials=[])


def updates_of(bench: Bench, pairs: Sequence[Comparison]) -> int:
    """One pass."""
    return -(-len(pairs) // bench.settings.per_device_train_batch_size)


def scorer_of(bench: Bench, cell: Cell) -> RewardScorer:
    """The reward model of a cell, to score with."""
    model = load_scalar_model(cell.folder / "run", device=bench.settings.device)
    return RewardScorer(model, max_tokens=bench.settings.max_tokens_per_batch)


def calibration(bench: Bench, cell: Cell, pairs: Sequence[Comparison]) -> dict[str, Any]:
    """How well a reward model knows the preferences of these pairs: evals.calibration, kept in the cell."""

    def compute() -> dict[str, Any]:
        stats = EncodeStats()
        found = [encode_comparison(pair, bench.tokenizer, bench.settings.max_length, stats) for pair in pairs]
        rows = [row for row in found if row is not None]
        keys = [prompt_key(pair.prompt) for pair, row in zip(pairs, found, strict=True) if row is not None]
        gaps: list[float] = []
        prompts: list[str] = []
        for row, key, scores_K in zip(rows, keys, scorer_of(bench, cell).score(rows), strict=True):
            worth_K = -row.numbers["rank"] if "rank" in row.numbers else row.numbers["counts"]
            gaps += [float(scores_K[i] - scores_K[j]) for i, j in np.ndindex(len(worth_K), len(worth_K)) if worth_K[i] > worth_K[j]]
            prompts += [key] * (len(gaps) - len(prompts))
        if not gaps:
            why = "; ".join(f"{reason} ({count})" for reason, count in stats.dropped.most_common(3)) or "ties only"
            raise ValueError(
                f"no comparison of the tuning or report part can be used to check the reward model ({why}): bring more data"
                + (f", or raise --max_length, which is {bench.settings.max_length}" if stats.dropped else "")
            )
        return pair_calibration(gaps, prompts, bins=10).to_dict() | {"pairs": len(gaps)}

    name = fingerprint([str(pair.prompt) + str(pair.responses) for pair in pairs])[:12]
    found: dict[str, Any] = cell.once(f"calibration-{name}.json", compute)
    return found

