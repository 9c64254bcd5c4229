"""Reward grows in proportion to the square root of KL, early in training: Bai et al.'s law, along exact RLOO and PPO runs.

    python -m recipes.reward_kl_law --out out/law --plots docs/recipes        the same command resumes

Bai et al., 2204.05862: during RLHF the reward is about linear in sqrt(KL(pi || pi_0)). For a small step along the best
policies pi_0 exp(r / beta) the gain is sd(r) sqrt(2 KL), so gain / (sd sqrt(KL)) is 1.41, and that is its upper bound to first order.

    x = sqrt(KL(pi || pi_0)),   y = (E_pi r - E_pi0 r) / sd_pi0(r)             both exact, after every update
    slope of a window = (y where the run reaches its end - y where it reached its start) / its length in x

World: recipes/oracle_world.py with three letters and up to four of them, 121 responses to each of 4 prompts; RLOO and PPO with one
pass over each round of 32 responses, KL in the reward with coefficient 0.02, three learning rates. A seed is a world. `the best`
is the policy with the most reward at each KL: no run is above it.

Cost: about a second of one core per run, 6 runs per seed. Prints the table of docs/recipes/reward_kl_law.md, draws its plot.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.oracle import Method, summary
from recipes.oracle_curves import kept, policies
from recipes.oracle_world import World, make_world
from recipes.sick_curves import compact
from trueline.evals.oracle import expected_reward, mean_kl, reward_at_kl
from trueline.objectives.kl import KLPenalty
from trueline.objectives.ppo import PPO
from trueline.objectives.rloo import RLOO
from trueline.objectives.updates import Update
from trueline.store import write_atomic
from trueline.study.page import new_figure, to_svg

UPDATES, DRAWS, KL_COEF = 60, 8, 0.02
RATES = {"rloo": (0.05, 0.1, 0.2), "ppo": (0.05, 0.1, 0.2)}
EDGES = (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)
"""Windows of sqrt(KL)."""
EARLY = 0.8
"""The line is fitted up to here."""
LAW = math.sqrt(2)

Curve = Mapping[str, list[float]]
"""x and y of a run."""


def objective_of(name: str) -> Any:
    """A method with as little else as possible."""
    kl = KLPenalty(kl_coef=KL_COEF)
    return RLOO(kl=kl) if name == "rloo" else PPO(kl=kl, update=Update(num_iterations=1))


def measured(name: str, rate: float, seed: int, updates: int = UPDATES) -> Curve:
    """One run."""
    world = make_world("smooth", seed, letters=3, longest=4)
    method = Method(name=name, objective=objective_of(name), draws=DRAWS, options={"learning_rate": rate, "lr_scheduler_type": "constant"})
    return curve(world, policies(method, world, updates, 1))


def curve(world: World, found: Sequence[np.ndarray]) -> Curve:
    """What is exact of these policies."""
    ref_PV, reward_PV = world.reference_PV, world.reward_PV
    start, deviation = expected_reward(ref_PV, reward_PV), deviation_of(world)
    kls = [mean_kl(policy_PV, ref_PV) for policy_PV in found]
    return {
        "x": [math.sqrt(max(kl, 0.0)) for kl in kls],
        "y": [(expected_reward(policy_PV, reward_PV) - start) / deviation for policy_PV in found],
    }


def best(seed: int) -> list[float]:
    """The most that y can be at the edges."""
    world = make_world("smooth", seed, letters=3, longest=4)
    start = expected_reward(world.reference_PV, world.reward_PV)
    most = (reward_at_kl(world.reference_PV, world.reward_PV, edge**2) for edge in EDGES)
    return [(reward - start) / deviation_of(world) for reward in most]


def deviation_of(world: World) -> float:
    """Standard deviation of the reward under the reference, within prompts."""
    means_P1 = (world.reference_PV * world.reward_PV).sum(1, keepdims=True)
    return math.sqrt(float((world.reference_PV * (world.reward_PV - means_P1) ** 2).sum(1).mean()))


def reached(run: Curve, x: float) -> float:
    """y where the run first reaches x, between two measurements on the straight line; not a number where it never does."""
    if x <= 0:
        return 0.0
    for number in range(1, len(run["x"])):
        before, after = run["x"][number - 1], run["x"][number]
        if after >= x:
            share = (x - before) / (after - before)
            return run["y"][number - 1] + share * (run["y"][number] - run["y"][number - 1])
    return math.nan


def slopes(edges: Sequence[float]) -> list[float]:
    """Of every window, from y at the edges."""
    return list(np.diff(edges) / np.diff(EDGES))


def straightness(run: Curve) -> float:
    """R^2 of the best straight line through the measurements with x up to EARLY, its intercept free."""
    x, y = (np.array([value for value, at in zip(run[name], run["x"], strict=True) if at <= EARLY]) for name in ("x", "y"))
    if len(x) < 4:
        return math.nan
    left = y - np.polyval(np.polyfit(x, y, 1), x)
    return float(1 - (left**2).sum() / ((y - y.mean()) ** 2).sum())


def cells(out: Path, seeds: int) -> dict[tuple[str, float], list[Curve]]:
    """(method, rate) -> a run per seed."""
    found: dict[tuple[str, float], list[Curve]] = {}
    for seed, name in itertools.product(range(seeds), RATES):
        for rate in RATES[name]:
            about = {"recipe": "reward_kl_law", "method": name, "rate": rate, "seed": seed, "updates": UPDATES, "kl_coef": KL_COEF}
            run = kept(out, about, lambda one=(name, rate, seed): measured(*one))  # type: ignore[misc]
            found.setdefault((name, rate), []).append(run)
    return found


def mean_of(values: Sequence[float]) -> str:
    """Mean and standard error of those that are there, and how many."""
    there = [value for value in values if math.isfinite(value)]
    lost = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
    return summary(there) + lost if there else "none"


def table(found: Mapping[tuple[str, float], Sequence[Curve]]) -> str:
    """Slopes by window, how straight the early part is, and how much more the third window's slope is than the first's."""
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(EDGES)]
    lines = [f"| run | rate | {' | '.join(names)} | R² to {EARLY:g} | third less first |", "|---" * (len(names) + 4) + "|"]

    def line(name: str, rate: str, each: Sequence[list[float]], straight: str) -> str:
        middle = " | ".join(mean_of(values) for values in zip(*each, strict=True))
        return f"| {name} | {rate} | {middle} | {straight} | {mean_of([one[2] - one[0] for one in each])} |"

    for (name, rate), runs in found.items():
        straight = mean_of([straightness(run) for run in runs])
        lines.append(line(name, f"{rate:g}", [slopes([reached(run, edge) for edge in EDGES]) for run in runs], straight))
    return "\n".join([*lines, line("the best at each KL", "", [slopes(best(seed)) for seed in range(len(next(iter(found.values()))))], "")])


def plot(found: Mapping[tuple[str, float], Sequence[Curve]]) -> str:
    """Every run of the middle rate."""
    figure, grid = new_figure(2)
    for axes, name in zip(grid, RATES, strict=True):
        for run in found[name, RATES[name][1]]:
            axes.plot(run["x"], run["y"], color="#2b7bba", linewidth=0.8, alpha=0.6)
        axes.plot([0, 1.6], [0, 1.6 * LAW], "--", color="#c1543c", label="√2 √KL")
        axes.set(title=f"{name}, rate {RATES[name][1]:g}", xlabel="square root of KL", xlim=(0, 2), ylim=(0, 2.6))
    grid[0].set_ylabel("gain in reward, deviations")
    grid[0].legend(frameon=False, fontsize=7)
    return to_svg(figure)


def rehearse(folder: Path) -> None:
    """Two updates."""
    for name in RATES:
        run = measured(name, 0.1, 0, updates=2)
        assert len(run["x"]) == 3 and run["x"][0] == 0 and run["y"][2] <= LAW * 1.1 * run["x"][2]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the measurements; the same command resumes")
    parser.add_argument("--plots", type=Path, help="folder of the plot")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    found = cells(args.out, args.seeds)
    print(table(found))
    if args.plots:
        write_atomic(args.plots / "reward_kl_law.svg", compact(plot(found)).replace("currentColor", "#7d8590"))


if __name__ == "__main__":
    main()
