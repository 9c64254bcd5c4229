"""What a study would do, before anything runs: prompts by use, policies to train, and their cost in token positions.

Rows of stored data are counted exactly; of methods that draw their own responses the longest that they may draw is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.objectives.rounds import OnPolicy
from trueline.records import Comparison
from trueline.store import local_folder
from trueline.study.arms import Arm
from trueline.study.budget import share_of, tokens_per_update
from trueline.study.cells import Cells
from trueline.study.contest import bill
from trueline.study.drawn import responses_of
from trueline.study.rows import Parts, records_of, split
from trueline.study.settings import Budget, Settings
from trueline.study.training import Bench, Material, generations
from trueline.study.work import needs_reward, policies
from trueline.tokens import load_tokenizer

Table = list[dict[str, Any]]
AFTER = "after drawing"
PROBED = ("updates", "positions each")
"""What a budget in minutes, or in tokens that are yet to be drawn, leaves to a probe."""


def preview(
    model: str | Path, pairs: Sequence[Comparison], arms: Sequence[Arm], budget: Budget, settings: Settings, *, judged: bool, reward: str,
    drawn: bool = False, form: str = "", bound: int = 0,
) -> list[tuple[str, Table]]:
    """(title, rows) of each table. `drawn`: the responses are not there yet (study.drawn). `form`, `bound`: of a judge that is
    asked in verdicts or ratings (study.contest.bill)."""
    budget = budget.resolved()
    parts = split(pairs, needs_judge=not judged)
    start = local_folder(model, "tokenizer")
    bench = Bench(start=start, start_key="", tokenizer=load_tokenizer(start), settings=settings, cells=Cells(Path()))
    sides = [
        {"part": side, "prompts": f"{len(parts.prompts(side)):,}", "comparisons": f"{len(parts.of(side)):,}", "for": purpose}
        for side, purpose in (("train", "methods and the reward models that drive them"), ("judge", "the reward model that judges"),
                              ("tuning", "learning rates"), ("report", "everything that is reported"))
        if parts.of(side)
    ]  # fmt: skip
    cells = [cell_row(bench, arm, parts, budget, drawn) for arm in arms]
    rewards: Table = []
    for side, used in (("train", reward == "learned" and any(map(needs_reward, arms))), ("judge", not judged)):
        if used:
            count = len(settings.learning_rates) - 1 + (len(settings.seeds) if side == "train" else 1)
            each = AFTER if drawn else f"{sum(Material(bench, parts.of(side)).positions):,}"
            rewards.append({"reward model": f"on the {side} part", "models": count, "positions each": each})
    answered = min(len(parts.prompts("report")), settings.report_prompts or len(pairs))
    tuned = min(len(parts.prompts("tuning")), settings.tuning_prompts or len(pairs))
    measured = sum(len(arm.settings) * len(settings.seeds) * settings.checkpoints for arm in arms if arm.trains)
    chosen = [1 + max(s.n for s in arm.settings) for arm in arms if not arm.trains]  # and answers that nobody chooses among
    draws = settings.samples * len(settings.seeds) * sum(chosen)
    trials = sum(len(arm.learning_rates) for arm in arms if arm.trains)
    answers = settings.samples * (answered * (measured + len(settings.seeds)) + tuned * trials) + answered * draws
    work: Table = [{"policies measured": f"{measured:,}", "trials": f"{trials:,}", "answers to draw": f"{answers:,}",
                    "tokens, at most": f"{answers * settings.max_new_tokens:,}"}]  # fmt: skip
    tables = [("prompts by use", sides), (f"policies to train, {budget} each", cells), ("measuring", work)]
    if form:
        owed = bill(
            arms, settings, form=form, answered=answered, tuned=tuned, bound=bound, responses=responses_of(settings),
            prompts=sum(len(parts.prompts(side)) for side in ("train", "tuning", "report")) if drawn else 0,
            driven=budget if reward == "judge" else None,
        )  # fmt: skip
        tables.append(("the judge", owed.checked().table()))
    return [*tables[:2], *([("reward models to train", rewards)] if rewards else []), *tables[2:]]


def cell_row(bench: Bench, arm: Arm, parts: Parts, budget: Budget, drawn: bool) -> dict[str, Any]:
    """One arm."""
    row: dict[str, Any] = {"method": arm.name, "policies": policies(arm, bench.settings), "updates": "–", "positions each": "–"}
    objective = arm.main.objective
    if objective is None:
        return row | {"remark": f"draws {arm.main.n} responses per answer"}
    material = Material(bench, records_of(objective, parts))
    if isinstance(objective, OnPolicy):
        responses = generations(objective, bench.drawing(arm.main.generations).settings)
        longest = bench.settings.max_new_tokens * responses
        each = bench.settings.per_device_train_batch_size * (float(np.mean(material.prompt_lengths)) + longest)
        known = budget.updates
        remark = f"draws {responses} responses per prompt"
        row |= {"updates": f"{known:,}", "positions each": f"{known * each:,.0f} at most"} if known else dict.fromkeys(PROBED, "by a probe")
        return row | {"remark": remark}
    if drawn:
        updates = f"{budget.updates:,}" if budget.updates else AFTER
        return row | {"updates": updates, "positions each": AFTER, "remark": f"{len(parts.prompts('train')):,} prompts"}
    if budget.minutes:
        return row | dict.fromkeys(PROBED, "by a probe") | {"remark": f"{len(material.records):,} rows"}
    share = share_of(bench, arm, material, budget, None, {"tokens": 0.0, "seconds": 0.0})
    total = share.updates * tokens_per_update(material)
    return row | {"updates": f"{share.updates:,}", "positions each": f"{total:,.0f}", "remark": f"{len(material.records):,} rows"}
