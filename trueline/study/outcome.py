"""Measurements to what the report says: points with their intervals, win rates, gains, cost.

    compile_results(job, ...) -> a dictionary, JSON-ready: the same bytes for the same study, however often it was stopped
    seconds_of(job, ...)      -> what the clock said, which is never the same twice, apart

Every figure is a mean over training seeds and report prompts (evals.interval.crossed_mean); differences and win rates are taken
prompt by prompt and seed by seed. A learned reward has no unit of its own: it is shown as its gain over the start, in standard
deviations of the start's answers, beside the true reward's.
Legend: S seeds, P prompts, A answers per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline.align.best_of_n import kl_bound
from trueline.evals.frontier import Point, frontier
from trueline.evals.interval import crossed_mean
from trueline.evals.result import Interval, to_plain
from trueline.evals.winrate import outcomes
from trueline.study.arms import Arm
from trueline.study.budget import Share
from trueline.study.rewards import calibration
from trueline.study.settings import Budget
from trueline.study.verdict import START, verdict
from trueline.study.work import Job, Measured, Runs, Tuned, needs_reward

FORWARD = 1 / 3
"""What a position costs that is only read or drawn, where one that is trained on costs 1: forward against forward and backward."""

SIMULTANEOUS = 0.95
"""Level at which all comparisons of arms hold together."""
SAMPLES = 8
"""Prompts whose answers are shown."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One policy at one step, or one way to answer, over all seeds: figures [S, P, A]."""

    arm: str
    label: str
    step: int
    main: bool
    """The arm's last policy at its main setting: what it is compared by."""
    true: np.ndarray
    learned: np.ndarray | None
    kl: np.ndarray
    tokens: np.ndarray
    finished: np.ndarray
    texts: Sequence[Sequence[Sequence[str]]]
    """[S][P][A]."""


def taken(arm: str, main: bool, one: Measured) -> Taken:
    """The figures of all seeds as arrays."""
    found = one.found
    arrays = {name: np.array([by[name] for by in found], dtype=np.float64) for name in ("true", "tokens", "finished")}
    bound = np.full_like(arrays["true"], kl_bound(int(found[0]["n"])))  # of one draw of the start it is 0
    kl = np.array([by["kl"] for by in found], dtype=np.float64) if "kl" in found[0] else bound
    learned = None if found[0]["learned"] is None else np.array([by["learned"] for by in found], dtype=np.float64)
    texts = [by["texts"] for by in found]
    return Taken(arm=arm, label=one.label, step=one.step, main=main, kl=kl, learned=learned, texts=texts, **arrays)


def mean_of(values_SPA: np.ndarray, level: float = 0.95) -> Interval:
    """Over answers first, then seeds and prompts."""
    return crossed_mean(values_SPA.mean(2), level=level)


def point(one: Taken, start: Taken) -> dict[str, Any]:
    """A row of frontier.csv."""
    spread = float(start.true.std()) or 1.0
    row: dict[str, Any] = {
        "arm": one.arm, "label": one.label, "step": one.step, "main": one.main,
        "kl": mean_of(one.kl).to_dict(), "reward": mean_of(one.true).to_dict(), "gain": mean_of(one.true - start.true).to_dict(),
        "gain_sd": mean_of((one.true - start.true) / spread).to_dict(), "learned_gain_sd": None,
        "tokens": mean_of(one.tokens).to_dict(), "finished": float(one.finished.mean()),
    }  # fmt: skip
    if one.learned is not None and start.learned is not None:
        scale_S = start.learned.std(axis=(1, 2)) + 1e-12  # every seed has a reward model with a scale of its own
        row["learned_gain_sd"] = mean_of((one.learned - start.learned) / scale_S[:, None, None]).to_dict()
    return row


def undominated(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """ "label@step" of the points that no other beats in both KL and reward, by increasing KL."""
    found = [
        Point(name=f"{p['label']}@{p['step']}", family=p["arm"], kl=Interval(**p["kl"]), reward=Interval(**p["reward"]))
        for p in points
    ]
    return [one.name for one in frontier(found)]


def at_equal_kl(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every arm's reward at the largest KL that all of them have reached, linear between the points of its main setting."""
    start = next(p for p in points if p["arm"] == START)
    paths = {}
    for main in points:
        if main["main"] and main["arm"] != START:
            own = [p for p in points if p["arm"] == main["arm"] and (p["label"] == main["label"] or not p["step"])]
            kl, reward = ([p[name]["estimate"] for p in (start, *own)] for name in ("kl", "reward"))
            order = np.argsort(kl, kind="stable")
            paths[main["arm"]] = (np.array(kl)[order], np.array(reward)[order])
    common = min(float(path[0][-1]) for path in paths.values())
    return {"kl": common, "reward": {name: float(np.interp(common, *path)) for name, path in paths.items()}}


def win_matrix(mains: Sequence[Taken]) -> list[list[dict[str, Any] | None]]:
    """How often the row's answer is scored above the column's, a tie by half; both answer the same prompt with the same luck."""
    return [[None if a is b else mean_of(outcomes(a.true, b.true)).to_dict() for b in mains] for a in mains]


def differences(mains: Sequence[Taken]) -> list[dict[str, Any]]:
    """Mean reward of a less that of b for every two, with intervals that hold together (Bonferroni)."""
    pairs = [(a, b) for i, a in enumerate(mains) for b in mains[i + 1 :]]
    level = 1 - (1 - SIMULTANEOUS) / max(1, len(pairs))
    return [{"a": a.arm, "b": b.arm, "difference": mean_of(a.true - b.true, level).to_dict()} for a, b in pairs]


def compile_results(
    job: Job, budget: Budget, shares: Mapping[str, Share], tuned: Mapping[str, Tuned], runs: Mapping[str, Runs],
    start_found: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Everything that results.json, the tables and the report say."""
    start = taken(START, True, Measured(label=START, step=0, last=True, found=[one[""] for one in start_found]))
    everything = [start]
    for arm in job.arms:
        everything += [taken(arm.name, one.last and one.label == arm.main.label, one) for one in runs[arm.name].measured]
    points = [point(one, start) for one in everything]
    mains = [one for one in everything if one.main]
    main_points = {p["arm"]: p for p in points if p["main"]}
    arms = [
        {"name": START, "main": main_points[START], "cost": free(start_found), "trials": [], "learning_rate": 0.0, "updates": 0,
         "how": "", "verb": START, "models": []}
    ]  # fmt: skip
    for arm in job.arms:
        arms.append({
            "name": arm.name, "verb": arm.verb, "main": main_points[arm.name], "learning_rate": tuned[arm.name].learning_rate,
            "trials": tuned[arm.name].trials, "updates": shares[arm.name].updates, "how": shares[arm.name].how,
            "cost": cost_of(job, arm, runs[arm.name]),
            "models": [(cell.folder / "run").relative_to(job.bench.cells.root.parent).as_posix() for cell in runs[arm.name].cells],
        })  # fmt: skip
    results: dict[str, Any] = {
        "seeds": len(job.settings.seeds), "budget": str(budget), "settings": to_plain(job.settings), "judge": judge_of(job),
        "prompts": {side: len(job.parts.prompts(side)) for side in ("train", "judge", "tuning", "report")},
        "answered": len(job.prompts("report")), "comparisons": len(job.parts.train),
        "arms": arms, "points": points, "undominated": undominated(points), "equal_kl": at_equal_kl(points), "matrix": win_matrix(mains),
        "differences": differences(mains), "calibration": calibrations(job), "samples": samples(job, mains),
    }  # fmt: skip
    results = to_plain(results)
    return results | {"verdict": verdict(results)}


def judge_of(job: Job) -> dict[str, Any]:
    """Who judges."""
    if job.judging is None:
        assert job.judge is not None
        return {"name": Path(job.judge.name).name, "learned": False}
    return {"name": "a reward model that learned from other prompts", "learned": True}


def cost_of(job: Job, arm: Arm, runs: Runs) -> dict[str, Any]:
    """Token positions per policy at the main setting, means over seeds; what an answer takes; all in trained positions."""
    spent = [cell.read("trained.json") for cell in runs.cells]
    cost: dict[str, Any] = {
        name: float(np.mean([one[name] for one in spent])) if spent else 0.0
        for name in ("trained", "critic", "reference", "sampled", "scored")
    }
    if job.drawn is not None and job.uses_pairs(arm):
        cost["sampled"] += job.drawn.positions * len(job.parts.prompts("train"))
    uses = job.rewards is not None and needs_reward(arm)
    cells = job.rewards.cells.values() if uses and job.rewards is not None else ()
    cost["reward_model"] = float(np.mean([cell.read("trained.json")["trained"] for cell in cells])) if uses else 0.0
    forward = cost["reference"] + cost["sampled"] + cost["scored"]
    cost["total"] = cost["trained"] + cost["critic"] + cost["reward_model"] + FORWARD * forward
    cost["per_answer"] = per_answer(runs.drawn, arm.main.n)
    return cost


def free(start_found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The start's cost: its answers."""
    nothing = dict.fromkeys(("trained", "critic", "reference", "sampled", "scored", "reward_model", "total"), 0.0)
    return nothing | {"per_answer": per_answer([one["drawn"] for one in start_found], 1)}


def per_answer(drawn: Sequence[Mapping[str, float]], n: int) -> dict[str, float]:
    """Draws, tokens drawn, and positions that a reward model reads to choose among them."""
    tokens = float(np.mean([one["mean_tokens"] for one in drawn]))
    prompt = float(np.mean([one["prompt_tokens"] for one in drawn]))
    return {"draws": n, "tokens": n * tokens, "scored": prompt + n * tokens if n > 1 else 0.0}


def calibrations(job: Job) -> list[dict[str, Any]]:
    """How well the reward models know the preferences of the report part."""
    found = []
    if job.rewards is not None:
        for seed, cell in job.rewards.cells.items():
            found.append({"name": f"reward model, seed {seed}"} | calibration(job.bench, cell, job.parts.report))
    if job.judging is not None:
        found.append({"name": "the reward model that judges"} | calibration(job.bench, job.judging, job.parts.report))
    return found


def samples(job: Job, mains: Sequence[Taken]) -> list[dict[str, Any]]:
    """The first prompts by their hash, with everybody's first answer of the first seed."""
    return [
        {
            "prompt": "\n".join(message.content for message in prompt),
            "answers": {one.arm: [one.texts[0][p][0], float(one.true[0, p, 0])] for one in mains},
        }
        for p, prompt in enumerate(job.prompts("report")[:SAMPLES])
    ]


def every_answer(job: Job, runs: Mapping[str, Runs], start_found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per report prompt: what every method answered with the first seed, and the judge's scores."""
    found = {START: start_found[0][""]}
    for arm in job.arms:
        found[arm.name] = next(one.found[0] for one in runs[arm.name].measured if one.last and one.label == arm.main.label)
    return [
        {
            "prompt": "\n".join(message.content for message in prompt),
            "answers": {name: [list(pair) for pair in zip(one["texts"][p], one["true"][p], strict=True)] for name, one in found.items()},
        }
        for p, prompt in enumerate(job.prompts("report"))
    ]


def seconds_of(job: Job, tuned: Mapping[str, Tuned], runs: Mapping[str, Runs]) -> dict[str, Any]:
    """Wall-clock seconds: of a policy at the main setting (mean over seeds), of the reward model it uses, of all trials."""
    found = {}
    for arm in job.arms:
        cells = runs[arm.name].cells
        shared = list(job.rewards.cells.values()) if job.rewards is not None and needs_reward(arm) else []
        found[arm.name] = {
            "policy": float(np.mean([cell.seconds for cell in cells])) if cells else 0.0,
            "reward_model": float(np.mean([cell.seconds for cell in shared])) if shared else 0.0,
            "trials": tuned[arm.name].seconds,
        }
    return found
