"""Two pictures of the exact oracle, drawn from cells that are there.

    python -m recipes.oracle_pictures --out out/oracle        writes oracle_curve.svg and oracle_overoptimisation.svg into it

The worlds of recipes/oracle.py are drawn as one with their prompts together: the exact curve is the best mean reward at each mean KL,
and no method's point, means over the same worlds, is above it. The second picture is the experiment of recipes/oracle_differences.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes.oracle import UPDATES, cell, methods, place
from recipes.oracle import run as run_methods
from recipes.oracle_differences import FEW, GRID, Numbers
from recipes.oracle_differences import cell as difference
from recipes.oracle_differences import place as place_of_difference
from recipes.oracle_differences import run as run_differences
from recipes.oracle_world import make_world
from recipes.sick_curves import compact
from trueline.evals.oracle import expected_reward, gibbs, mean_kl
from trueline.store import write_atomic
from trueline.study.page import new_figure, to_svg

GREY = "#7d8590"
"""Read on light and on dark: an image cannot take the page's colour."""
NAMED = {
    "dpo": ("dpo, rloo, ppo, rso with soft labels", (-54, 38)), "ipo": ("ipo", (5, -9)), "simpo": ("simpo", (5, -9)),
    "orpo": ("orpo", (5, -9)), "kto": ("kto", (5, -9)), "hinge": ("hinge", (6, 1)), "grpo": ("grpo", (5, -9)),
    "dpo, drawn pairs": ("dpo, drawn pairs", (2, -23)), "dpo, flipped labels": ("dpo, flipped labels", (5, -11)),
    "rso": ("rso", (5, -9)), "online dpo, the better one wins": ("online dpo, the better one wins", (-30, -13)), "raft": ("raft", (5, -9)),
}  # fmt: skip
"""Methods whose points are named: how (where several coincide, one name for all), and where from the point."""


def curve(seeds: Sequence[int], updates: int) -> tuple[list[float], list[float]]:
    """KL and gain in reward of the best policies, all worlds' prompts as one."""
    worlds = [make_world("smooth", seed) for seed in seeds]
    reference, reward = (np.concatenate([getattr(world, name) for world in worlds]) for name in ("reference_PV", "reward_PV"))
    best = [gibbs(reference, reward, beta) for beta in np.geomspace(50, 0.02, 80)]
    start = expected_reward(reference, reward)
    return [mean_kl(one, reference) for one in best], [expected_reward(one, reward) - start for one in best]


def curve_picture(out: Path, seeds: int = 20, updates: int = UPDATES) -> str:
    """Every method's mean end against the curve; only methods that have been through all worlds."""
    figure, axes = new_figure()
    axes.plot(*curve(range(seeds), updates), color=GREY, linewidth=1.2)
    starts = [expected_reward(world.reference_PV, world.reward_PV) for world in (make_world("smooth", s) for s in range(seeds))]
    for method in methods():
        if method.objective.head != "tokens" or not all(place(method, "smooth", s, updates, out)[0].exists() for s in range(seeds)):
            continue
        found = [cell(method, "smooth", seed, updates, out) for seed in range(seeds)]
        kl, gain = np.mean([one["kl"] for one in found]), np.mean([one["reward"] for one in found]) - np.mean(starts)
        axes.plot(kl, gain, "o", markersize=4, color="#2b7bba" if method.name in NAMED else "#9fb6c9")
        if method.name in NAMED:
            said, place_of_it = NAMED[method.name]
            axes.annotate(said, (kl, gain), xytext=place_of_it, textcoords="offset points", fontsize=7, color=GREY)
    axes.set(xlabel="KL to the reference, nats", ylabel="gain in reward", xlim=(0, 3.3), ylim=(0, None))
    return grey(to_svg(figure))


def overoptimisation_picture(cells: Sequence[Numbers]) -> str:
    """Learned (dotted) and true gain (solid) against the square root of KL, where the reward is smooth and where it has a trap."""
    figure, both = new_figure(2)
    for axes, kind in zip(both, ("smooth", "trap"), strict=True):
        for name, colour in (("table", "#2b7bba"), ("linear", "#c1543c")):
            for what, style in (("learned", ":"), ("true", "-")):
                gains = [[one[f"{kind}, {name}, {FEW[0]} labels, {what}: {kl:g}"] for kl in GRID] for one in cells]
                axes.plot(np.sqrt(GRID), np.mean(gains, axis=0), style, color=colour, label=f"{name}, {what}")
        most = [[one[f"{kind}, the true reward itself: {kl:g}"] for kl in GRID] for one in cells]
        axes.plot(np.sqrt(GRID), np.mean(most, axis=0), "--", color=GREY, label="the true reward itself")
        axes.set_title(kind, color=GREY)
        axes.set(xlabel="square root of KL", ylim=(-0.6, 2.2))
    both[0].set_ylabel("gain in reward")
    both[0].legend(frameon=False, fontsize=6.5, labelcolor=GREY, loc="upper left")
    return grey(to_svg(figure))


def grey(svg: str) -> str:
    """Smaller, and in a colour that both backgrounds show."""
    return compact(svg.replace("currentColor", GREY))


def draw(out: Path, seeds: int = 20, updates: int = UPDATES) -> None:
    """Both files."""
    write_atomic(out / "oracle_curve.svg", curve_picture(out, seeds, updates))
    there = [s for s in range(seeds) if place_of_difference("overoptimisation", s, updates, out).exists()]
    if not there:
        raise ValueError(f"{out}: no cells of overoptimisation; run python -m recipes.oracle_differences --out {out} first")
    cells = [difference("overoptimisation", seed, updates, out) for seed in there]
    write_atomic(out / "oracle_overoptimisation.svg", overoptimisation_picture(cells))


def rehearse(folder: Path) -> None:
    """One world, two updates."""
    run_methods(folder, seeds=1, updates=2, only=("dpo", "ipo"))
    run_differences(folder, seeds=1, updates=2, only="overoptimisation")
    draw(folder, seeds=1, updates=2)
    assert (folder / "oracle_curve.svg").read_text(encoding="utf-8").startswith("<svg")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells of both recipes")
    args = parser.parse_args()
    draw(args.out)


if __name__ == "__main__":
    main()
