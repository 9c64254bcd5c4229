"""Measurements to what the report says: points with their intervals, win rates, gains, cost.

    compile_results(job, ...) -> a dictionary, JSON-ready: the same bytes for the same study, however often it was stopped
    seconds_of(job, ...)      -> what the clock said, which is never the same twice, apart

A learned reward has no unit of its own: it is shown as its gain over the start, in standard deviations of the start's answers, beside the
true reward's. Left out: intervals (figures), which to choose (verdict).
Legend: S seeds, P prompts, A answers per prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from trueline.align.llm_judge import LLMJudge
from trueline.evals.frontier import Point, frontier
from trueline.evals.result import Interval, to_plain
from trueline.study.arms import Arm
from trueline.study.budget import Share
from trueline.study.contest import Contest, Pair, shown_as
from trueline.study.figures import Gap, Pool, Taken, clipped, gained, in_sd, taken, won
from trueline.study.rewards import calibration
from trueline.study.settings import Budget
from trueline.study.verdict import START, verdict
from trueline.study.work import Job, Measured, Runs, Tuned, needs_reward

FORWARD = 1 / 3
"""What a position costs that is only read or drawn, where one that is trained on costs 1: forward against forward and backward."""

ENDS = ("estimate", "low", "high")
SAMPLES = 8
"""Prompts whose answers are shown."""


def point(one: Taken, start: Taken, pool: Pool, compares: bool) -> dict[str, Any]:
    """A row of frontier.csv."""
    gain, reward = pool.against(one, start, "gain", gained), pool.alone(one, "reward", lambda of: of.true)
    if compares:
        gain, reward = clipped(gain, -0.5, 0.5), clipped(reward, 0.0, 1.0)
    row: dict[str, Any] = {
        "arm": one.arm, "label": one.label, "step": one.step, "main": one.main,
        "kl": pool.alone(one, "kl", lambda of: of.kl, share=True).to_dict(),
        "reward": reward.to_dict(), "gain": gain.to_dict(),
        "gain_sd": in_sd(replace(gain, **{part: 0.5 + getattr(gain, part) for part in ENDS})).to_dict() if compares else
                   scaled(gain, float(np.nanstd(start.true)) or 1.0).to_dict(),
        "learned_gain_sd": None, "tokens": pool.alone(one, "tokens", lambda of: of.tokens, share=True).to_dict(),
        "finished": float(one.finished.mean()), "no_verdict": float(np.isnan(one.true).mean()),
    }  # fmt: skip
    if one.learned is not None and start.learned is not None:
        scale_S11 = start.learned.std(axis=(1, 2), keepdims=True) + 1e-12  # every seed has a reward model with a scale of its own
        learned = pool.against(one, start, "learned", lambda a, b: (learned_of(a) - learned_of(b)) / scale_S11)
        row["learned_gain_sd"] = learned.to_dict()
    return row


def learned_of(one: Taken) -> np.ndarray:
    assert one.learned is not None, "all policies of a study are scored by the reward model, or none is"
    return one.learned


def scaled(interval: Interval, unit: float) -> Interval:
    """In other units."""
    return replace(interval, **{part: getattr(interval, part) / unit for part in (*ENDS, "se")})


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


def win_matrix(pool: Pool, faced: Mapping[Pair, np.ndarray] | None) -> list[list[dict[str, Any] | None]]:
    """How often the row's answer is better than the column's, a tie by half; None where the judge was not asked. The intervals hold
    together. `faced`: what a judge that compares said of every two; None for one that scores."""
    names = [one.arm for one in pool.mains]
    found: list[list[dict[str, Any] | None]] = [[None for _ in names] for _ in names]
    for i, j in combinations(range(len(names)), 2):
        if faced is not None and (names[i], names[j]) not in faced:
            continue
        gap: Gap = won if faced is None else lambda a, b: duel(faced, a, b)
        share = clipped(pool.against(pool.mains[i], pool.mains[j], "won", gap), 0.0, 1.0)
        found[i][j] = share.to_dict()
        found[j][i] = replace(share, estimate=1 - share.estimate, low=1 - share.high, high=1 - share.low).to_dict()
    return found


def duel(faced: Mapping[Pair, np.ndarray], a: Taken, b: Taken) -> np.ndarray:
    """What the judge said of a's answers against b's."""
    return faced[a.arm, b.arm] if (a.arm, b.arm) in faced else 1 - faced[b.arm, a.arm]


def differences(pool: Pool, faced: Mapping[Pair, np.ndarray] | None) -> list[dict[str, Any]]:
    """For every two a less b, with intervals that hold together: of mean rewards; of a judge that compares the win rate less a half where
    it was asked about the two ("direct"), else the difference of their win rates against the start."""
    found = []
    for a, b in combinations(pool.mains, 2):
        direct = faced is not None and (a.arm, b.arm) in faced
        gap: Gap = (lambda a, b: duel(faced, a, b) - 0.5) if faced is not None and direct else gained
        name = "won" if direct else "gain"
        difference = pool.against(a, b, name, gap)
        difference = clipped(difference, -0.5, 0.5) if direct else difference
        found.append({"a": a.arm, "b": b.arm, "direct": direct, "difference": difference.to_dict()})
    return found


def compile_results(
    job: Job, budget: Budget, shares: Mapping[str, Share], tuned: Mapping[str, Tuned], runs: Mapping[str, Runs],
    start_found: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Everything that results.json, the tables and the report say."""
    start = taken(START, True, False, Measured(label=START, step=0, last=True, found=[one[""] for one in start_found]))
    everything = [start]
    for arm in job.arms:
        seeded = arm.trains or (job.rewards is not None and len({cell.key for cell in job.rewards.cells.values()}) > 1)
        everything += [taken(arm.name, one.last and one.label == arm.main.label, seeded, one) for one in runs[arm.name].measured]
    assert all(len(one.true) == len(start.true) for one in everything), "every policy is measured with every seed"
    pool = Pool([one for one in everything if one.main])
    said = faced_of(job, job.contest, pool.mains) if job.contest is not None else None
    faced = {names: shares for names, (shares, _) in said.items()} if said is not None else None
    points = [point(one, start, pool, faced is not None) for one in everything]
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
        "seeds": len(job.settings.seeds), "budget": str(budget), "settings": to_plain(job.settings), 
        "judge": judge_of(job, [*tallies(runs), *(tally for _, tally in (said or {}).values())]),
        "prompts": {side: len(job.parts.prompts(side)) for side in ("train", "judge", "tuning", "report")},
        "answered": len(job.prompts("report")), "comparisons": len(job.parts.train),
        "arms": arms, "points": points, "undominated": undominated(points), "equal_kl": at_equal_kl(points),
        "matrix": win_matrix(pool, faced),
        "differences": differences(pool, faced), "calibration": calibrations(job), "samples": samples(job, pool.mains),
    }  # fmt: skip
    results = to_plain(results)
    return results | {"verdict": verdict(results)}


def faced_of(job: Job, contest: Contest, mains: Sequence[Taken]) -> dict[Pair, tuple[np.ndarray, Counter[str]]]:
    """Verdicts [S, P, A] on the first's answers against the second's, and their tally: of the start against everybody, and where the bound
    allows it of every two policies."""
    start, *others = mains
    found = {(start.arm, one.arm): (1 - one.true, Counter[str]()) for one in others}  # asked when they were measured
    for a, b in combinations(others if contest.between else (), 2):
        theirs = np.roll(np.array(b.texts, dtype=object), -1, axis=0 if len(b.texts) > 1 else 2).tolist()  # figures.unlucky
        said = [contest.verdicts(job.prompts("report"), ours, other) for ours, other in zip(a.texts, theirs, strict=True)]
        shares = np.array([one["shares"] for one in said], dtype=np.float64)
        found[a.arm, b.arm] = shares, sum((Counter(one["tally"]) for one in said), Counter())
    return found


def tallies(runs: Mapping[str, Runs]) -> list[Counter[str]]:
    """Of what was asked about the policies of the report."""
    return [Counter(found["tally"]) for run in runs.values() for one in run.measured for found in one.found if "tally" in found]


def judge_of(job: Job, asked: Sequence[Counter[str]]) -> dict[str, Any]:
    """Who judges, and of one that compares how it did."""
    if job.judging is not None:
        return {"name": "a reward model that learned from other prompts", "learned": True, "compares": False}
    assert job.judge is not None
    about: dict[str, Any] = {"name": shown_as(job.judge), "learned": False, "compares": job.contest is not None}
    if job.contest is None:
        return about
    total = sum(asked, Counter[str]())
    decided = total["pairs"] - total["equal"] - total["none"]
    swapped = {"consistency": total["consistent"] / decided if decided else None} if isinstance(job.judge, LLMJudge) else {}
    return about | {"between": job.contest.between, "pairs": total["pairs"], "equal": total["equal"], "none": total["none"]} | swapped


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
