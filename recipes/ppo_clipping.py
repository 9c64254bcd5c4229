"""PPO with and without clipping: many passes over each batch, three learning rates, in a world where all is exact.

    python -m recipes.ppo_clipping --out out/clipping --plots docs/recipes        the same command resumes

Schulman et al., 1707.06347, section 6.1: with 10 passes over each batch the surrogate without clipping or penalty does worst of
all, below the start in some tasks; clipped at 0.2 it does best. Here:

    clipped      epsilon 0.2                          unclipped    epsilon infinite: ratio x advantage, whatever the ratio
    one pass     over each round of 16 responses instead of 10: the ratio is 1, so there is nothing to clip
    rates        0.03, 0.1, 0.3 of Adam, constant
    world        recipes/oracle_world.py with three letters and up to four of them: 121 responses to each of 4 prompts

All arms have the same critic, the same clipping of its loss, the same KL in the reward (beta 0.1), and as many responses; the first two
as many updates. A seed is a world, which the arms share: differences are paired. Gap: what reward - beta KL lacks to its maximum,
exact. Moved: KL of the policy after a round from the one that drew it, exact, mean over rounds.

Cost: one to three seconds of one core per run, 9 runs per seed. Prints the table of docs/recipes/ppo_clipping.md, draws its plot.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recipes.oracle import Method, summary
from recipes.oracle_curves import kept, policies
from recipes.oracle_world import make_world
from recipes.sick_curves import compact
from trueline.evals.oracle import judge_policy, mean_kl
from trueline.objectives.kl import KLPenalty
from trueline.objectives.ppo import PPO
from trueline.objectives.updates import Update
from trueline.store import write_atomic
from trueline.study.page import new_figure, to_svg

BETA, ROUNDS, DRAWS = 0.1, 32, 4
"""Coefficient of the KL; rounds of a run; responses drawn to each of the four prompts in a round."""
EPSILON = {"clipped": 0.2, "unclipped": 1e9}
ARMS = {"clipped": ("clipped", 10), "unclipped": ("unclipped", 10), "one pass": ("clipped", 1)}
"""Name -> (whose epsilon, passes)."""
RATES = (0.03, 0.1, 0.3)

Cells = Mapping[tuple[str, float], Sequence[Mapping[str, list[float]]]]
"""(arm, rate) -> a measurement per seed."""


def measured(epsilon: str, passes: int, rate: float, seed: int, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Gap, reward and KL at the start and after every round, and how far each round moved the policy."""
    world = make_world("smooth", seed, letters=3, longest=4)
    objective = PPO(kl=KLPenalty(kl_coef=BETA), update=Update(num_iterations=passes, epsilon=EPSILON[epsilon]))
    method = Method(name=epsilon, objective=objective, draws=DRAWS, options={"learning_rate": rate, "lr_scheduler_type": "constant"})
    found = policies(method, world, rounds * passes, passes)
    judged = [judge_policy(policy_PV, world.reference_PV, world.reward_PV, BETA) for policy_PV in found]
    return {
        "gap": [one.gap for one in judged],
        "reward": [one.reward for one in judged],
        "kl": [one.kl for one in judged],
        "moved": [mean_kl(after_PV, before_PV) for before_PV, after_PV in itertools.pairwise(found)],
    }


def cells(out: Path, seeds: int) -> Cells:
    """All of them, seed by seed."""
    found: dict[tuple[str, float], list[Mapping[str, list[float]]]] = {}
    for seed, rate, arm in itertools.product(range(seeds), RATES, ARMS):
        name, passes = ARMS[arm]
        about = {"recipe": "ppo_clipping", "arm": name, "passes": passes, "rate": rate, "seed": seed, "rounds": ROUNDS, "beta": BETA}
        run = kept(out, about, lambda one=(name, passes, rate, seed): measured(*one))  # type: ignore[misc]
        found.setdefault((arm, rate), []).append(run)
    return found


def table(found: Cells) -> str:
    """The end of every run, and how much larger the gap is than the clipped arm's, paired, at one rate and at each one's best."""
    lines = ["| arm | rate | gap | gap of the worst world | reward | KL | moved | gap less clipped's |", "|---" * 8 + "|"]
    for rate, arm in itertools.product(RATES, ARMS):
        runs = found[arm, rate]
        gap, reward, kl = (summary([run[name][-1] for run in runs]) for name in ("gap", "reward", "kl"))
        moved = summary([float(np.mean(run["moved"])) for run in runs])
        more = "" if arm == "clipped" else summary(list(ends(found, arm, rate) - ends(found, "clipped", rate)))
        lines.append(f"| {arm} | {rate:g} | {gap} | {ends(found, arm, rate).max():.3f} | {reward} | {kl} | {moved} | {more} |")
    gap, reward = (summary([run[name][0] for run in next(iter(found.values()))]) for name in ("gap", "reward"))
    lines.append(f"| the start | | {gap} | | {reward} | 0 | | |")
    lines += ["", "| arm, at its best rate | rate | gap | gap less clipped's |", "|---" * 4 + "|"]
    best = {arm: min(RATES, key=lambda rate, arm=arm: ends(found, arm, rate).mean()) for arm in ARMS}  # type: ignore[misc]
    for arm, rate in best.items():
        more = "" if arm == "clipped" else summary(list(ends(found, arm, rate) - ends(found, "clipped", best["clipped"])))
        lines.append(f"| {arm} | {rate:g} | {summary(list(ends(found, arm, rate)))} | {more} |")
    return "\n".join(lines)


def ends(found: Cells, arm: str, rate: float) -> np.ndarray:
    """Gap of every seed at the end."""
    return np.array([run["gap"][-1] for run in found[arm, rate]])


def plot(found: Cells) -> str:
    """Gap against rounds, mean and standard error."""
    figure, grid = new_figure(len(RATES))
    for axes, rate in zip(grid, RATES, strict=True):
        for arm, colour in zip(ARMS, ("#2b7bba", "#c1543c", "#7a8b3a"), strict=True):
            gaps = np.array([run["gap"] for run in found[arm, rate]])
            middle, error = gaps.mean(0), gaps.std(0, ddof=min(1, len(gaps) - 1)) / math.sqrt(len(gaps))
            axes.plot(middle, color=colour, label=arm)
            axes.fill_between(np.arange(len(middle)), middle - error, middle + error, color=colour, alpha=0.2, linewidth=0)
        axes.set(title=f"rate {rate:g}", xlabel="round", ylim=(0, None))
    top = max(axes.get_ylim()[1] for axes in grid)
    for axes in grid:
        axes.set_ylim(0, top)
    grid[0].set_ylabel("gap")
    grid[-1].legend(frameon=False, fontsize=7)
    return to_svg(figure)


def rehearse(folder: Path) -> None:
    """One round of either arm."""
    one, other = (measured(arm, 2, 0.1, 0, rounds=1) for arm in EPSILON)
    assert len(one["gap"]) == 2 and one["gap"][0] == other["gap"][0]


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
        write_atomic(args.plots / "ppo_clipping.svg", compact(plot(found)).replace("currentColor", "#7d8590"))


if __name__ == "__main__":
    main()
