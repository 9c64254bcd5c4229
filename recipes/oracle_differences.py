"""Known differences between methods, each shown where everything is known: 20 worlds, paired differences, standard errors.

    python -m recipes.oracle_differences --out out/oracle                        all of them; the same command resumes
    python -m recipes.oracle_differences --out out/oracle --only coverage        one

    coverage            DPO on pairs from pi_ref, from all responses alike, and from a narrow policy that says five things
    on_policy           as many labels on one's own responses as on stored ones
    overoptimisation    true reward against KL, where the policy maximises a reward learned from few pairs
    certain_labels      without doubt in the labels sigmoid DPO's KL grows without end whatever beta; IPO's does not
    best_of_n           log n - (n - 1) / n against the exact KL
    square_root         reward per square root of KL: 1.41 standard deviations of the reward for a small step
    rejection           what RSO's algorithm accepts, against pi*, as candidates grow

Policies are trained as in recipes/oracle.py. Cost: about 10 minutes on one core. Prints Markdown tables, and writes two plots into --out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.oracle import BETA, UPDATES, Method, Still, methods, summary, train_table, trained
from recipes.oracle_tables import NoisyScorer, Table, TablePolicy
from recipes.oracle_world import World, drawn_pairs, make_world
from trueline.align.best_of_n import exact_kl, kl_bound
from trueline.align.rejection import accept
from trueline.evals.oracle import expected_reward, gibbs, gibbs_at_kl, judge_policy, mean_kl, total_variation
from trueline.objectives.dpo import DPO
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.reward import Reward
from trueline.protocols import Crew
from trueline.store import write_atomic
from trueline.study.page import new_figure, to_svg
from trueline.train.feed import StoredFeed

Numbers = dict[str, float]
LABELS = 4800
GRID = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5)
"""KL at which policies of a learned reward are looked at, nats."""
SNAPSHOTS = (50, 100, 200, 400)


def narrow(world: World, kept: int = 5) -> np.ndarray:
    """The reference, of which only the likeliest responses are left [P, V]."""
    least_P1 = np.sort(world.reference_PV, axis=1)[:, -kept, None]
    left_PV = world.reference_PV * (world.reference_PV >= least_P1)
    return left_PV / left_PV.sum(1, keepdims=True)


def stored(
    objective: DPO | Reward, world: World, pairs_of_PV: np.ndarray, count: int, updates: int = UPDATES
) -> np.ndarray:
    """The policy after training on pairs drawn from this one."""
    return trained(Method(name="", objective=objective), world, drawn_pairs(world, pairs_of_PV, count), updates)


def coverage(seed: int, updates: int = UPDATES) -> Numbers:
    """As many labels on pairs from three policies."""
    world = make_world("smooth", seed)
    best_PV, unseen_PV = gibbs(world.reference_PV, world.reward_PV, BETA), narrow(world) == 0
    sources = {
        "pi_ref": world.reference_PV,
        "all alike": np.full_like(world.reference_PV, 1 / len(world.responses)),
        "five responses": narrow(world),
    }
    found = {"pi*: on the others": float((best_PV * unseen_PV).sum(1).mean())}
    found["pi*: reward"] = expected_reward(best_PV, world.reward_PV)
    for name, pairs_of_PV in sources.items():
        for arm, objective in (("dpo", DPO(beta=BETA)), ("reward model", Reward())):
            policy_PV = stored(objective, world, pairs_of_PV, LABELS, updates)
            exactly = judge_policy(policy_PV, world.reference_PV, world.reward_PV, BETA)
            for number in ("variation", "reward", "kl", "gap"):
                found[f"{arm}, {name}: {number}"] = getattr(exactly, number)
            found[f"{arm}, {name}: on the others"] = float((policy_PV * unseen_PV).sum(1).mean())
    return found


def on_policy(seed: int, updates: int = UPDATES) -> Numbers:
    """A label says which of two responses wins, by Bradley-Terry; the arms differ in whose responses they are."""
    world = make_world("smooth", seed)
    per_step = LABELS // UPDATES // len(world.prompts)
    online = Method(name="", objective=OnlineDPO(beta=BETA), draws=2, copies=per_step, reward=NoisyScorer,
                    options={"learning_rate": 0.05})  # fmt: skip
    arms = {
        "own responses": trained(online, world, [], updates),
        "pi_ref's": stored(DPO(beta=BETA), world, world.reference_PV, LABELS, updates),
        "five responses": stored(DPO(beta=BETA), world, narrow(world), LABELS, updates),
    }
    found = {}
    for name, policy_PV in arms.items():
        exactly = judge_policy(policy_PV, world.reference_PV, world.reward_PV, BETA)
        found |= {
            f"{name}: {number}": getattr(exactly, number) for number in ("variation", "reward", "kl", "regret", "gap")
        }
    return found


def overoptimisation(seed: int, updates: int = UPDATES) -> Numbers:
    """The best policy for a learned reward at each KL: what it thinks it gains, and what it gains."""
    found = {}
    for kind in ("smooth", "trap"):
        world = make_world(kind, seed)
        for count in (64, 512, 4096):
            trained_PV = stored(Reward(), world, world.reference_PV, count, updates)
            learned_PV = BETA * np.log(trained_PV / world.reference_PV)  # up to a constant per prompt
            learned_PV -= (world.reference_PV * learned_PV).sum(1, keepdims=True)
            start = expected_reward(world.reference_PV, world.reward_PV)
            true = []
            for kl in GRID:
                policy_PV = gibbs_at_kl(world.reference_PV, learned_PV, kl)
                true.append(expected_reward(policy_PV, world.reward_PV) - start)
                found[f"{kind}, {count}: true {kl}"] = true[-1]
                found[f"{kind}, {count}: learned {kl}"] = expected_reward(policy_PV, learned_PV)
            found[f"{kind}, {count}: peak"], found[f"{kind}, {count}: peak's KL"] = (
                max(true),
                GRID[int(np.argmax(true))],
            )
    return found


def certain_labels(seed: int, updates: int = UPDATES) -> Numbers:
    """All pairs, and the better one always wins; a constant learning rate, and KL after more and more updates."""
    world, found = make_world("smooth", seed, prompts=2, longest=2), {}
    reward_PV = world.reward_PV
    rows = [
        world.row(p, np.argsort(-r_V).tolist(), rank=list(range(1, len(r_V) + 1))) for p, r_V in enumerate(reward_PV)
    ]
    for loss in ("sigmoid", "ipo"):
        for beta in (0.1, 1.0):
            policy, seen = Table(world), dict[int, float]()
            crew = Crew(reference=TablePolicy(world, policy.token_table()))

            def look(model: Any, seen: dict[int, float] = seen) -> list[dict[str, str]]:
                seen[SNAPSHOTS[0] * (1 + len(seen))] = mean_kl(model.probs(), world.reference_PV)
                return [{"prompt": "", "response": ""}]

            still = Still(DPO(beta=beta, loss_type=loss), rows, crew)
            total = SNAPSHOTS[-1] * updates // UPDATES
            train_table(still, policy, StoredFeed(rows, 1, seed), crew, total, seed, look, lr_scheduler_type="constant",
                        sample_steps=SNAPSHOTS[0])  # fmt: skip
            found |= {f"{loss}, {beta:g}: {step}": seen.get(step, math.nan) for step in SNAPSHOTS}
    return found


def best_of_n(seed: int, updates: int = UPDATES) -> Numbers:
    """No training: the law of the best of n is known."""
    found = {}
    for letters, longest in ((2, 3), (3, 5), (3, 7)):
        world = make_world("smooth", seed, prompts=3, letters=letters, longest=longest)
        for n in (2, 4, 16, 64):
            pairs = zip(world.reference_PV, world.reward_PV, strict=True)
            found[f"{len(world.responses)} responses: {n}"] = float(
                np.mean([exact_kl(p_V, r_V, n) for p_V, r_V in pairs])
            )
        found[f"{len(world.responses)} responses: max"] = float(world.reference_PV.max(1).mean())
    return found


def square_root(seed: int, updates: int = UPDATES) -> Numbers:
    """(reward - reward at the start) / (standard deviation under pi_ref x sqrt KL)."""
    world = make_world("smooth", seed)
    ref_PV, reward_PV = world.reference_PV, world.reward_PV
    centred_PV = reward_PV - (ref_PV * reward_PV).sum(1, keepdims=True)
    deviation = math.sqrt(float((ref_PV * centred_PV**2).sum(1).mean()))
    policies = {f"the best at KL {kl:g}": gibbs_at_kl(ref_PV, reward_PV, kl) for kl in (0.001, 0.01, 0.1, 0.5)}
    dpo = next(method for method in methods() if method.name == "dpo")
    for beta in (4.0, 1.0):
        arm = replace(dpo, objective=DPO(beta=beta))
        policies[f"dpo, beta {beta:g}"] = trained(arm, world, dpo.data(world), updates)
    gains = {
        name: expected_reward(p_PV, reward_PV) - expected_reward(ref_PV, reward_PV) for name, p_PV in policies.items()
    }
    return {name: gain / deviation / math.sqrt(mean_kl(policies[name], ref_PV)) for name, gain in gains.items()}


def rejection(seed: int, updates: int = UPDATES, trials: int = 2000) -> Numbers:
    """One accepted response of N candidates, again and again; the last number is the noise of so many draws of pi* itself."""
    world, rng = make_world("smooth", seed, prompts=1), np.random.default_rng([seed, 5])
    best_PV, V = gibbs(world.reference_PV, world.reward_PV, BETA), len(world.responses)
    found = {}
    for N in (1, 4, 16, 64, 256):
        candidates_XN = rng.choice(V, size=(trials, N), p=world.reference_PV[0])
        taken = [int(c_N[accept(world.reward_PV[0, c_N], 1, BETA, rng)[0]]) for c_N in candidates_XN]
        found[f"{N} candidates"] = total_variation(np.bincount(taken, minlength=V)[None] / trials, best_PV)
    drawn = rng.choice(V, size=trials, p=best_PV[0])
    return found | {"draws of pi*": total_variation(np.bincount(drawn, minlength=V)[None] / trials, best_PV)}


EXPERIMENTS: Mapping[str, Callable[..., Numbers]] = {
    one.__name__: one
    for one in (coverage, on_policy, overoptimisation, certain_labels, best_of_n, square_root, rejection)
}
PAIRED = {
    "coverage": (
        ("dpo, five responses: gap", "dpo, pi_ref: gap"),
        ("dpo, five responses: gap", "reward model, five responses: gap"),
        ("dpo, pi_ref: gap", "dpo, all alike: gap"),
        ("dpo, five responses: on the others", "pi*: on the others"),
    ),
    "on_policy": (
        ("own responses: gap", "pi_ref's: gap"),
        ("own responses: gap", "five responses: gap"),
        ("own responses: reward", "five responses: reward"),
    ),
    "overoptimisation": tuple(
        (f"{kind}, {count}: peak", f"{kind}, {count}: true {GRID[-1]}") for kind in ("smooth", "trap") for count in (64, 512, 4096)
    ),
    "certain_labels": (
        ("sigmoid, 0.1: 400", "sigmoid, 0.1: 200"),
        ("sigmoid, 1: 400", "sigmoid, 1: 200"),
        ("ipo, 0.1: 400", "ipo, 0.1: 200"),
        ("ipo, 1: 400", "ipo, 1: 200"),
    ),
}  # fmt: skip
"""Differences worth telling: first minus second, in the same worlds."""


def run(out: Path, seeds: int = 20, updates: int = UPDATES, only: str = "") -> str:
    """Every experiment's numbers, means with standard errors, and its paired differences."""
    said = []
    for name, experiment in EXPERIMENTS.items():
        if only not in name:
            continue
        cells = [cell(name, experiment, seed, updates, out) for seed in range(seeds)]
        said += [f"### {name}", "", "| | mean ± standard error |", "|---|---|"]
        said += [f"| {key} | {summary([one[key] for one in cells])} |" for key in cells[0]]
        for first, second in PAIRED.get(name, ()):
            said.append(f"| {first} − {second} | {summary([one[first] - one[second] for one in cells])} |")
        said.append("")
        if name == "overoptimisation":
            write_atomic(out / "oracle_overoptimisation.svg", reward_plot(cells))
        if name == "certain_labels":
            write_atomic(out / "oracle_certain_labels.svg", kl_plot(cells))
    bounds = ", ".join(f"{n}: {kl_bound(n):.4f}" for n in (2, 4, 16, 64))
    return "\n".join([*said, f"log n - (n - 1) / n: {bounds}; {seeds} worlds"])


def cell(name: str, experiment: Callable[..., Numbers], seed: int, updates: int, out: Path) -> Numbers:
    """One experiment in one world, kept on disk."""
    path = out / "differences" / f"{name}-{seed}-{updates}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(experiment(seed, updates)) + "\n")
    found: Numbers = json.loads(path.read_text(encoding="utf-8"))
    return found


def reward_plot(cells: Sequence[Numbers]) -> str:
    """Learned and true gain against the square root of KL, for few and for many pairs."""
    figure, both = new_figure(2)
    for axes, count in zip(both, (64, 4096), strict=True):
        for kind, colour in (("smooth", "#2b7bba"), ("trap", "#c1543c")):
            for what, style in (("learned", ":"), ("true", "-")):
                gains = [[one[f"{kind}, {count}: {what} {kl}"] for kl in GRID] for one in cells]
                axes.plot(np.sqrt(GRID), np.mean(gains, axis=0), style, color=colour, label=f"{kind}, {what}")
        axes.set(title=f"{count} pairs", xlabel="square root of KL", ylim=(-0.2, 2.0))
    both[0].set_ylabel("gain in reward")
    both[0].legend(frameon=False, fontsize=7)
    return to_svg(figure)


def kl_plot(cells: Sequence[Numbers]) -> str:
    """KL against updates."""
    figure, axes = new_figure()
    for loss, colour in (("sigmoid", "#2b7bba"), ("ipo", "#c1543c")):
        for beta, style in ((0.1, "-"), (1.0, "--")):
            kls = np.mean([[one[f"{loss}, {beta:g}: {step}"] for step in SNAPSHOTS] for one in cells], axis=0)
            axes.plot(SNAPSHOTS, kls, style, marker="o", color=colour, label=f"{loss}, beta {beta:g}")
    axes.set(xlabel="updates", ylabel="KL to the reference, nats")
    axes.legend(frameon=False)
    return to_svg(figure)


def rehearse(folder: Path) -> None:
    """One world and two updates."""
    assert "| 256 candidates |" in run(folder, seeds=1, updates=2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells; the same command resumes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="only experiments whose name holds this")
    args = parser.parse_args()
    print(run(args.out, args.seeds, only=args.only))


if __name__ == "__main__":
    main()
