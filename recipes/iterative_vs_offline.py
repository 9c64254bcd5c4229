"""As many labels and as many updates: all pairs drawn at the start (DPO offline), or in rounds by the policy as it then is.

    python -m recipes.iterative_vs_offline --out out/iterative        the same command resumes

Xiong et al., 2312.11456, and Dong et al., 2405.07863: iterative DPO beats DPO on pairs that were drawn once. All arms are
`trueline iterate` itself, on pairs of two responses with a label for each; they differ in the number of rounds alone:

    1 round       every pair is drawn by the start policy before the first update: DPO offline
    4 rounds      iterative DPO
    60 rounds     a round per update: online DPO
    enhancer      4 rounds, the second response of each pair drawn by the start policy          objective.enhancer reference

60 updates, 32 pairs in each, every pair seen once: 1,920 labels. beta 0.5, three learning rates per arm. World:
recipes/oracle_world.py with three letters and up to four of them, 121 responses to each of 4 prompts; the label is drawn as Bradley and
Terry say. A seed is a world, which the arms share: differences are paired. Gap: what reward - beta KL lacks to its maximum, exact.
Regret: what the reward lacks to the most at that KL.

Cost: one or two seconds of one core per run, 12 runs per seed. Prints the tables of docs/recipes/iterative_vs_offline.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recipes.oracle import Method, summary
from recipes.oracle_curves import kept, policies
from recipes.oracle_tables import NoisyScorer
from recipes.oracle_world import make_world
from trueline.evals.oracle import judge_policy
from trueline.objectives.iterate import Exploration, Iterate

BETA, SPREAD, UPDATES, COPIES = 0.5, 2.0, 60, 8
"""SPREAD: standard deviation of the reward, in log-odds of a label. COPIES: pairs of each of the four prompts in an update."""
OFFLINE = "1 round: DPO offline"
ARMS = {OFFLINE: 1, "4 rounds": 4, "60 rounds: online DPO": 60, "4 rounds, enhancer": 4}
"""Name -> rounds."""
RATES = (0.1, 0.3, 1.0)

Cells = Mapping[tuple[str, float], Sequence[Mapping[str, float]]]
"""(arm, rate) -> a measurement per seed."""


def measured(arm: str, rate: float, seed: int, updates: int = UPDATES) -> dict[str, float]:
    """What the policy is at the end."""
    exploration = Exploration(enhancer="reference" if "enhancer" in arm else "none")
    batches = max(1, updates // ARMS[arm])
    objective = Iterate(beta=BETA, label_smoothing=0.0, batches=batches, epochs=1, exploration=exploration)
    method = Method(name=arm, objective=objective, draws=2, copies=COPIES, reward=NoisyScorer, options={"learning_rate": rate})
    world = make_world("smooth", seed, letters=3, longest=4, spread=SPREAD)
    exactly = judge_policy(policies(method, world, updates, batches)[-1], world.reference_PV, world.reward_PV, BETA)
    start = judge_policy(world.reference_PV, world.reference_PV, world.reward_PV, BETA)
    found = {name: getattr(exactly, name) for name in ("gap", "reward", "kl", "regret", "variation")}
    return found | {"start's gap": start.gap, "start's reward": start.reward}


def cells(out: Path, seeds: int) -> Cells:
    """All of them, seed by seed."""
    found: dict[tuple[str, float], list[Mapping[str, float]]] = {}
    for seed, rate, arm in itertools.product(range(seeds), RATES, ARMS):
        about = {"recipe": "iterative_vs_offline", "arm": arm, "rate": rate, "seed": seed, "set": [UPDATES, COPIES, BETA, SPREAD]}
        run = kept(out, about, lambda one=(arm, rate, seed): measured(*one))  # type: ignore[misc]
        found.setdefault((arm, rate), []).append(run)
    return found


def table(found: Cells) -> str:
    """Every arm at every rate, and how much less its gap is than the offline arm's, at the same rate and at each one's best."""
    lines = ["| arm | rate | gap | reward | KL | regret | offline's gap less this |", "|---" * 7 + "|"]
    for arm, rate in itertools.product(ARMS, RATES):
        runs = found[arm, rate]
        said = " | ".join(summary([run[name] for run in runs]) for name in ("gap", "reward", "kl", "regret"))
        lines.append(f"| {arm} | {rate:g} | {said} | {'' if arm == OFFLINE else summary(less(found, arm, rate, rate))} |")
    gap, reward = (summary([run[f"start's {name}"] for run in found[OFFLINE, RATES[0]]]) for name in ("gap", "reward"))
    lines.append(f"| the start | | {gap} | {reward} | 0 | | |")
    best = {arm: min(RATES, key=lambda rate, arm=arm: gaps(found, arm, rate).mean()) for arm in ARMS}  # type: ignore[misc]
    lines += ["", "| arm, at its best rate | rate | gap | offline's gap less this |", "|---|---|---|---|"]
    for arm, rate in best.items():
        more = "" if arm == OFFLINE else summary(less(found, arm, rate, best[OFFLINE]))
        lines.append(f"| {arm} | {rate:g} | {summary(list(gaps(found, arm, rate)))} | {more} |")
    return "\n".join(lines)


def gaps(found: Cells, arm: str, rate: float) -> np.ndarray:
    """Of every seed."""
    return np.array([run["gap"] for run in found[arm, rate]])


def less(found: Cells, arm: str, rate: float, offline: float) -> list[float]:
    """How much smaller the arm's gap is than the offline arm's at this rate."""
    return list(gaps(found, OFFLINE, offline) - gaps(found, arm, rate))


def rehearse(folder: Path) -> None:
    """Two updates of every arm."""
    for arm in ARMS:
        run = measured(arm, 0.1, 0, updates=2)
        assert 0 <= run["gap"] != run["start's gap"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the measurements; the same command resumes")
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    print(table(cells(args.out, args.seeds)))


if __name__ == "__main__":
    main()
