"""Known differences between methods, each shown where everything is known: 20 worlds, paired differences, standard errors.

    python -m recipes.oracle_differences --out out/oracle                        all of them; the same command resumes
    python -m recipes.oracle_differences --out out/oracle --only coverage        one

    coverage            DPO on pairs from pi_ref, from all responses alike, and from a narrow policy that says five things
    on_policy           as many labels on one's own responses as on stored ones, at a strong and at a weak pull to pi_ref
    overoptimisation    true reward against KL, where the policy maximises a reward learned from few pairs
    certain_labels      without doubt in the labels the end of sigmoid DPO does not depend on beta; that of IPO does
    best_of_n           log n - (n - 1) / n against the exact KL
    square_root         reward per square root of KL: 1.41 standard deviations of the reward for a small step; RLOO and PPO on their way
    rejection           what RSO's algorithm accepts, against pi*, as candidates grow

Policies are trained as in recipes/oracle.py. A number is named "row: column". Cost: about 8 minutes on one core. Prints Markdown tables;
recipes/oracle_pictures.py draws them.
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
from recipes.oracle_tables import ScoreTable, Table, TablePolicy
from recipes.oracle_world import World, drawn_pairs, everything, features, make_world
from trueline.align.best_of_n import exact_kl, kl_bound
from trueline.align.rejection import accept
from trueline.evals.oracle import (
    expected_reward,
    gibbs,
    gibbs_at_kl,
    judge_policy,
    mean_kl,
    reward_at_kl,
    total_variation,
)
from trueline.objectives.dpo import DPO
from trueline.objectives.kl import KLPenalty
from trueline.objectives.ppo import PPO
from trueline.objectives.reward import Reward
from trueline.objectives.rloo import RLOO
from trueline.objectives.updates import Update
from trueline.protocols import Crew
from trueline.store import write_atomic
from trueline.train.feed import StoredFeed

Numbers = dict[str, float]
LABELS = 4800
ROUNDS = 4
"""Of labelling one's own responses."""
WEAK = 0.15
"""A beta at which pi* is far from pi_ref."""
GRID = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""KL at which policies of a learned reward are looked at, nats."""
FEW = (512, 4096)
"""Labels that a reward is learned from, over all prompts."""
SNAPSHOTS = (50, 100, 200, 400)
STOPS = (10, 20, 40, 80)


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
    """As many labels on pairs from three policies. "Rest" is the probability of responses that are not among the five."""
    world = make_world("smooth", seed)
    best_PV, rest_PV = gibbs(world.reference_PV, world.reward_PV, BETA), narrow(world) == 0
    sources = {
        "all alike": np.full_like(world.reference_PV, 1 / len(world.responses)),
        "pi_ref": world.reference_PV,
        "five responses": narrow(world),
    }
    policies = {"pi_ref itself": world.reference_PV, "pi*": best_PV}
    for source, pairs_of_PV in sources.items():
        for arm, objective in (("dpo", DPO(beta=BETA)), ("reward model", Reward())):
            policies[f"{arm}, {source}"] = stored(objective, world, pairs_of_PV, LABELS, updates)
    found = {}
    for name, policy_PV in policies.items():
        exactly = judge_policy(policy_PV, world.reference_PV, world.reward_PV, BETA)
        for number in ("variation", "reward", "kl", "gap"):
            found[f"{name}: {number}"] = getattr(exactly, number)
        found[f"{name}: rest"] = float((policy_PV * rest_PV).sum(1).mean())
    return found


def collected(world: World, beta: float, updates: int) -> np.ndarray:
    """DPO on its own responses: a quarter of the labels on pairs of pi_ref's, then of what came of all labels so far."""
    policy_PV, rows = world.reference_PV, []
    for number in range(ROUNDS):
        other = replace(world, seed=world.seed + 1000 * number)  # other draws, the same world
        rows += drawn_pairs(other, policy_PV, LABELS // ROUNDS)
        policy_PV = trained(Method(name="", objective=DPO(beta=beta)), world, rows, updates)
    return policy_PV


def on_policy(seed: int, updates: int = UPDATES) -> Numbers:
    """A label says which of two responses wins, by Bradley-Terry; the arms differ in whose responses they are."""
    world, found = make_world("smooth", seed), {}
    for beta in (BETA, WEAK):
        arms = {
            "own, four rounds": collected(world, beta, updates),
            "pi_ref's": stored(DPO(beta=beta), world, world.reference_PV, LABELS, updates),
            "five responses": stored(DPO(beta=beta), world, narrow(world), LABELS, updates),
        }
        for name, policy_PV in arms.items():
            exactly = judge_policy(policy_PV, world.reference_PV, world.reward_PV, beta)
            for number in ("variation", "reward", "kl", "regret", "gap"):
                found[f"beta {beta:g}, {name}: {number}"] = getattr(exactly, number)
    return found


def learned(world: World, count: int, basis: np.ndarray | None, updates: int) -> np.ndarray:
    """A reward [P, V] learned from so many labels on pi_ref's pairs, 0 on average over pi_ref."""
    rows, model = drawn_pairs(world, count=count), ScoreTable(world, basis=basis)
    still = Still(Reward(), rows, Crew())
    train_table(still, model, StoredFeed(rows[:1], 1, world.seed), Crew(), updates, world.seed)
    return model.table() - (world.reference_PV * model.table()).sum(1, keepdims=True)


def overoptimisation(seed: int, updates: int = UPDATES) -> Numbers:
    """The best policy for a learned reward at each KL (past its always taking the best: that): what it thinks it gains, and what it
    gains. A reward model is a table, which says 0 of what it did not see, or linear in what a smooth reward depends on."""
    found = {}
    for kind in ("smooth", "trap"):
        world = make_world(kind, seed)
        start = expected_reward(world.reference_PV, world.reward_PV)
        for name, basis in (("table", None), ("linear", features(world.responses, world.letters))):
            for count in FEW:
                learned_PV = learned(world, count, basis, updates)
                for kl in GRID:
                    policy_PV = gibbs_at_kl(world.reference_PV, learned_PV, kl)
                    row = f"{kind}, {name}, {count} labels"
                    found[f"{row}, learned: {kl:g}"] = expected_reward(policy_PV, learned_PV)
                    found[f"{row}, true: {kl:g}"] = expected_reward(policy_PV, world.reward_PV) - start
        for kl in GRID:
            most = reward_at_kl(world.reference_PV, world.reward_PV, kl) - start
            found[f"{kind}, the true reward itself: {kl:g}"] = most
    return found


def certain_labels(seed: int, updates: int = UPDATES) -> Numbers:
    """KL after more and more updates at a constant rate: all pairs, and the better one always wins, or as Bradley-Terry says."""
    world, found = make_world("smooth", seed, prompts=2, longest=2), Numbers()
    labels = {
        "certain": [
            world.row(p, np.argsort(-r_V).tolist(), rank=range(1, len(r_V) + 1))
            for p, r_V in enumerate(world.reward_PV)
        ],
        "by chance": everything(world),
    }
    for name, loss in (("certain", "sigmoid"), ("certain", "ipo"), ("by chance", "sigmoid")):
        for beta in (0.1, 1.0):
            policy, seen = Table(world), dict[int, float]()
            crew = Crew(reference=TablePolicy(world, policy.token_table()))

            def look(model: Any, seen: dict[int, float] = seen) -> list[dict[str, str]]:
                seen[SNAPSHOTS[0] * (1 + len(seen))] = mean_kl(model.probs(), world.reference_PV)
                return [{"prompt": "", "response": ""}]

            rows, total = labels[name], SNAPSHOTS[-1] * updates // UPDATES
            still = Still(DPO(beta=beta, loss_type=loss), rows, crew)  # type: ignore[arg-type]
            train_table(still, policy, StoredFeed(rows, 1, seed), crew, total, seed, look, lr_scheduler_type="constant",
                        sample_steps=SNAPSHOTS[0])  # fmt: skip
            found |= {f"{loss}, {name}, beta {beta:g}: {step}": seen.get(step, math.nan) for step in SNAPSHOTS}
    for beta in (0.1, 1.0):
        best_PV = gibbs(world.reference_PV, world.reward_PV, beta)
        found[f"pi* at beta {beta:g}: {SNAPSHOTS[-1]}"] = mean_kl(best_PV, world.reference_PV)
    always_PV = np.eye(len(world.responses))[world.reward_PV.argmax(1)]
    return found | {f"always the best: {SNAPSHOTS[-1]}": mean_kl(always_PV, world.reference_PV)}


def best_of_n(seed: int, updates: int = UPDATES) -> Numbers:
    """No training: the law of the best of n is known."""
    found = {}
    for letters, longest in ((2, 3), (3, 5), (3, 7)):
        world = make_world("smooth", seed, prompts=3, letters=letters, longest=longest)
        for n in (2, 4, 16, 64):
            pairs = zip(world.reference_PV, world.reward_PV, strict=True)
            found[f"n = {n}: {len(world.responses)} responses"] = float(
                np.mean([exact_kl(p_V, r_V, n) for p_V, r_V in pairs])
            )
        most = float(world.reference_PV.max(1).mean())
        found[f"largest probability of a response: {len(world.responses)} responses"] = most
    return found | {f"n = {n}: log n - (n - 1)/n": kl_bound(n) for n in (2, 4, 16, 64)}


def slope(policy_PV: np.ndarray, world: World) -> Numbers:
    """KL; (reward - reward at the start) / (standard deviation under pi_ref x sqrt KL); the gain as a share of the exact curve's."""
    ref_PV, reward_PV = world.reference_PV, world.reward_PV
    start, kl = expected_reward(ref_PV, reward_PV), mean_kl(policy_PV, ref_PV)
    centred_PV = reward_PV - (ref_PV * reward_PV).sum(1, keepdims=True)
    deviation, gain = (
        math.sqrt(float((ref_PV * centred_PV**2).sum(1).mean())),
        expected_reward(policy_PV, reward_PV) - start,
    )
    most = reward_at_kl(ref_PV, reward_PV, kl) - start
    return {
        "KL": kl,
        "gain per deviation and root of KL": gain / deviation / math.sqrt(kl),
        "share of the curve": gain / most,
    }


def square_root(seed: int, updates: int = UPDATES) -> Numbers:
    """On the exact curve, at the ends of DPO, and on the way of RLOO and PPO with a weak pull and small steps."""
    world = make_world("smooth", seed)
    policies = {
        f"the best at KL {kl:g}": gibbs_at_kl(world.reference_PV, world.reward_PV, kl)
        for kl in (0.001, 0.01, 0.1, 0.5, 1.0)
    }
    dpo = next(method for method in methods() if method.name == "dpo")
    for beta in (4.0, 1.0):
        policies[f"dpo, beta {beta:g}"] = trained(
            replace(dpo, objective=DPO(beta=beta)), world, dpo.data(world), updates
        )
    pull = KLPenalty(kl_coef=WEAK, kl_estimator="k1")
    for name, objective in (("rloo", RLOO(kl=pull)), ("ppo", PPO(kl=pull, update=Update(num_iterations=2)))):
        way = list[np.ndarray]()

        def look(model: Any, way: list[np.ndarray] = way) -> list[dict[str, str]]:
            way.append(model.probs())
            return [{"prompt": "", "response": ""}]

        options = {"learning_rate": 0.03, "lr_scheduler_type": "constant", "sample_steps": STOPS[0]}
        trained(Method(name="", objective=objective, draws=8, options=options), world, [], min(STOPS[-1], updates), look)
        policies |= {f"{name}, {step} updates": way[step // STOPS[0] - 1] for step in STOPS if step <= updates}
    return {f"{name}: {key}": value for name, p_PV in policies.items() for key, value in slope(p_PV, world).items()}


def rejection(seed: int, updates: int = UPDATES, trials: int = 2000) -> Numbers:
    """One accepted response of N candidates, again and again; the last number is the noise of so many draws of pi* itself."""
    world, rng = make_world("smooth", seed, prompts=1), np.random.default_rng([seed, 5])
    best_PV, V = gibbs(world.reference_PV, world.reward_PV, BETA), len(world.responses)
    found = {}
    for N in (1, 4, 16, 64, 256):
        candidates_XN = rng.choice(V, size=(trials, N), p=world.reference_PV[0])
        taken = [int(c_N[accept(world.reward_PV[0, c_N], 1, BETA, rng)[0]]) for c_N in candidates_XN]
        found[f"{N} candidates: to pi*"] = total_variation(np.bincount(taken, minlength=V)[None] / trials, best_PV)
    drawn = rng.choice(V, size=trials, p=best_PV[0])
    return found | {"draws of pi*: to pi*": total_variation(np.bincount(drawn, minlength=V)[None] / trials, best_PV)}


EXPERIMENTS: Mapping[str, Callable[..., Numbers]] = {
    one.__name__: one
    for one in (coverage, on_policy, overoptimisation, certain_labels, best_of_n, square_root, rejection)
}
PAIRED: Mapping[str, Sequence[tuple[str, str]]] = {
    "coverage": (
        ("dpo, five responses: gap", "dpo, pi_ref: gap"),
        ("dpo, pi_ref: gap", "dpo, all alike: gap"),
        ("dpo, five responses: gap", "reward model, five responses: gap"),
        ("dpo, pi_ref: gap", "reward model, pi_ref: gap"),
        ("dpo, five responses: rest", "reward model, five responses: rest"),
        ("dpo, five responses: rest", "pi_ref itself: rest"),
    ),
    "on_policy": tuple(
        (f"beta {beta:g}, own, four rounds: gap", f"beta {beta:g}, {other}: gap")
        for beta in (BETA, WEAK) for other in ("pi_ref's", "five responses")
    ),
    "overoptimisation": tuple(
        (f"{kind}, {name}, {count} labels, true: 1.5", f"{kind}, {name}, {count} labels, true: 6")
        for kind in ("smooth", "trap") for name in ("table", "linear") for count in FEW
    ),
    "certain_labels": tuple(
        (f"{arm}, beta 0.1: 400", f"{arm}, beta 1: 400") for arm in ("sigmoid, certain", "ipo, certain", "sigmoid, by chance")
    ) + tuple((f"{arm}: 400", f"{arm}: 200") for arm in ("sigmoid, certain, beta 1", "ipo, certain, beta 1", "sigmoid, by chance, beta 1")),
    "square_root": tuple(
        (f"{name}, 20 updates: gain per deviation and root of KL", f"{name}, 80 updates: gain per deviation and root of KL")
        for name in ("rloo", "ppo")
    ),
}  # fmt: skip
"""Differences worth telling: first minus second, in the same worlds."""


def grid(cells: Sequence[Numbers]) -> list[str]:
    """Rows and columns, means with standard errors."""
    names = [key.split(": ") for key in cells[0]]
    rows, columns = (list(dict.fromkeys(name[i] for name in names)) for i in (0, 1))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        there = [f"{row}: {column}" for column in columns]
        values = [summary([one[key] for one in cells]) if key in cells[0] else "" for key in there]
        lines.append(f"| {row} | {' | '.join(values)} |")
    return lines


def run(out: Path, seeds: int = 20, updates: int = UPDATES, only: str = "", cached: bool = False) -> str:
    """Every experiment's numbers, means with standard errors, and its paired differences."""
    found: dict[str, list[Numbers]] = {name: [] for name in EXPERIMENTS if only in name}
    for seed in range(seeds):
        for name in found:
            if not cached or place(name, seed, updates, out).exists():
                found[name].append(cell(name, seed, updates, out))
    said = []
    for name, cells in found.items():
        if not cells:
            continue
        said += [f"### {name}, {len(cells)} worlds", "", *grid(cells), ""]
        if told := [pair for pair in PAIRED.get(name, ()) if pair[0] in cells[0] and pair[1] in cells[0]]:
            said += ["| first less second, same world | |", "|---|---|"]
            said += [f"| {a} − {b} | {summary([one[a] - one[b] for one in cells])} |" for a, b in told]
            said.append("")
    return "\n".join(said)


def place(name: str, seed: int, updates: int, out: Path) -> Path:
    """Where a cell is kept."""
    return out / "differences" / f"{name}-{seed}-{updates}.json"


def cell(name: str, seed: int, updates: int, out: Path) -> Numbers:
    """One experiment in one world: from disk, or now."""
    path = place(name, seed, updates, out)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(EXPERIMENTS[name](seed, updates)) + "\n")
    found: Numbers = json.loads(path.read_text(encoding="utf-8"))
    return found


def rehearse(folder: Path) -> None:
    """One world and two updates."""
    assert "| 256 candidates |" in run(folder, seeds=1, updates=2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells; the same command resumes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="only experiments whose name holds this")
    parser.add_argument("--cached", action="store_true", help="compute nothing: the tables of the cells that are there")
    args = parser.parse_args()
    print(run(args.out, args.seeds, only=args.only, cached=args.cached))


if __name__ == "__main__":
    main()
