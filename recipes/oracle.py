"""Every method in a world where the right answer is known: how near does it end to pi*, or to its own objective's optimum?

    python -m recipes.oracle --out out/oracle                     20 seeds of every method; the same command resumes
    python -m recipes.oracle --out out/oracle --method dpo        only methods whose name holds this

The policies are tables of logits (recipes/oracle_world.py), trained by the shipped objectives through the shipped loop, with the
same number of updates for all. A seed is a world of its own: reward, reference, data. Optima: recipes/oracle_optima.py.
A method is one entry of `methods()`: objective, data, and its objective's optimum; `bound` is what it is held to.

Cost: a few seconds per method and seed on one core. Prints a Markdown table: means over seeds with standard errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from recipes import oracle_optima as optima
from recipes.oracle_world import ScoreTable, Table, TablePolicy, World, make_world
from trueline.evals.oracle import gibbs, judge_policy, total_variation
from trueline.objectives.base import Batch, Budget, Objective
from trueline.objectives.dpo import DPO
from trueline.objectives.kto import KTO
from trueline.objectives.orpo import ORPO
from trueline.objectives.reward import Reward
from trueline.objectives.sft import SFT
from trueline.objectives.simpo import SimPO
from trueline.protocols import Crew
from trueline.records import Row
from trueline.run import Run
from trueline.store import fingerprint, write_atomic
from trueline.train.config import TrainConfig, override
from trueline.train.feed import StoredFeed
from trueline.train.loop import run_loop
from trueline.train.optim import adamw
from trueline.train.state import TrainState

BETA = 0.5
UPDATES = 150
PAIRS = 4096
"""Drawn pairs of a data set, over all prompts."""
WHOLE = Budget(rows=10**6, tokens=10**9)

Rows = list[Row]
Optimum = Callable[[World, Rows], np.ndarray]
"""A policy [P, V]."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is compared."""

    name: str
    objective: Objective
    data: Callable[[World], Rows]
    optimum: Optimum | None = None
    """Its own objective's; None: pi*."""
    bound: float | None = None
    """Largest total variation to that optimum; None: reported only."""
    formula: Callable[[World, Rows], optima.Loss] | None = None
    """The objective as its paper has it, for the share of the loss that is left."""
    left: float | None = None
    """Largest share of the loss left, where many policies are best or nearly so."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Training options that differ."""


def methods() -> list[Method]:
    """Every method, with the optimum that it is held to."""

    def least(loss: Callable[..., optima.Loss], *settings: float) -> dict[str, Any]:
        """A formula over the pairs that the rows hold, and where it is least."""

        def formula(world: World, rows: Rows) -> optima.Loss:
            return loss(world, optima.pairs_in(world, rows), *settings)

        return {"formula": formula, "optimum": lambda world, rows: optima.minimum(world, formula(world, rows))}

    def hinged(world: World, rows: Rows) -> np.ndarray:
        return optima.least_of_kinked(world, partial(optima.hinge, world, optima.pairs_in(world, rows), BETA))

    plain, robust = DPO(beta=BETA), DPO(beta=BETA, loss_type="robust", label_smoothing=0.1)
    return [
        Method(name="sft, draws of pi*", objective=SFT(), data=demonstrations, bound=0.02,
               optimum=lambda world, rows: optima.empirical(world, rows)),
        Method(name="reward model", objective=Reward(), data=everything, bound=0.02),
        Method(name="reward model, drawn pairs", objective=Reward(), data=drawn_pairs),
        Method(name="dpo", objective=plain, data=everything, bound=0.02),
        Method(name="dpo, drawn pairs", objective=plain, data=drawn_pairs, bound=0.02, **least(optima.dpo, BETA)),
        Method(name="dpo, flipped labels", objective=plain, data=flipped, bound=0.02, **least(optima.dpo, BETA)),
        Method(name="dpo robust, flipped labels", objective=robust, data=flipped, bound=0.02),
        Method(name="dpo, label smoothing", objective=DPO(beta=BETA, label_smoothing=0.1), data=everything, bound=0.02,
               **least(optima.cdpo, BETA, 0.1)),
        Method(name="ipo", objective=DPO(beta=BETA, loss_type="ipo"), data=everything, bound=0.02, **least(optima.ipo, BETA)),
        Method(name="hinge", objective=DPO(beta=BETA, loss_type="hinge"), data=everything, left=0.01,
               **least(optima.hinge, BETA) | {"optimum": hinged}),
        Method(name="simpo", objective=SimPO(beta=2.0, gamma=1.0), data=everything, bound=0.02, **least(optima.simpo, 2.0, 1.0)),
        Method(name="orpo", objective=ORPO(beta=0.1), data=everything, bound=0.02, **least(optima.orpo, 0.1)),
        Method(name="kto", objective=KTO(beta=BETA), data=ratings, bound=0.02, options={"learning_rate": 0.4},
               optimum=lambda world, rows: optima.kto(world, KTO().arrange(rows), BETA)),
    ]  # fmt: skip


# What they are trained on.


def everything(world: World) -> Rows:
    """One row per prompt with all responses: counts in these ratios are exact Bradley-Terry probabilities of all pairs."""
    return [world.row(p, range(len(r_V)), counts=np.exp(r_V)) for p, r_V in enumerate(world.reward_PV)]


def flipped(world: World, share: float = 0.1) -> Rows:
    """Exact probabilities after a share of the labels was flipped, for the pairs of neighbours on two random rings."""
    rng, rows = np.random.default_rng([world.seed, 0]), []
    for p, reward_V in enumerate(world.reward_PV):
        for ring in (rng.permutation(len(reward_V)) for _ in range(2)):
            for i, j in zip(ring, np.roll(ring, 1), strict=True):
                right = 1 / (1 + np.exp(reward_V[j] - reward_V[i]))
                seen = right * (1 - share) + (1 - right) * share
                rows.append(world.row(p, (int(i), int(j)), counts=(seen, 1 - seen)))
    return rows


def drawn_pairs(world: World, policy_PV: np.ndarray | None = None, count: int = PAIRS, noise: float = 1.0) -> Rows:
    """Pairs of different responses drawn from the policy (default: the reference) and labelled by Bradley-Terry; noise 0: the
    better one wins. One row per pair that came, with counts of its labels and their number as its weight."""
    rng = np.random.default_rng([world.seed, 1])
    probs_PV = world.reference_PV if policy_PV is None else policy_PV
    rows = []
    for p, probs_V in enumerate(probs_PV):
        both_VV = np.triu(np.outer(probs_V, probs_V), 1)
        drawn_VV = rng.multinomial(count // len(probs_PV), (both_VV / both_VV.sum()).ravel()).reshape(both_VV.shape)
        for i, j in zip(*np.nonzero(drawn_VV), strict=True):
            gap, n = world.reward_PV[p, i] - world.reward_PV[p, j], int(drawn_VV[i, j])
            wins = n * float(gap > 0) if noise == 0 else int(rng.binomial(n, 1 / (1 + np.exp(-gap / noise))))
            rows.append(world.row(p, (int(i), int(j)), counts=(wins, n - wins), weight=(n, n)))
    return rows


def demonstrations(world: World, count: int = 512) -> Rows:
    """Responses that pi* gave."""
    rng = np.random.default_rng([world.seed, 2])
    best_PV = gibbs(world.reference_PV, world.reward_PV, BETA)
    several = count // len(best_PV)
    return [
        world.row(p, [int(v)]) for p, best_V in enumerate(best_PV) for v in rng.choice(len(best_V), several, p=best_V)
    ]


def ratings(world: World) -> Rows:
    """Every response alone, desirable with probability sigmoid(reward): the share of votes is its label."""
    shares_PV = 1 / (1 + np.exp(-world.reward_PV))
    return [
        world.row(p, [v], label=[share]) for p, shares_V in enumerate(shares_PV) for v, share in enumerate(shares_V)
    ]


# Training.


class Still:
    """An objective over rows that never change: all of them are one step, laid out once."""

    def __init__(self, objective: Objective, rows: Rows, crew: Crew):
        self.objective, self.verb, self.needs = objective, objective.verb, objective.needs
        self.annotate, self.prepare, self.loss = lambda rows, crew: rows, objective.prepare, objective.loss
        self.laid_out = list(objective.steps(objective.annotate(rows, crew), WHOLE))

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        """The same one, every time."""
        return iter(self.laid_out)


def train_table(
    objective: Objective, model: Table | ScoreTable, rows: Rows, crew: Crew, updates: int, seed: int, **options: Any
) -> None:
    """`updates` steps of the shipped loop over all rows at once."""
    settings = {"learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": updates, "logging_steps": updates} | options
    config = override(TrainConfig(), save_steps=0, seed=seed, per_device_train_batch_size=len(rows), **settings)
    still: Any = Still(objective, rows, crew)
    with tempfile.TemporaryDirectory() as folder, Run(folder, {}, console=Console(quiet=True)) as run:
        run_loop(still, model, adamw(model, config.optim), StoredFeed(rows[:1], 1, seed), crew, config, run,
                 TrainState(total_steps=updates), write_model=lambda model, path: None)  # fmt: skip


def trained(method: Method, world: World, rows: Rows, updates: int) -> np.ndarray:
    """The policy [P, V] that the method ends at; of a reward model its pi*."""
    crew = Crew(reference=TablePolicy(world, world.table().token_table()))
    model = ScoreTable(world) if method.objective.head == "scalar" else world.table()
    train_table(method.objective, model, rows, crew, updates, world.seed, **method.options)
    return gibbs(world.reference_PV, model.table(), BETA) if isinstance(model, ScoreTable) else model.probs()


# Cells and the table.


def cell(method: Method, kind: str, seed: int, updates: int, out: Path) -> dict[str, float]:
    """What one method came to in one world; kept on disk by what it depends on."""
    about = {"name": method.name, "objective": repr(method.objective), "options": dict(method.options), "kind": kind,
             "seed": seed, "updates": updates, "beta": BETA, "pairs": PAIRS}  # fmt: skip
    path = out / "cells" / f"{fingerprint(about)[:16]}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["found"]
    found = measured(method, make_world(kind, seed), updates)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"about": about, "found": found}, indent=2) + "\n")
    return found


def measured(method: Method, world: World, updates: int) -> dict[str, float]:
    """What one method comes to in one world."""
    rows = method.data(world)
    policy_PV = trained(method, world, rows, updates)
    exactly = judge_policy(policy_PV, world.reference_PV, world.reward_PV, BETA)
    own_PV = method.optimum(world, rows) if method.optimum else gibbs(world.reference_PV, world.reward_PV, BETA)
    left = math.nan
    if method.formula:
        loss = method.formula(world, rows)
        start, end, least = (optima.value(loss, one_PV) for one_PV in (world.reference_PV, policy_PV, own_PV))
        left = (end - least) / (start - least)
    return dataclasses.asdict(exactly) | {"own": total_variation(policy_PV, own_PV), "left": left}


COLUMNS = {
    "own": "TV to own optimum",
    "left": "loss left",
    "variation": "TV to pi*",
    "reward": "reward",
    "kl": "KL",
    "regret": "regret",
}


def table(found: Mapping[str, Sequence[Mapping[str, float]]], chosen: Sequence[Method]) -> str:
    """Means with standard errors over seeds."""
    lines = [f"| method | {' | '.join(COLUMNS.values())} | held to |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for method in chosen:
        values = [summary([one[column] for one in found[method.name]]) for column in COLUMNS]
        held = f"{method.bound:g}" if method.bound else f"{method.left:g} of the loss" if method.left else ""
        lines.append(f"| {method.name} | {' | '.join(values)} | {held} |")
    return "\n".join(lines)


def summary(values: Sequence[float]) -> str:
    """Mean +- standard error."""
    if np.isnan(values).any():
        return ""
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


def run(out: Path, seeds: int = 20, updates: int = UPDATES, kind: str = "smooth", only: str = "") -> str:
    """All cells, and the table of what each method came to; worlds in which a method missed its bound are named below it."""
    chosen = [method for method in methods() if only in method.name]
    found: dict[str, list[dict[str, float]]] = {method.name: [] for method in chosen}
    for seed in range(seeds):
        for method in chosen:
            found[method.name].append(cell(method, kind, seed, updates, out))
    said = [table(found, chosen), "", f"{seeds} seeds, {updates} updates each, {kind} reward, beta {BETA:g}"]
    for method in chosen:
        for seed, one in enumerate(found[method.name]):
            for name, limit in (("own", method.bound), ("left", method.left)):
                if limit and one[name] > limit:
                    said.append(f"{method.name}, seed {seed}: {COLUMNS[name]} is {one[name]:.4f}, above {limit:g}")
    return "\n".join(said)


def rehearse(folder: Path) -> None:
    """Two updates of every method in one world, twice: the second time from disk."""
    first = run(folder, seeds=1, updates=2)
    assert "| dpo |" in first and run(folder, seeds=1, updates=2) == first


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells; the same command resumes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--kind", default="smooth", help="the reward: smooth, sparse or trap")
    parser.add_argument("--method", default="", help="only methods whose name holds this")
    args = parser.parse_args()
    print(run(args.out, args.seeds, args.updates, args.kind, args.method))


if __name__ == "__main__":
    main()
