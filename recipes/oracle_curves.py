"""A run in the exact world, followed: the policy after every few updates, with its exact reward and KL.

    python -m recipes.oracle_curves --method rloo --seed 0

    policies(method, world, updates, every)    [P, V] each, the start first
    kept(out, about, measure)                  what was measured, from disk or now

Methods are those of recipes/oracle.py. Prints one run as a table. The reproductions of recipes/ppo_clipping.py,
recipes/iterative_vs_offline.py and recipes/reward_kl_law.py stand on it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recipes.oracle import Method, methods, trained
from recipes.oracle_world import World, make_world
from trueline.evals.oracle import expected_reward, mean_kl
from trueline.records import Row
from trueline.store import fingerprint, write_atomic


def policies(method: Method, world: World, updates: int, every: int, rows: Sequence[Row] = ()) -> list[np.ndarray]:
    """The policy at the start and after every so many updates; a round's updates must be `every` or divide it."""
    found = [world.reference_PV]

    def look(model: Any) -> list[dict[str, str]]:
        found.append(model.probs())
        return [{"prompt": "", "response": ""}]

    trained(replace(method, options={**method.options, "sample_steps": every}), world, list(rows), updates, look)
    return found


def kept(out: Path, about: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What was measured of this, a dictionary of numbers and lists: from disk, or now."""
    path = out / f"{fingerprint(dict(about))[:16]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"about": dict(about), "found": dict(measure())}) + "\n")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["found"]
    return found


def table(method: Method, seed: int, updates: int = 60, every: int = 10) -> str:
    """One run."""
    world, lines = make_world("smooth", seed), ["| updates | reward | KL |", "|---|---|---|"]
    for number, policy_PV in enumerate(policies(method, world, updates, every, method.data(world))):
        reward, kl = expected_reward(policy_PV, world.reward_PV), mean_kl(policy_PV, world.reference_PV)
        lines.append(f"| {number * every} | {reward:.4f} | {kl:.4f} |")
    return "\n".join(lines)


def rehearse(folder: Path) -> None:
    """Two updates."""
    assert table(named("rloo"), 0, 2, 1).count("\n") == 4


def named(name: str) -> Method:
    """A method of the exact world."""
    found = {method.name: method for method in methods()}
    if name not in found:
        raise SystemExit(f"there is no {name!r}: use one of {', '.join(found)}")
    return found[name]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="rloo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(table(named(args.method), args.seed))


if __name__ == "__main__":
    main()
