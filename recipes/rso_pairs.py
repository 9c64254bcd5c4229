"""Whose pairs should DPO's loss see? The given ones, the start model's own, or those that rejection sampling keeps: RSO's claim.

    python -m recipes.rso_pairs --worlds 40

Liu et al., 2309.06657, table 1: rso-sample beats sft-sample beats direct. A bandit of 400 arms in which all is exact:

    direct       pairs of another policy, labelled by the gold reward            what people compared once
    sft-sample   pairs of the start policy, labelled by a proxy                  no rejection: beta = infinity
    rso-sample   64 draws of the start policy, 8 accepted at beta, pairs of those, labelled by the proxy

All arms have the same number of pairs, the same loss (sigmoid_norm), and a policy that is linear in 30 features. Each is read where it
crosses KL 1 from the start policy, so neither learning rate nor steps decide: gold reward there, minus the start's, in units of the gold
reward's standard deviation. A proxy is the gold reward plus noise of half its deviation. Labels are drawn as Bradley and Terry
say, or are the better one's always. `lean` is how far the two policies are from uniform, each in a direction of its own, and so from one
another. The arms of a world share its chance: differences are paired. gamma 0.05, the paper's.

The most that a policy can gain at KL 1 (`best`) is the tilted start policy's, which the features cannot reach.
Cost: a minute on one core for 40 worlds. Prints the table of docs/recipes/rso_pairs.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trueline.align.rejection import accept, first_round

ARMS, WIDTH, CANDIDATES, KEPT = 400, 30, 64, 8
KL, STRIDE, STEPS = 1.0, 0.05, 400
"""Where arms are compared; length of a step in the parameters, and how many there are at most."""
BETAS = (math.inf, 5.0, 2.0, 1.0, 0.5, 0.05)
"""Of the rejection, in units of the proxy's standard deviation."""


@dataclass(frozen=True)
class World:
    """One context."""

    features_AD: np.ndarray
    start_A: np.ndarray
    """Log-probabilities of the start policy."""
    other_A: np.ndarray
    """Of the policy whose pairs people compared."""
    gold_A: np.ndarray
    proxy_A: np.ndarray

    @staticmethod
    def drawn(rng: np.random.Generator, lean: float = 1.0, noise: float = 0.5) -> World:
        """Gold is partly linear in the features; both policies lean some way of their own, by `lean` standard deviations."""
        features = rng.normal(size=(ARMS, WIDTH)) / math.sqrt(WIDTH)
        start, other = (_log_softmax(lean * features @ rng.normal(size=WIDTH)) for _ in range(2))
        gold = features @ rng.normal(size=WIDTH) + 0.5 * rng.normal(size=ARMS)
        gold = (gold - gold.mean()) / gold.std()
        return World(features, start, other, gold, gold + noise * rng.normal(size=ARMS))


def direct_pairs(world: World, count: int, rng: np.random.Generator, hard: bool) -> np.ndarray:
    """Two draws of the other policy each, the gold reward's choice first: int [count, 2]."""
    both = rng.choice(ARMS, size=(count, 2), p=np.exp(world.other_A))
    return labelled(both[both[:, 0] != both[:, 1]], world.gold_A, rng, hard)


def own_pairs(world: World, count: int, beta: float, rng: np.random.Generator, hard: bool) -> np.ndarray:
    """What `trueline rso` would train on: groups of candidates, accepted at beta, in random pairs, the proxy's choice first."""
    found: list[tuple[int, int]] = []
    scale, groups = float(world.proxy_A.std()), 2 * (2 * count // KEPT + 1)  # twice as many as are needed without ties
    drawn = rng.choice(ARMS, size=(groups, CANDIDATES), p=np.exp(world.start_A))
    for group in drawn:
        arms = list(dict.fromkeys(group.tolist()))  # each once, as drawn
        rewards = world.proxy_A[arms]
        kept = accept(rewards, KEPT, beta * scale, rng)
        found += [(arms[a], arms[b]) for a, b in first_round(kept, rewards, rng)]
        if len(found) >= count:
            break
    return labelled(np.array(found[:count]), world.proxy_A, rng, hard)


def labelled(pairs_P2: np.ndarray, reward_A: np.ndarray, rng: np.random.Generator, hard: bool) -> np.ndarray:
    """The preferred one first: the better one, or as Bradley and Terry draw it."""
    ahead_P = reward_A[pairs_P2[:, 0]] - reward_A[pairs_P2[:, 1]]
    wins_P = ahead_P > 0 if hard else rng.random(len(ahead_P)) < 1 / (1 + np.exp(-ahead_P))
    return np.where(wins_P[:, None], pairs_P2, pairs_P2[:, ::-1])


def gain(world: World, pairs_P2: np.ndarray, gamma: float) -> float:
    """Gold reward above the start's where descent on the mean pair loss crosses KL 1; not a number where it never does."""
    differences_PD = world.features_AD[pairs_P2[:, 0]] - world.features_AD[pairs_P2[:, 1]]
    theta_D, before = np.zeros(WIDTH), (0.0, 0.0)
    start = float(np.exp(world.start_A) @ world.gold_A)
    for _ in range(STEPS):
        weight_P = gamma / (1 + np.exp(gamma * (differences_PD @ theta_D)))  # gamma sigmoid(-gamma h)
        slope_D = weight_P @ differences_PD / len(differences_PD)
        theta_D = theta_D + STRIDE * slope_D / max(float(np.linalg.norm(slope_D)), 1e-12)
        logps_A = _log_softmax(world.start_A + world.features_AD @ theta_D)
        now = (float(np.exp(logps_A) @ (logps_A - world.start_A)), float(np.exp(logps_A) @ world.gold_A) - start)
        if now[0] >= KL:
            share = (KL - before[0]) / (now[0] - before[0])
            return before[1] + share * (now[1] - before[1])
        before = now
    return math.nan


def best_gain(world: World) -> float:
    """The tilted start policy's gain at KL 1: none has more."""
    low, high = 1e-3, 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        logps_A = _log_softmax(world.start_A + world.gold_A / middle)
        low, high = (middle, high) if float(np.exp(logps_A) @ (logps_A - world.start_A)) > KL else (low, middle)
    return float((np.exp(logps_A) - np.exp(world.start_A)) @ world.gold_A)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    top = x.max()
    return x - (top + math.log(np.exp(x - top).sum()))


def arms_of(seed: int, pairs: int, lean: float, hard: bool, gamma: float = 0.05) -> dict[str, float]:
    """Arm -> gain in the world of this seed."""
    world = World.drawn(np.random.default_rng([seed, 0]), lean)
    found = {"direct": gain(world, direct_pairs(world, pairs, np.random.default_rng([seed, 1]), hard), gamma)}
    for beta in BETAS:
        name = "sft-sample" if beta == math.inf else f"rso-sample, beta {beta:g}"
        found[name] = gain(world, own_pairs(world, pairs, beta, np.random.default_rng([seed, 2]), hard), gamma)
    return found | {"best": best_gain(world)}


def run(worlds: int, pairs: int = 1500, leans: Sequence[float] = (1.0, 2.0)) -> str:
    """Gain per arm, and how much more than sft-sample, paired, with standard errors."""
    parts = []
    for hard in (False, True):
        for lean in leans:
            rows = [arms_of(seed, pairs, lean, hard) for seed in range(worlds)]
            lines = ["| pairs | gain at KL 1 | more than sft-sample |", "|---|---|---|"]
            for name in rows[0]:
                values, more = (
                    np.array([row[name] - (row["sft-sample"] if other else 0) for row in rows]) for other in (0, 1)
                )
                lines.append(f"| {name} | {said(values)} | {'' if name == 'sft-sample' else said(more)} |")
            labels = "the better one always" if hard else "drawn by Bradley-Terry"
            parts.append(f"**labels {labels}, lean {lean:g}**, {worlds} worlds, {pairs} pairs\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def said(values: np.ndarray) -> str:
    """Mean and standard error; worlds that never got to KL 1 are counted."""
    there = values[np.isfinite(values)]
    lost = f" ({len(values) - len(there)} never at KL 1)" if len(there) < len(values) else ""
    return (
        f"{there.mean():.3f} ± {there.std(ddof=1) / math.sqrt(len(there)):.3f}{lost}"
        if len(there) > 1
        else "none" + lost
    )


def rehearse(folder: Path) -> None:
    """Two worlds, few pairs."""
    text = run(2, pairs=60, leans=(1.0,))
    (folder / "tables.md").write_text(text, encoding="utf-8")
    assert text.count("| sft-sample |") == 2


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=1500)
    args = parser.parse_args()
    print(run(args.worlds, args.pairs))


if __name__ == "__main__":
    main()
