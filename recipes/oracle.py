"""Every method in a world where the right answer is known: how near does it end to pi*, or to its own objective's optimum?

    python -m recipes.oracle --out out/oracle                     20 seeds of every method; the same command resumes
    python -m recipes.oracle --out out/oracle --method dpo ppo    only some; parts of names do too (ipo; chance)

The policies are tables of logits (recipes/oracle_tables.py), trained by the shipped objectives through the shipped loop, with the
same number of updates for all. A seed is a world of its own (recipes/oracle_world.py): reward, reference, data. Methods that draw
their own responses do so by the shipped rollouts. Optima: recipes/oracle_optima.py.
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
from torch import nn

from recipes import oracle_optima as optima
from recipes.oracle_tables import CriticTable, NoisyScorer, ScoreTable, Table, TablePolicy, TableSampler, TableScorer
from recipes.oracle_world import (
    PAIRS,
    World,
    demonstrations,
    drawn_pairs,
    everything,
    flipped,
    make_world,
    ratings,
    scores,
)
from trueline.align.rollouts import Rollouts
from trueline.evals.oracle import gibbs, judge_policy, total_variation
from trueline.models.value import ValueScorer
from trueline.objectives.base import Batch, Budget, Objective
from trueline.objectives.dpo import DPO
from trueline.objectives.dprm import DPRM
from trueline.objectives.grpo import GRPO, GroupLoss
from trueline.objectives.iterate import Iterate
from trueline.objectives.kl import KLPenalty
from trueline.objectives.kto import KTO
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.orpo import ORPO
from trueline.objectives.ppo import PPO
from trueline.objectives.raft import RAFT
from trueline.objectives.reinforce_plus_plus import ReinforcePlusPlus
from trueline.objectives.reward import Reward
from trueline.objectives.rloo import RLOO
from trueline.objectives.rounds import OnPolicy
from trueline.objectives.rso import RSO
from trueline.objectives.sft import SFT
from trueline.objectives.simpo import SimPO
from trueline.objectives.updates import Update
from trueline.protocols import Crew
from trueline.records import RolloutConfig, Row
from trueline.run import Run
from trueline.store import fingerprint, write_atomic
from trueline.train.config import TrainConfig, override
from trueline.train.feed import Feed, StoredFeed
from trueline.train.loop import Draw, run_loop
from trueline.train.optim import adamw
from trueline.train.rollout_feed import RolloutFeed
from trueline.train.state import TrainState

BETA = 0.5
UPDATES = 150
WHOLE = Budget(rows=10**6, tokens=10**9)
UTILITIES = (-4.0, -1.0, 0.0, 1.0, 4.0)

Rows = list[Row]
Optimum = Callable[[World, Rows], np.ndarray]
"""A policy [P, V]."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is compared."""

    name: str
    objective: Any
    """An Objective."""
    data: Callable[[World], Rows] = lambda world: []
    """Stored rows; methods that draw their own need none."""
    draws: int = 32
    """Responses drawn to a prompt at a time, of methods that do."""
    copies: int = 1
    """How often a round asks each prompt."""
    reward: Callable[[World], Any] = lambda world: TableScorer(world, world.reward_PV)
    """The Scorer that judges what is drawn."""
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

    def grouped(**choices: Any) -> dict[str, Any]:
        return {"optimum": lambda world, rows: optima.group_relative(world, BETA, **choices)}

    plain, robust = DPO(beta=BETA), DPO(beta=BETA, loss_type="robust", label_smoothing=0.1)
    in_reward, k2, k3 = (KLPenalty(kl_coef=BETA, kl_estimator=name) for name in ("k1", "k2", "k3"))
    sums = GroupLoss(loss_type="dr_grpo")
    pairs: dict[str, Any] = {"draws": 2, "copies": 32, "options": {"learning_rate": 0.05}}
    return [
        Method(name="sft, draws of pi*", objective=SFT(), data=partial(demonstrations, beta=BETA), bound=0.02,
               optimum=lambda world, rows: optima.empirical(world, rows)),
        Method(name="reward model", objective=Reward(), data=everything, bound=0.02),
        Method(name="reward model, drawn pairs", objective=Reward(), data=drawn_pairs),
        Method(name="dprm", objective=DPRM(utilities=UTILITIES), data=scores, bound=0.02, options={"learning_rate": 0.2}),
        Method(name="dpo", objective=plain, data=everything, bound=0.02),
        Method(name="dpo, drawn pairs", objective=plain, data=drawn_pairs, left=0.01, **least(optima.dpo, BETA)),
        Method(name="dpo, flipped labels", objective=plain, data=flipped, bound=0.02, **least(optima.dpo, BETA)),
        Method(name="dpo robust, flipped labels", objective=robust, data=flipped, bound=0.02),
        Method(name="dpo, label smoothing", objective=DPO(beta=BETA, label_smoothing=0.1), data=everything, bound=0.02,
               **least(optima.cdpo, BETA, 0.1)),
        Method(name="ipo", objective=DPO(beta=BETA, loss_type="ipo"), data=everything, bound=0.02, **least(optima.ipo, BETA)),
        Method(name="hinge", objective=DPO(beta=BETA, loss_type="hinge"), data=everything, left=0.01,
               **least(optima.hinge, BETA) | {"optimum": hinged}),
        Method(name="simpo", objective=SimPO(beta=2.0, gamma=1.0), data=everything, bound=0.02, **least(optima.simpo, 2.0, 1.0)),
        Method(name="orpo", objective=ORPO(beta=0.1), data=everything, bound=0.02, **least(optima.orpo, 0.1)),
        Method(name="kto", objective=KTO(beta=BETA), data=ratings, bound=0.05,
               options={"learning_rate": 0.4, "lr_scheduler_type": "constant"},
               optimum=lambda world, rows: optima.kto(world, KTO().arrange(rows), BETA)),
        Method(name="rloo", objective=RLOO(kl=in_reward), draws=8, bound=0.05),
        Method(name="ppo", objective=PPO(kl=in_reward, update=Update(num_iterations=2)), draws=8, bound=0.05),
        Method(name="reinforce++", objective=ReinforcePlusPlus(kl=in_reward), draws=16, bound=0.05),
        Method(name="grpo", objective=GRPO(kl=k3), bound=0.05, **grouped(estimator="k3", scale=True, per_token=True)),
        Method(name="grpo, dr. grpo, k3", objective=GRPO(kl=k3, scale_rewards=False, group=sums), draws=16, bound=0.05,
               **grouped(estimator="k3", draws=16)),
        Method(name="grpo, dr. grpo, k2", objective=GRPO(kl=k2, scale_rewards=False, group=sums), draws=16, bound=0.05,
               **grouped(estimator="k2", draws=16)),
        Method(name="online dpo, labels by chance", objective=OnlineDPO(beta=BETA), bound=0.1, reward=NoisyScorer, **pairs),
        Method(name="online dpo, the better one wins", objective=OnlineDPO(beta=BETA), **pairs | {"copies": 8}),
        Method(name="iterate, labels by chance", objective=Iterate(beta=BETA, label_smoothing=0.0, batches=4), bound=0.13,
               reward=NoisyScorer, **pairs),  # sees half as many labels, each twice
        Method(name="rso, soft labels", objective=RSO(beta=BETA, gamma=BETA, soft_labels=True), draws=32, bound=0.05),
        Method(name="rso", objective=RSO(beta=BETA, gamma=BETA), draws=32),
        Method(name="raft", objective=RAFT(num_mini_batches=1), draws=4, copies=4),
    ]  # fmt: skip


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
    objective: Any, model: nn.Module, feed: Feed, crew: Crew, updates: int, seed: int, draw: Draw | None = None,
    **options: Any,
) -> None:  # fmt: skip
    """`updates` steps of the shipped loop; `draw` is shown the model every sample_steps."""
    settings = {"learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": updates, "logging_steps": updates} | options
    config = override(TrainConfig(), save_steps=0, seed=seed, per_device_train_batch_size=WHOLE.rows, **settings)
    with tempfile.TemporaryDirectory() as folder, Run(folder, {}, console=Console(quiet=True)) as run:
        run_loop(objective, model, adamw(model, config.optim), feed, crew, config, run, TrainState(total_steps=updates),
                 write_model=lambda model, path: None, draw=draw)  # fmt: skip


def drawing_feed(method: Method, world: World, sampler: TableSampler, reference: TableSampler) -> RolloutFeed:
    """Rounds of the policy's own responses to all prompts."""
    assert isinstance(method.objective, OnPolicy)
    rounds, prompts = method.objective.rounds, []
    for number, prompt in enumerate(world.prompts):
        ids = np.array(prompt, dtype=np.int32)
        prompts.append(Row(ids=(ids,), scored=(np.zeros(len(ids), dtype=bool),), key=str(number)))
    return RolloutFeed(
        prompts, {row.key: world.messages(int(row.key)) for row in prompts}, len(prompts) * method.copies * rounds.batches, world.seed,
        rollouts=Rollouts(lambda model, tokenizer: sampler, reward=method.reward(world)), sampler=sampler,
        config=RolloutConfig(num_generations=method.draws, max_completion_length=world.longest), rounds=rounds,
        decode=lambda ids: "".join(str(token) for token in ids), drawer=reference if rounds.asks_reference else None,
    )  # fmt: skip


def trained(method: Method, world: World, rows: Rows, updates: int, draw: Draw | None = None) -> np.ndarray:
    """The policy [P, V] that the method ends at; of a reward model its pi*. `draw` is shown the table every sample_steps."""
    objective, reference = method.objective, Table(world)
    crew = Crew(reference=TablePolicy(world, reference.token_table()))
    if isinstance(objective, OnPolicy):
        policy = CriticTable(world) if "critic" in objective.needs else Table(world)
        critic: Any = ValueScorer(policy) if isinstance(policy, CriticTable) else None  # type: ignore[arg-type]
        live, frozen = TableSampler(world, policy), TableSampler(world, reference)
        crew = dataclasses.replace(crew, sampler=live, critic=critic)
        feed = drawing_feed(method, world, live, frozen)
        train_table(objective, policy, feed, crew, updates, world.seed, draw, **method.options)
        return policy.probs()
    still, once = Still(objective, rows, crew), StoredFeed(rows[:1], 1, world.seed)
    if objective.head == "tokens":
        train_table(still, policy := Table(world), once, crew, updates, world.seed, draw, **method.options)
        return policy.probs()
    model = ScoreTable(world, len(UTILITIES) if isinstance(objective, DPRM) else 1)
    train_table(still, model, once, crew, updates, world.seed, **method.options)
    return gibbs(world.reference_PV, model.table(), BETA)


# Cells and the table.


def place(method: Method, kind: str, seed: int, updates: int, out: Path) -> tuple[Path, dict[str, Any]]:
    """Where a cell is kept, and what it depends on."""
    about: dict[str, Any] = {"name": method.name, "objective": repr(method.objective), "options": dict(method.options), "kind": kind,
                             "seed": seed, "updates": updates, "beta": BETA, "pairs": PAIRS}  # fmt: skip
    if isinstance(method.objective, OnPolicy):
        about["draws"] = (method.draws, method.copies)
    return out / "cells" / f"{fingerprint(about)[:16]}.json", about


def cell(method: Method, kind: str, seed: int, updates: int, out: Path) -> dict[str, float]:
    """What one method came to in one world: from disk, or now."""
    path, about = place(method, kind, seed, updates, out)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = measured(method, make_world(kind, seed), updates)
        write_atomic(path, json.dumps({"about": about, "found": found}, indent=2) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))["found"]


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
    lines = [f"| method | worlds | {' | '.join(COLUMNS.values())} | held to |", "|---|" + "---|" * (len(COLUMNS) + 2)]
    for method in chosen:
        values = [summary([one[column] for one in found[method.name]]) for column in COLUMNS]
        held = f"{method.bound:g}" if method.bound else f"{method.left:g} of the loss" if method.left else ""
        lines.append(f"| {method.name} | {len(found[method.name])} | {' | '.join(values)} | {held} |")
    return "\n".join(lines)


def summary(values: Sequence[float]) -> str:
    """Mean +- standard error."""
    if np.isnan(values).any():
        return ""
    error = f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


def run(
    out: Path,
    seeds: int = 20,
    updates: int = UPDATES,
    kind: str = "smooth",
    only: Sequence[str] = (),
    cached: bool = False,
) -> str:
    """All cells, and the table of what each method came to; worlds in which a method missed its bound are named below it."""
    known = {method.name for method in methods()}
    chosen = [
        m for m in methods() if not only or m.name in only or any(part in m.name for part in only if part not in known)
    ]
    if not chosen:
        raise ValueError(
            f"no method is called {' or '.join(only)}: --method takes names, or parts of names, of the table"
        )
    found: dict[str, dict[int, dict[str, float]]] = {method.name: {} for method in chosen}
    for seed in range(seeds):
        for method in chosen:
            if not cached or place(method, kind, seed, updates, out)[0].exists():
                found[method.name][seed] = cell(method, kind, seed, updates, out)
    chosen = [method for method in chosen if found[method.name]]
    said = [table({name: list(cells.values()) for name, cells in found.items()}, chosen), ""]
    said.append(f"{updates} updates each, {kind} reward, beta {BETA:g}")
    for method in chosen:
        for seed, one in found[method.name].items():
            for name, limit in (("own", method.bound), ("left", method.left)):
                if limit and one[name] > limit:
                    said.append(f"{method.name}, seed {seed}: {COLUMNS[name]} is {one[name]:.4f}, above {limit:g}")
    return "\n".join(said)


def rehearse(folder: Path) -> None:
    """Two updates of every method in one world, twice: the second time from disk."""
    first = run(folder, seeds=1, updates=2)
    assert "| dpo | 1 |" in first and run(folder, seeds=1, updates=2) == first


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells; the same command resumes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--kind", default="smooth", help="the reward: smooth, sparse or trap")
    parser.add_argument("--method", nargs="+", default=(), help="only methods of these names, or whose names hold this")
    parser.add_argument("--cached", action="store_true", help="train nothing: the table of the cells that are there")
    args = parser.parse_args()
    print(run(args.out, args.seeds, args.updates, args.kind, args.method, args.cached))


if __name__ == "__main__":
    main()
