"""K ranked responses as one element of the batch, or their pairs shuffled? InstructGPT's claim: shuffled pairs overfit in one pass.

    python -m recipes.kwise_overfit --out out/kwise --seeds 20

The world: 120 prompts to train on, each with 6 responses of 40 features; the reward is linear in four of them, and one person ranks the
six by Plackett-Luce. A network of 64 units is trained for one epoch by the reward objective's loss:

    grouped            8 prompts per step, all 15 pairs of each: 15 steps, every response in one of them
    shuffled           8 pairs per step, drawn from all prompts: 225 steps, every response in 5 of them
    shuffled, matched  120 pairs per step: 15 steps

Four learning rates per arm. Reported: loss per pair on 400 new prompts after the epoch, at each rate and at the arm's best (chosen on 100
other prompts), and the gap to the loss on the pairs trained on. A coin has 0.693. Mean and standard error over seeds, differences paired.
Cost: about 2 seconds per seed on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trueline.objectives.reward import bradley_terry
from trueline.store import write_atomic

K, FEATURES, TRAIN, CHOOSE, TEST, BATCH = 6, 40, 120, 100, 400, 8
FIRST, SECOND = np.triu_indices(K, 1)
RATES = (0.001, 0.003, 0.01, 0.03)
ARMS = ("grouped", "shuffled", "shuffled, matched")


def new_world(rng: np.random.Generator) -> Tensor:
    """float32 [prompts, K, FEATURES], the responses of each prompt from best to worst as ranked."""
    weight_F = np.zeros(FEATURES)
    weight_F[:4] = rng.normal(size=4)
    features_PKF = rng.normal(size=(TRAIN + CHOOSE + TEST, K, FEATURES))
    worth_PK = features_PKF @ weight_F + rng.gumbel(size=features_PKF.shape[:2])
    order_PK = np.argsort(-worth_PK, 1)
    return torch.from_numpy(np.take_along_axis(features_PKF, order_PK[..., None], 1).astype(np.float32))


def steps_of(arm: str, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per step the prompts, and the places of the better and the worse response, of its pairs."""
    if arm == "grouped":
        for prompts in rng.permutation(TRAIN).reshape(-1, BATCH):
            yield np.repeat(prompts, len(FIRST)), np.tile(FIRST, BATCH), np.tile(SECOND, BATCH)
        return
    size = BATCH if arm == "shuffled" else BATCH * len(FIRST)
    for numbers in rng.permutation(TRAIN * len(FIRST)).reshape(-1, size):
        yield numbers // len(FIRST), FIRST[numbers % len(FIRST)], SECOND[numbers % len(FIRST)]


def loss_of(net: Callable[[Tensor], Tensor], features_PKF: Tensor) -> float:
    """Mean loss of all pairs."""
    with torch.no_grad():
        score_PK = net(features_PKF)[..., 0]
        gap = score_PK[:, FIRST] - score_PK[:, SECOND]
        return float(bradley_terry(gap, torch.ones_like(gap)).mean())


def trained(arm: str, features_PKF: Tensor, rate: float, seed: int) -> dict[str, float]:
    """One epoch; the losses after it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0)
    for prompts, better, worse in steps_of(arm, np.random.default_rng([seed, 1])):
        gap_N = net(features_PKF[prompts, better])[:, 0] - net(features_PKF[prompts, worse])[:, 0]
        optimizer.zero_grad()
        bradley_terry(gap_N, torch.ones_like(gap_N)).mean().backward()
        optimizer.step()
    train, choose, test = features_PKF.split([TRAIN, CHOOSE, TEST])
    return {"train": loss_of(net, train), "choose": loss_of(net, choose), "test": loss_of(net, test)}


def run(out: Path, seeds: int) -> str:
    """Every arm, rate and seed; the table."""
    found: dict[str, list[dict[str, float]]] = {f"{arm}|{rate:g}": [] for arm in ARMS for rate in RATES}
    for seed in range(seeds):
        world = new_world(np.random.default_rng([seed, 0]))
        for arm in ARMS:
            for rate in RATES:
                found[f"{arm}|{rate:g}"].append(trained(arm, world, rate, seed))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "results.json", json.dumps(found, indent=1))
    lines = ["| arm | learning rate | loss on new prompts | gap to trained pairs | loss less grouped's best |", "|---" * 5 + "|"]
    best = {arm: chosen([found[f"{arm}|{rate:g}"] for rate in RATES]) for arm in ARMS}
    for arm in ARMS:
        for rate in (*RATES, None):
            results = best[arm] if rate is None else found[f"{arm}|{rate:g}"]
            test, train, base = (np.array([one[name] for one in some]) for some, name in
                                 ((results, "test"), (results, "train"), (best["grouped"], "test")))  # fmt: skip
            name = "its best" if rate is None else f"{rate:g}"
            lines.append(f"| {arm} | {name} | {said(test)} | {said(test - train)} | {said(test - base)} |")
    return "\n".join(lines)


def chosen(by_rate: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Per seed the rate with the least loss on the prompts set apart for choosing."""
    return [min(results, key=lambda one: one["choose"]) for results in zip(*by_rate, strict=True)]


def said(values: np.ndarray) -> str:
    """Mean +- standard error."""
    return f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def rehearse(out: Path) -> None:
    """Two seeds."""
    assert "shuffled, matched" in run(out, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("out/kwise"))
    parser.add_argument("--seeds", type=int, default=20)
    words = parser.parse_args()
    print(run(words.out, words.seeds))


if __name__ == "__main__":
    main()
