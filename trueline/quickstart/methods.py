"""The methods against each other: a study (trueline.study) that starts at the SFT model and reports on the held-out packages.

    rankings + reward model --best of n, DPO, RSO, PPO, online DPO--> out/study --copied--> out/dpo, out/rso, out/ppo, out/online-dpo

DPO learns from the first and last of the rankings, the others from the one reward model that learned from all pairs of these rankings
and of what more there are; each takes equally many updates of 16 prompts (PPO two from each round, so it draws for half as many prompts).
The PEP 257 rule judges; no method sees it. One trial per method, at a learning rate that is set beforehand (docs/quickstart.md says by
which pilots), and one seed: more of either is more minutes (`trueline study` on the same files).
Left out: what the models say when they decode greedily (measure), the page (report).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from trueline.quickstart.pep257 import Pep257Judge
from trueline.quickstart.plan import ROWS_PER_STEP, Cost, Plan
from trueline.quickstart.stages import MAX_LENGTH, MAX_SUMMARY_TOKENS, TEMPERATURE
from trueline.records import Comparison
from trueline.rows import read_rows
from trueline.store import fingerprint
from trueline.study.arms import Arm, read_arm
from trueline.study.job import run_study
from trueline.study.rows import Parts
from trueline.study.settings import Budget, Settings

BEST_OF = 8
TUNED = 4
"""Prompts of a trial: with one learning rate there is nothing to choose by it."""
SAMPLES = 2
"""Sampled answers of every model to every held-out prompt: the second one costs less than another prompt and says nearly as much."""
BEST = f"best of {BEST_OF}"
"""The name under which it takes part."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A method as it takes part."""

    folder: str
    """Of its model, beside SFT's and the reward model's."""
    title: str
    method: str
    """As `trueline study --methods` has it."""
    cost: Cost


ENTRANTS = (
    Entrant(
        folder="dpo", title="DPO", method="dpo:learning_rate=4e-5",
        cost=Cost(draws=0, learned=(1, 2), read=(1, 2)),
    ),
    Entrant(
        folder="rso", title="RSO", method="rso:num_generations=16,num_samples=4,gamma=0.1,learning_rate=5e-5",
        cost=Cost(draws=16, learned=(2, 4), read=(3, 20)),
    ),
    Entrant(
        folder="ppo", title="PPO", method="ppo:num_generations=4,num_iterations=2,critic=shared,kl_coef=0.1,learning_rate=7e-5",
        cost=Cost(draws=2, learned=(1, 4), read=(1.5, 6)),
    ),
    Entrant(
        folder="online-dpo", title="Online DPO", method="online-dpo:num_generations=4,learning_rate=5e-5",
        cost=Cost(draws=4, learned=(1, 2), read=(2, 6)),
    ),
)  # fmt: skip
COSTS = tuple(entrant.cost for entrant in ENTRANTS)


def arms() -> tuple[Arm, ...]:
    """Best of n and the entrants, under their titles."""
    best = read_arm(f"best_of_n:n={BEST_OF}/4/2", (1e-4,))  # it trains nothing: the rate is not used
    settings = tuple(replace(setting, label=f"best of {setting.n}") for setting in best.settings)
    found = [replace(best, name=BEST, settings=settings)]
    for entrant in ENTRANTS:
        arm = read_arm(entrant.method, (1e-4,))
        found.append(replace(arm, name=entrant.title, settings=(replace(arm.main, label=entrant.title),)))
    return tuple(found)


def compare_methods(sft: Path, reward: Path, preferences: Path, judge: Pep257Judge, plan: Plan, out: Path, console: Console) -> None:
    """Run the study in `out`/study, and lay the models out beside it."""
    pairs, tuning, report = (comparisons(preferences / f"{side}.jsonl") for side in ("pairs", "tuning", "report"))
    used = plan.method_updates * ROWS_PER_STEP["methods"]  # as many as the updates take, each once
    parts = Parts(train=pairs[:used], judge=(), tuning=tuning, report=report)
    settings = Settings(
        seeds=(plan.seed,), learning_rates=(1e-4,), per_device_train_batch_size=ROWS_PER_STEP["methods"], max_length=MAX_LENGTH,
        checkpoints=1, report_prompts=0, tuning_prompts=TUNED, samples=SAMPLES, temperature=TEMPERATURE, max_new_tokens=MAX_SUMMARY_TOKENS,
    )  # fmt: skip
    run_study(
        sft, parts, arms(), out=out / "study", budget=Budget(updates=plan.method_updates), settings=settings, judge=judge,
        judge_key=f"{judge.name} {fingerprint(sorted(judge.prose.words))[:12]}", reward=reward, console=console,
    )  # fmt: skip
    found = study_of(out)
    for entrant in ENTRANTS:
        (arm,) = (arm for arm in found["arms"] if arm["name"] == entrant.title)
        lay_out(out / "study" / arm["models"][0], out / entrant.folder)


def comparisons(path: Path) -> tuple[Comparison, ...]:
    """What a file of preferences holds."""
    return tuple(record for record in read_rows(path, Comparison) if isinstance(record, Comparison))


def study_of(out: Path) -> dict[str, Any]:
    """What the study found."""
    found: dict[str, Any] = json.loads((out / "study" / "results.json").read_text(encoding="utf-8"))
    return found


def answers(out: Path) -> dict[str, dict[str, tuple[str, float]]]:
    """Prompt -> method -> what it answered and the judge's score."""
    lines = (out / "study" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["prompt"]: {name: tuple(found[0]) for name, found in row["answers"].items()} for row in rows}


def lay_out(model: Path, folder: Path) -> None:
    """A copy of a model's folder under a name that people can type."""
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(model, part, ignore=shutil.ignore_patterns("checkpoint-*", "*.lock"))
    part.rename(folder)
