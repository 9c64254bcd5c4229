"""What does a reward model learn from people who disagree? DPRM against Bradley-Terry in a population of two groups.

    python -m recipes.dprm_disagreement --out out/disagreement --seeds 20

The world: a response has six features. A majority of 65% mildly likes what a minority of 35% strongly dislikes (the first feature);
the rest they see alike. Each person puts a response in one of five categories, worth -3, -1, 0, 0.5 and 1, with noise. The truth is
the mean worth over all people. Three people at random see each pair and rate both responses; all arms get the same ratings:

    BT, majority       who most of the three prefer
    BT, votes          how many of the three prefer it
    DPRM C, W, OT      the three ratings of a response, pooled (cross_entropy, wasserstein, transport)
    DPRM W single      each rating a row of its own (for C that is the same loss)

A network of 32 units on the features stands for the language model; the losses are the objectives' own. Every arm tries three learning
rates and keeps the step with the least validation loss of its own, on pairs that are not trained on.

Reported: how much of the majority's taste is in the reward (a / (a + b) of the least-squares fit a r_majority + b r_minority; the truth
has 0.65); regret of the best of eight new responses in true worth; what the minority gets from it; for DPRM the error of the expected
worth and the distance of its distribution from the true one. Mean and standard error over seeds, differences paired by seed.
Cost: about 3 seconds per seed on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.objectives.dprm import DPRM, target_of
from trueline.objectives.pairs import pairs_of
from trueline.objectives.reward import bradley_terry
from trueline.records import Row
from trueline.store import write_atomic

WORTH = (-3.0, -1.0, 0.0, 0.5, 1.0)
EDGES = np.array([-1.5, -0.5, 0.5, 1.5])
MAJORITY, NOISE, PEOPLE, FEATURES = 0.65, 0.6, 3, 6
RATES = (0.003, 0.01, 0.03)
ARMS = ("BT, majority", "BT, votes", "DPRM C", "DPRM W", "DPRM OT", "DPRM W single")
LOSSES = {"C": "cross_entropy", "W": "wasserstein", "OT": "transport"}


@dataclass(frozen=True)
class World:
    """Responses by number, and how each group would spread over the categories."""

    features_VD: np.ndarray
    shares_GVC: np.ndarray
    """Group 0 is the majority."""

    @property
    def mixture_VC(self) -> np.ndarray:
        return MAJORITY * self.shares_GVC[0] + (1 - MAJORITY) * self.shares_GVC[1]

    @property
    def worth_GV(self) -> np.ndarray:
        return self.shares_GVC @ np.array(WORTH)


def new_world(rng: np.random.Generator, responses: int) -> World:
    """Tastes are drawn anew: the first feature divides the groups, the others do not."""
    common_D = rng.normal(size=FEATURES) * 0.35
    taste_GD = np.stack([common_D, common_D])
    taste_GD[:, 0] = 0.5, -1.5
    features_VD = rng.normal(size=(responses, FEATURES))
    mean_GV = taste_GD @ features_VD.T
    below = normal_cdf((EDGES - mean_GV[..., None]) / NOISE)
    edges = np.concatenate([np.zeros((*mean_GV.shape, 1)), below, np.ones((*mean_GV.shape, 1))], -1)
    return World(features_VD, np.diff(edges))


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Of the standard normal distribution."""
    return torch.special.ndtr(torch.from_numpy(x)).numpy()


class Model(nn.Module):
    """Features of a response (its one token) -> a score, or logits of the categories."""

    def __init__(self, features_VD: np.ndarray, labels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features_VD = torch.from_numpy(features_VD.astype(np.float32))
        self.net = nn.Sequential(nn.Linear(features_VD.shape[1], 32), nn.Tanh(), nn.Linear(32, labels))


def rated_pairs(world: World, rng: np.random.Generator, first: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the responses [P, 2] from `first` on, and the categories [P, PEOPLE, 2] that three people put them in."""
    numbers_P2 = np.arange(first, first + 2 * pairs).reshape(pairs, 2)
    group_PA = (rng.random((pairs, PEOPLE)) > MAJORITY).astype(int)
    shares_PAKC = world.shares_GVC[group_PA[..., None], numbers_P2[:, None, :]]
    return numbers_P2, (rng.random((*shares_PAKC.shape[:-1], 1)) > shares_PAKC.cumsum(-1)[..., :-1]).sum(-1)


def row(numbers: Sequence[int], **values: Any) -> Row:
    """Responses of one token each."""
    ids = tuple(np.array([0, number], dtype=np.int32) for number in numbers)
    arrays = {name: np.array(value, dtype=np.float32) for name, value in values.items()}
    return Row(ids=ids, scored=(np.array([False, True]),) * len(ids), numbers=arrays)


def rows_of(arm: str, numbers_P2: np.ndarray, picks_PA2: np.ndarray, categories: int) -> list[Row]:
    """The same ratings as each arm reads them; a pick of -1 is none."""
    there_PA = picks_PA2[..., 0] >= 0
    if arm.startswith("BT"):
        ahead_PA = picks_PA2[..., 0] - picks_PA2[..., 1]
        share_PA = 0.5 + ahead_PA / (2 * (categories - 1)) if arm == "BT, grades" else 0.5 + 0.5 * np.sign(ahead_PA)
        votes_P, people_P = (share_PA * there_PA).sum(1), there_PA.sum(1)
        if arm != "BT, majority":
            return [row(pair, counts=[v, n - v]) for pair, v, n in zip(numbers_P2, votes_P, people_P, strict=True)]
        both = zip(numbers_P2, votes_P, people_P, strict=True)
        return [row(pair, rank=[1 + (v < n / 2), 1 + (v > n / 2)]) for pair, v, n in both]
    one_hot_PA2C = np.eye(categories)[picks_PA2] * there_PA[..., None, None]
    if arm.endswith("single"):
        return [
            row([n], counts=[pick])
            for pair, picks in zip(numbers_P2, one_hot_PA2C, strict=True)
            for k, n in enumerate(pair)
            for pick in picks[:, k]
            if pick.any()
        ]
    return [
        row([n], counts=[picks[:, k].sum(0)])
        for pair, picks in zip(numbers_P2, one_hot_PA2C, strict=True)
        for k, n in enumerate(pair)
    ]


Data = tuple[np.ndarray, np.ndarray]


def loss_of(arm: str, data: Data, worth: tuple[float, ...]) -> Callable[[Model], Tensor]:
    """The mean loss of the arm on these ratings, its targets computed once."""
    if arm.startswith("BT"):
        rows = rows_of(arm, *data, len(worth))
        pairs, numbers_S = pairs_of(rows), torch.tensor([int(ids[1]) for one in rows for ids in one.ids])

        def of_pairs(model: Model) -> Tensor:
            score_S = model.net(model.features_VD[numbers_S])[:, 0]
            loss_P = bradley_terry(score_S[pairs.first_P] - score_S[pairs.second_P], pairs.preferred_P)
            return (pairs.weight_P * loss_P).sum() / pairs.weight_P.sum()

        return of_pairs
    objective = DPRM(utilities=worth, loss_type=LOSSES[arm.split()[1]])  # type: ignore[arg-type]
    rows = rows_of(arm, *data, len(worth))
    target_SC = torch.from_numpy(np.concatenate([target_of(one, worth) for one in rows]))
    numbers_S = torch.tensor([int(one.ids[0][1]) for one in rows])
    return lambda model: objective.distance(model.net(model.features_VD[numbers_S]).log_softmax(-1), target_SC).mean()


def fitted(
    arm: str, features_VD: np.ndarray, train: Data, valid: Data, steps: int, seed: int, worth: tuple[float, ...] = WORTH
) -> Model:
    """The arm's model at its best step of its best learning rate, by its own validation loss."""
    train_loss, valid_loss = loss_of(arm, train, worth), loss_of(arm, valid, worth)
    best, kept = np.inf, {}
    for rate in RATES:
        model = Model(features_VD, 1 if arm.startswith("BT") else len(worth), seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            train_loss(model).backward()
            optimizer.step()
            if step % 5 == 0:
                with torch.no_grad():
                    found = float(valid_loss(model))
                if found < best:
                    best, kept = found, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return model


@torch.no_grad()
def measured(arm: str, model: Model, world: World, tests: np.ndarray) -> dict[str, float]:
    """What the model's reward does on responses that nobody rated."""
    out = model.net(model.features_VD[torch.from_numpy(tests)]).double()
    shares_NC = out.softmax(1).numpy()
    reward_N = out[:, 0].numpy() if arm.startswith("BT") else shares_NC @ np.array(WORTH)
    of_groups = world.worth_GV[:, tests]
    true_N = MAJORITY * of_groups[0] + (1 - MAJORITY) * of_groups[1]
    design = np.stack([of_groups[0], of_groups[1], np.ones(len(tests))], 1)
    a, b, _ = np.linalg.lstsq(design, reward_N, rcond=None)[0]
    groups = np.arange(len(tests) // 8 * 8).reshape(-1, 8)
    chosen = groups[np.arange(len(groups)), reward_N[groups].argmax(1)]
    found = {
        "majority's share": float(a / (a + b)),
        "regret": float(true_N[groups].max(1).mean() - true_N[chosen].mean()),
        "minority gets": float(of_groups[1][chosen].mean()),
    }
    if not arm.startswith("BT"):
        target_NC = world.mixture_VC[tests]
        found["worth error"] = float(np.abs(reward_N - true_N).mean())
        found["distance"] = float(np.abs((shares_NC - target_NC).cumsum(1)).sum(1).mean())
        found["log loss"] = float(-(target_NC * np.log(shares_NC + 1e-12)).sum(1).mean())
    return found


def run(out: Path, seeds: int, sizes: Sequence[int] = (40, 400), steps: int = 100, tests: int = 1600) -> str:
    """Every arm, size and seed; the tables."""
    kept = out / "results.json"
    results: dict[str, list[dict[str, float]]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for seed in range(seeds):
        for size in sizes:
            rng = np.random.default_rng([seed, size])
            world = new_world(rng, 2 * size + 200 + tests)
            train, valid = rated_pairs(world, rng, 0, size), rated_pairs(world, rng, 2 * size, 100)
            new = np.arange(2 * size + 200, 2 * size + 200 + tests)
            for arm in ARMS:
                done = results.setdefault(f"{size}|{arm}", [])
                if len(done) == seed:  # what an interrupted run has measured stays
                    done.append(measured(arm, fitted(arm, world.features_VD, train, valid, steps, seed), world, new))
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps(results, indent=1))
    return "\n\n".join(table(results, size) for size in sizes)


def table(results: dict[str, list[dict[str, float]]], size: int) -> str:
    """Mean and standard error per arm; the regret less that of BT on votes, paired by seed."""
    names = ("majority's share", "regret", "minority gets", "worth error", "distance", "log loss")
    lines = [
        f"{size} pairs",
        "",
        "| arm | " + " | ".join(names) + " | regret less BT's, votes |",
        "|---" * (len(names) + 2) + "|",
    ]
    base = np.array([one["regret"] for one in results[f"{size}|BT, votes"]])
    for arm in ARMS:
        found = results[f"{size}|{arm}"]
        cells = [said(np.array([one[name] for one in found])) if name in found[0] else "" for name in names]
        cells.append(said(np.array([one["regret"] for one in found]) - base))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def said(values: np.ndarray) -> str:
    """Mean +- standard error."""
    se = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.3f} ± {se:.3f}"


def rehearse(out: Path) -> None:
    """Two seeds, few pairs and steps."""
    assert "DPRM OT" in run(out, 2, (10,), 5, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("out/disagreement"))
    parser.add_argument("--seeds", type=int, default=20)
    words = parser.parse_args()
    print(run(words.out, words.seeds))


if __name__ == "__main__":
    main()
