"""The frontiers of recipes.sentiment: reward at equal KL, differences between arms seed by seed, cost, samples, and a plot.

    python -m recipes.sentiment_report --out out/sentiment

Reads the cells of the studies in OUT and writes OUT/report.md and OUT/frontier.svg. A run is a path from the start (KL 0) over its
checkpoints, sorted by KL; its reward at a given KL is linear in the root of the KL between them, as reward is near the start (Bai et
al., 2204.05862, section 4.3), and not given beyond its last. At each KL an arm has, for each seed, the learning rate that the other
seeds find best there: no run has a say in its own choice. Differences are taken between runs of the same seed, which answer the same
prompts with the same luck; standard errors are over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline.align.best_of_n import kl_bound
from trueline.store import write_atomic
from trueline.study.page import new_figure, to_svg
from trueline.study.plots import GREY, PALETTE

STUDIES = {"true": "true reward", "learned": "learned reward", "betas": "true reward", "drawn": "true reward"}
"""Folder -> what rewards the answers that its methods draw."""
LEVELS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0)
"""KL at which arms are compared, nats per answer."""
START, BEST = "start", "best of n"
SHOWN = 5


@dataclass(frozen=True)
class Point:
    """Answers of one policy to the report prompts."""

    arm: str
    rate: float
    seed: int
    step: int
    kl: float
    reward: float
    found: Mapping[str, Any]
    """What the cell says: texts, tokens, finished."""


def finished(points: Sequence[Point]) -> list[Point]:
    """Those of arms and learning rates of which every seed was measured at the same steps: a study that still runs has others."""
    seeds = {one.seed for one in points if one.arm == START}
    steps: dict[tuple[str, float], dict[int, set[int]]] = {}
    for one in points:
        steps.setdefault((one.arm, one.rate), {}).setdefault(one.seed, set()).add(one.step)
    whole = {key for key, found in steps.items() if set(found) == seeds and len(set(map(frozenset, found.values()))) == 1}
    return [one for one in points if (one.arm, one.rate) in whole]


Run = tuple[np.ndarray, np.ndarray]
"""KL and reward of one run, by increasing KL."""
Runs = dict[str, dict[float, dict[int, Run]]]
"""Arm -> learning rate -> seed -> run."""


def points_of(study: Path, driven: str, *, tuning: bool = False) -> list[Point]:
    """What was measured on the report prompts in a study, or on the tuning prompts. `driven` names what rewards the methods there."""
    plans = json.loads((study / "plan.json").read_text(encoding="utf-8"))
    updates = max(share["updates"] for share in plans.values())
    policies = {folder.name.removeprefix("policy-"): inputs(folder) for folder in (study / "cells").glob("policy-*")}
    answers = [(inputs(folder), folder / "answers.json") for folder in sorted((study / "cells").glob("answers-*"))]
    asked = {about["prompts"] for about, _ in answers if about["policy"][:16] not in policies}  # the start answers nothing else
    found = []
    for about, path in answers:
        policy = policies.get(about["policy"][:16])
        if not path.exists() or (about["prompts"] not in asked) != tuning or (policy and policy["training"]["max_steps"] != updates):
            continue
        for way, one in json.loads(path.read_text(encoding="utf-8")).items():
            if way == "drawn":
                continue
            arm, rate = (f"{BEST}, {driven}" if way else START), 0.0
            if policy is not None:
                arm, rate = arm_of(policy["objective"], driven), policy["training"]["learning_rate"]
            kl = float(np.mean(one["kl"])) if "kl" in one else kl_bound(one["n"])
            found.append(Point(arm, rate, about["seed"], one["n"] if way else about["step"], kl, float(np.mean(one["true"])), one))
    return found


def inputs(folder: Path) -> dict[str, Any]:
    """What a cell was made from."""
    found: dict[str, Any] = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    return found


def arm_of(objective: Mapping[str, Any], driven: str) -> str:
    """Its name in the tables."""
    match objective["verb"]:
        case "dpo":
            return f"DPO, β {objective['beta']:g}"
        case "ppo":
            return f"PPO, {driven}"
        case "rso":  # without rejection
            return "DPO, new answers"
        case "sft":
            return "preferred-FT"
        case verb:
            return str(verb)


def runs_of(points: Sequence[Point]) -> Runs:
    """Every run as a path from the start of its seed."""
    start = {one.seed: one.reward for one in points if one.arm == START}
    steps: dict[tuple[str, float, int], list[tuple[float, float]]] = {}
    for one in points:
        if one.arm != START and one.seed in start:
            steps.setdefault((one.arm, one.rate, one.seed), []).append((one.kl, one.reward))
    found: Runs = {}
    for (arm, rate, seed), own in sorted(steps.items()):
        kl, reward = zip((0.0, start[seed]), *sorted(own), strict=True)
        found.setdefault(arm, {}).setdefault(rate, {})[seed] = (np.array(kl), np.array(reward))
    return found


def at(run: Run, kl: float) -> float:
    """Reward at this KL; not a number where the run does not get there."""
    kls, rewards = run
    return float(np.interp(math.sqrt(kl), np.sqrt(kls), rewards)) if kl <= kls[-1] else math.nan


def rewards_at(rates: Mapping[float, Mapping[int, Run]], kl: float) -> dict[int, float]:
    """Seed -> reward at this KL, at the learning rate with the best mean of the other seeds there; nan where none gets there."""
    seeds = sorted({seed for runs in rates.values() for seed in runs})
    found = {}
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        means = {rate: float(np.mean([at(runs[other], kl) for other in others if other in runs])) for rate, runs in rates.items()}
        known = {rate: mean for rate, mean in means.items() if seed in rates[rate] and not math.isnan(mean)}
        found[seed] = at(rates[max(known, key=lambda rate: known[rate])][seed], kl) if known else math.nan
    return found


def said(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard error over seeds; with one seed the value alone."""
    if not len(values) or not np.isfinite(values).all():
        return "–"
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{error}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def by_rate(runs: Runs) -> str:
    """Reward at each KL that all seeds of a learning rate reach."""
    rows = [
        [arm, f"{rate:g}" if rate else "", *(said([at(run, kl) for run in by_seed.values()]) for kl in LEVELS)]
        for arm, rates in runs.items()
        for rate, by_seed in rates.items()
    ]
    return table(["arm", "learning rate", *(f"KL {kl:g}" for kl in LEVELS)], rows)


def chosen(runs: Runs) -> str:
    """Reward at each KL, at the learning rate that the other seeds choose."""
    rows = [[arm, *(said([*rewards_at(rates, kl).values()]) for kl in LEVELS)] for arm, rates in runs.items()]
    return table(["arm", *(f"KL {kl:g}" for kl in LEVELS)], rows)


def differences(runs: Runs, arm: str) -> dict[str, list[tuple[float, float]]]:
    """Other arm -> per level (mean, standard error) of the reward of `arm` less the other's, seed by seed; nan where one is not there."""
    found: dict[str, list[tuple[float, float]]] = {}
    for other, rates in runs.items():
        for kl in LEVELS if other != arm else ():
            ours, theirs = rewards_at(runs[arm], kl), rewards_at(rates, kl)
            gaps = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
            if len(gaps) > 1:
                found.setdefault(other, []).append((float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))))
    return found


def difference_table(found: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One row per arm; bold beyond two standard errors."""

    def cell(gap: float, error: float) -> str:
        text = f"{gap:+.3f} ± {error:.3f}"
        return "–" if math.isnan(gap) else f"**{text}**" if abs(gap) > 2 * error else text

    rows = [[arm, *(cell(*one) for one in row)] for arm, row in found.items()]
    return table(["less the reward of", *(f"KL {kl:g}" for kl in LEVELS)], rows)


def verdict(gaps: Sequence[tuple[float, float]]) -> str:
    """reproduced: ahead by two standard errors at every common KL; partly: at some, and behind at none; else not."""
    known = [(gap, error) for gap, error in gaps if not math.isnan(gap)]
    ahead, behind = (sum(sign * gap > 2 * error for gap, error in known) for sign in (1, -1))
    if not known:
        return "no common KL"
    where = f"ahead by two standard errors at {ahead} of {len(known)} levels, behind at {behind}"
    mixed = "not reproduced" if behind else "partly" if ahead else "not told apart"
    return f"{'reproduced' if ahead == len(known) else mixed} ({where})"


def trials(points: Sequence[Point]) -> str:
    """Reward and KL on the tuning prompts where runs of the first seed end, for every learning rate."""
    rates = sorted({one.rate for one in points})
    ends_ = {(one.arm, one.rate): f"{one.reward:.3f}, {one.kl:.1f}" for one in points}
    rows = [[arm, *(ends_.get((arm, rate), "–") for rate in rates)] for arm in sorted({one.arm for one in points})]
    return table(["arm", *(f"{rate:g}" for rate in rates)], rows)


def ends(points: Sequence[Point]) -> str:
    """Where the runs of every arm and rate end: reward, KL, and how the answers look."""
    rows = []
    for arm, rate in sorted({(one.arm, one.rate) for one in points}):
        own = [one for one in points if (one.arm, one.rate) == (arm, rate)]
        last = [one for one in own if one.step == max(other.step for other in own)]
        texts = [[text for answers in one.found["texts"] for text in answers] for one in last]
        words = [[word for text in many for word in text.split()] for many in texts]
        about = (
            [one.reward for one in last], [one.kl for one in last], [np.mean(one.found["tokens"]) for one in last],
            [np.mean(one.found["finished"]) for one in last], [len(set(many)) / len(many) for many in texts],
            [len(set(many)) / len(many) for many in words],
        )  # fmt: skip
        name = f"{arm}, n {last[0].step}" if arm.startswith(BEST) else arm
        rows.append([name, f"{rate:g}" if rate else "", *map(said, about, (3, 2, 1, 2, 2, 2))])
    return table(["arm", "learning rate", "reward", "KL", "tokens", "ended", "different answers", "different words"], rows)


def costs(out: Path) -> str:
    """Positions of one run of each arm, as the study counts them; seconds of its training, mean over seeds and rates."""
    rows = []
    for name, driven in there(out).items():
        results = json.loads((out / name / "results.json").read_text(encoding="utf-8"))
        seconds: dict[str, list[float]] = {}
        for folder in (out / name / "cells").glob("policy-*"):
            if (folder / "trained.json").exists():
                spent = float((folder / "seconds.json").read_text(encoding="utf-8"))
                seconds.setdefault(arm_of(inputs(folder)["objective"], driven), []).append(spent)
        for arm in results["arms"]:
            label = {"dpo": "DPO, β " + arm["main"]["label"].partition("beta=")[2].partition(",")[0], "ppo": f"PPO, {driven}",
                     "sft": "preferred-FT", "rso": "DPO, new answers"}.get(arm["verb"])  # fmt: skip
            if label:
                parts = [arm["cost"][part] for part in ("trained", "sampled", "scored", "reference", "reward_model", "total")]
                rows.append([label, *(f"{part / 1000:,.0f}" for part in parts), f"{np.mean(seconds.get(label, [math.nan])):.0f}"])
    return table(["arm", "trained", "sampled", "scored", "reference", "reward model", "in all", "seconds"], rows)


def samples(points: Sequence[Point], prompts: Sequence[str], arms: Sequence[str], rate: float) -> str:
    """Answers of the first seed to the first prompts, with their rewards."""
    rows = []
    for arm in arms:
        own = [one for one in points if one.arm == arm and one.seed == 0 and one.rate in (0.0, rate)]
        last = max(own, key=lambda one: one.step)
        for p, prompt in enumerate(prompts[:SHOWN]):
            text, reward = last.found["texts"][p][0].replace("|", "\\|"), last.found["true"][p][0]
            rows.append([f"{arm}, KL {last.kl:.1f}" if not p else "", f"*{prompt}*{text}", f"{reward:.2f}"])
    return table(["arm", "answer", "P(positive)"], rows)


def frontier_svg(runs: Runs) -> str:
    """A line per arm and learning rate, means over seeds; an arm has one colour."""
    figure, axes = new_figure()
    for number, (arm, rates) in enumerate(runs.items()):
        style = {"color": PALETTE[number % len(PALETTE)], "marker": "o"}
        if arm.startswith(BEST):
            style = {"color": GREY, "ls": ":", "marker": "^" if "learned" in arm else "v"}
        for rate, by_seed in rates.items():
            kl, reward = (np.mean([run[part] for run in by_seed.values()], axis=0) for part in (0, 1))
            axes.plot(kl, reward, lw=1, ms=3, alpha=0.8, label=arm if rate == min(rates) else None, **style)
    axes.set_xlabel("KL from the start (nats per answer)")
    axes.set_ylabel("P(positive)")
    axes.set_xlim(-0.3, 16)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return to_svg(figure)


def report(out: Path) -> str:
    """Everything, written to OUT/report.md and OUT/frontier.svg."""
    seen: dict[tuple[str, float, int, int], Point] = {}
    for name, driven in there(out).items():
        for one in points_of(out / name, driven):  # every study measures the start
            seen.setdefault((one.arm, one.rate, one.seed, one.step), one)
    points = finished(list(seen.values()))
    runs = runs_of(points)
    dpo = "DPO, β 0.1"
    gaps = differences(runs, dpo)
    write_atomic(out / "frontier.svg", frontier_svg(runs))
    results = json.loads((out / "true/results.json").read_text(encoding="utf-8"))
    prompts = [str(sample["prompt"]) for sample in results["samples"]]
    tuning = [one for name, driven in there(out).items() for one in points_of(out / name, driven, tuning=True)]
    about = json.loads((out / "truth/accuracy.json").read_text(encoding="utf-8"))
    shown = [START, dpo, *(f"PPO, {driven}" for driven in dict.fromkeys(there(out).values()))]
    parts = [
        f"The truth is right on {about['sentences'][1]:.1%} of {about['sentences'][0]:,} held-out sentences and {about['imdb'][1]:.1%} of "
        f"{about['imdb'][0]:,} IMDb reviews; {about['features']:,} features.",
        f"Reward at equal KL\n\n{chosen(runs)}",
        f"{dpo}, less the other arm, at equal KL, paired by seed\n\n{difference_table(gaps)}",
        "\n".join(f"- {dpo} above {arm}: {verdict(row)}" for arm, row in gaps.items()),
        f"Each learning rate\n\n{by_rate(runs)}",
        f"Reward, KL on the tuning prompts by learning rate, first seed\n\n{trials(tuning)}",
        f"Where runs end\n\n{ends(points)}",
        f"Cost of one run, thousand positions\n\n{costs(out)}",
        f"Samples: seed 0, the first prompts, the middle learning rate\n\n{samples(points, prompts, shown, middle(runs[dpo]))}",
    ]
    found = "\n\n".join(parts) + "\n"
    write_atomic(out / "report.md", found)
    return found


def there(out: Path) -> dict[str, str]:
    """The studies of which a first rate is finished."""
    return {name: driven for name, driven in STUDIES.items() if (out / name / "results.json").exists()}


def middle(rates: Mapping[float, Any]) -> float:
    """The middle one of an arm's learning rates."""
    return sorted(rates)[len(rates) // 2]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder of recipes.sentiment")
    print(report(parser.parse_args().out))


if __name__ == "__main__":
    main()
