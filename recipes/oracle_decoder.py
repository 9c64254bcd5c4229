"""A decoder instead of a table: does the shipped DPO bring a small transformer to pi* under exact labels?

    python -m recipes.oracle_decoder --out out/oracle        20 worlds; the same command resumes

Reference is the decoder's own start, so a world's reference, pi* and DPO's formula are those of its probabilities. Two arms: prompts
that begin with a token of their own (0), as most models' do, and prompts of letters alone. Without that token rotary attention over n
equal tokens is a mean of equal values: it cannot count them, the prefixes 1, 1 1, 1 1 1 ... get one next-token distribution, and no
training reaches pi* where they should differ. `tied_optimum` is the best that is left: DPO's minimum over all policies with that tie.

Cost: about 10 s per world and arm on one core. Prints a Markdown table: means over worlds with standard errors.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes import oracle_optima as optima
from recipes.oracle import BETA, Still, summary, train_table
from recipes.oracle_tables import Table, TablePolicy, probs_of
from recipes.oracle_world import END, World, everything, make_world
from trueline.evals.oracle import gibbs, judge_policy, total_variation
from trueline.models.attention import Layout
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.objectives.dpo import DPO
from trueline.protocols import Crew
from trueline.store import write_atomic
from trueline.train.feed import StoredFeed

UPDATES = 300
OPTIONS = {"learning_rate": 0.005, "adam_beta2": 0.98}
"""A second moment over 50 updates, as 300 are no more than a third of what 0.999 remembers."""
WIDTH = 32


def small_decoder(world: World, seed: int, spread: float = 3.0) -> Decoder:
    """Two layers of width 32. A width so small starts nearly linear at the usual deviation of 0.02: weights are made larger."""
    config = DecoderConfig(
        model_type="llama", vocab_size=world.letters + 1, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=WIDTH // 2,
    )  # fmt: skip
    model = new_model(config, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread if parameter.ndim >= 2 else 1.0)
    return model


@torch.no_grad()
def world_of(model: Decoder, world: World) -> World:
    """The same world with this decoder for its reference."""
    rows = [world.row(p, range(len(world.responses))) for p in range(len(world.prompts))]
    layout = Layout.tree(rows)
    logits_VA = np.zeros_like(world.reference_logits_VA)
    states_N = world.states(layout)[layout.predicted_by_N]
    logits_VA[states_N.numpy(), layout.targets_N.numpy()] = model.token_logps(layout).logps_N.double().numpy()
    return replace(world, reference_logits_VA=logits_VA)


def tied_optimum(world: World, beta: float) -> np.ndarray:
    """Where DPO under exact labels is least if prefixes of one repeated token share their next-token distribution [P, V]."""
    states, tokens, mask = world.paths
    kinds: dict[tuple[int, ...], int] = {}
    kind_of = torch.zeros(world.num_prefixes, dtype=torch.long)
    for (p, prompt), (v, y) in itertools.product(enumerate(world.prompts), enumerate(world.responses)):
        for place in range(len(y)):
            prefix = (*prompt, *y[:place])
            kind_of[states[p, v, place]] = kinds.setdefault(prefix if len(set(prefix)) > 1 else prefix[:1], len(kinds))
    logits = torch.zeros(len(kinds), world.letters + 1, dtype=torch.float64, requires_grad=True)
    loss = optima.dpo(world, optima.pairs_in(world, everything(world)), beta)

    def logps_PV() -> Tensor:
        return (torch.log_softmax(logits[kind_of], 1)[states, tokens] * torch.from_numpy(mask)).sum(2)

    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logps_PV())
        value.backward()
        return value

    optimizer.step(closure)
    return logps_PV().exp().detach().numpy()


def measured(world: World, updates: int = UPDATES, **options: Any) -> dict[str, float]:
    """A decoder of its own for this world, trained by DPO on all pairs with exact labels."""
    model = small_decoder(world, world.seed)
    world = world_of(model, world)
    rows, crew = everything(world), Crew(reference=TablePolicy(world, Table(world).token_table()))
    still = Still(DPO(beta=BETA), rows, crew)
    feed = StoredFeed(rows[:1], 1, world.seed)
    train_table(still, model, feed, crew, updates, world.seed, **{**OPTIONS, **options})
    exactly = judge_policy(probs_of(model, world), world.reference_PV, world.reward_PV, BETA)
    best_PV = gibbs(world.reference_PV, world.reward_PV, BETA)
    return {
        "TV of its start to pi*": total_variation(world.reference_PV, best_PV),
        "TV to pi*": exactly.variation,
        "regret": exactly.regret,
        "least TV with the tie": total_variation(tied_optimum(world, BETA), best_PV),
    }


def with_first_token(world: World) -> World:
    """The same world with a 0 at the start of every prompt."""
    return replace(world, prompts=tuple((END, *prompt) for prompt in world.prompts))


def run(out: Path, seeds: int = 20, updates: int = UPDATES, cached: bool = False) -> str:
    """Both arms in every world."""
    found: dict[str, list[dict[str, float]]] = {"with a first token": [], "letters alone": []}
    for seed, name in itertools.product(range(seeds), found):
        world, path = make_world("smooth", seed), out / "decoder" / f"{name}-{seed}-{updates}.json"
        if not path.exists() and not cached:
            path.parent.mkdir(parents=True, exist_ok=True)
            world = with_first_token(world) if name == "with a first token" else world
            write_atomic(path, json.dumps(measured(world, updates)) + "\n")
        if path.exists():
            found[name].append(json.loads(path.read_text(encoding="utf-8")))
    return table(found)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means with standard errors. With a first token nothing is tied."""
    columns: Sequence[str] = ("TV of its start to pi*", "TV to pi*", "largest", "regret", "least TV with the tie")
    lines = [f"| prompts | worlds | {' | '.join(columns)} |", "|---|" + "---|" * (len(columns) + 1)]
    for name, cells in ((name, cells) for name, cells in found.items() if cells):
        values = {key: summary([one[key] for one in cells]) for key in cells[0]}
        values["largest"] = f"{max(one['TV to pi*'] for one in cells):.4f}"
        if name == "with a first token":
            values["least TV with the tie"] = ""
        lines.append(f"| {name} | {len(cells)} | {' | '.join(values[key] for key in columns)} |")
    return "\n".join(lines)


def rehearse(folder: Path) -> None:
    """Two updates in one world."""
    assert "| letters alone | 1 |" in run(folder, seeds=1, updates=2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells; the same command resumes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--cached", action="store_true", help="train nothing: the table of the cells that are there")
    args = parser.parse_args()
    print(run(args.out, args.seeds, args.updates, args.cached))


if __name__ == "__main__":
    main()
