"""What each objective is least at, found without the code that is tested: formulas as their papers print them, float64, L-BFGS.

    python -m recipes.oracle_optima --seed 0        prints how far each objective's own optimum is from pi*

    minimum(world, loss)       loss(log pi [P, V]) -> scalar, minimised over all policies
    Pairs                      every pair that the data hold, with its probability of preference and its weight

The policies are softmaxes of one logit per response: no prefixes, no tokens, no layout. Losses with a mean over tokens get the
lengths. Formulas: methods' papers, named beside each.

Legend: P prompts, V responses, M pairs.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from recipes.oracle_world import World, make_world
from trueline.evals.oracle import gibbs, total_variation
from trueline.records import Row

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a data set, by prompt and response number."""

    prompt_M: Tensor
    first_M: Tensor
    second_M: Tensor
    preferred_M: Tensor
    """Probability that the first is preferred."""
    weight_M: Tensor
    """Sums to 1."""

    def of(self, values_PV: Tensor) -> tuple[Tensor, Tensor]:
        """The values of the first and of the second of each pair."""
        return values_PV[self.prompt_M, self.first_M], values_PV[self.prompt_M, self.second_M]


def pairs_in(world: World, rows: Sequence[Row]) -> Pairs:
    """Pairs of stored rows: exact counts over K responses, or a chosen and a rejected one."""
    found: dict[tuple[int, int, int], list[float]] = {}
    for row in rows:
        (p, *_), numbers = zip(*(world.number(ids) for ids in row.ids), strict=True)
        several = list(itertools.combinations(range(len(numbers)), 2))
        weight = float(row.numbers["weight"][0]) if "weight" in row.numbers else 1.0
        for i, j in several:
            counts = row.numbers.get("counts")
            share = 1.0 if counts is None else float(counts[i]) / float(counts[i] + counts[j])
            a, b, share = (i, j, share) if numbers[i] < numbers[j] else (j, i, 1 - share)
            sums = found.setdefault((p, numbers[a], numbers[b]), [0.0, 0.0])
            sums[0] += weight * share / len(several)
            sums[1] += weight / len(several)
    places = torch.tensor(list(found)).T
    wins_M, weight_M = torch.tensor(list(found.values()), dtype=torch.float64).T
    return Pairs(places[0], places[1], places[2], wins_M / weight_M, weight_M / weight_M.sum())


def minimum(world: World, loss: Loss, start_PV: np.ndarray | None = None, iterations: int = 200) -> np.ndarray:
    """The policy [P, V] that minimises it, from the reference (or another policy) on."""
    start_PV = world.reference_PV if start_PV is None else start_PV
    logits_PV = torch.from_numpy(np.log(start_PV.clip(1e-300))).requires_grad_()
    optimizer = torch.optim.LBFGS([logits_PV], max_iter=iterations, history_size=50, tolerance_grad=1e-9,
                                  tolerance_change=1e-12, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(torch.log_softmax(logits_PV, 1))
        value.backward()
        return value

    optimizer.step(closure)
    return torch.softmax(logits_PV.detach(), 1).numpy()


def least_of_kinked(world: World, loss_of: Callable[[float], Loss]) -> np.ndarray:
    """The minimum of a loss with kinks, through smooth ones that approach it; where many policies are best, one of them."""
    policy_PV = world.reference_PV
    for sharpness in (10.0, 50.0, 250.0, 1000.0):
        policy_PV = minimum(world, loss_of(sharpness), policy_PV)
    return policy_PV


def value(loss: Loss, policy_PV: np.ndarray) -> float:
    """The loss of a policy."""
    with torch.no_grad():
        return float(loss(torch.from_numpy(np.log(policy_PV.clip(1e-300)))))


def ratios(world: World, logps_PV: Tensor) -> Tensor:
    """log pi - log pi_ref."""
    return logps_PV - torch.from_numpy(np.log(world.reference_PV))


def weighted(pairs: Pairs, h_M: Tensor, least: Callable[[Tensor], Tensor], label_M: Tensor | None = None) -> Tensor:
    """sum w [ p l(h) + (1 - p) l(-h) ]."""
    p_M = pairs.preferred_M if label_M is None else label_M
    return (pairs.weight_M * (p_M * least(h_M) + (1 - p_M) * least(-h_M))).sum()


def margins(world: World, pairs: Pairs, logps_PV: Tensor) -> Tensor:
    """h of each pair (2305.18290, equation 7, without beta)."""
    first_M, second_M = pairs.of(ratios(world, logps_PV))
    return first_M - second_M


def dpo(world: World, pairs: Pairs, beta: float) -> Loss:
    """2305.18290, equation 7: -log sigmoid(beta h)."""
    return lambda logps_PV: weighted(pairs, margins(world, pairs, logps_PV), lambda h: -logsigmoid(beta * h))


def cdpo(world: World, pairs: Pairs, beta: float, e: float) -> Loss:
    """Mitchell 2023: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h) for a pair whose first is chosen."""

    def least(h_M: Tensor) -> Tensor:
        return -(1 - e) * logsigmoid(beta * h_M) - e * logsigmoid(-beta * h_M)

    return lambda logps_PV: weighted(pairs, margins(world, pairs, logps_PV), least)


def robust(world: World, pairs: Pairs, beta: float, e: float) -> Loss:
    """2403.00409: [ -(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h) ] / (1 - 2 e)."""

    def least(h_M: Tensor) -> Tensor:
        return (-(1 - e) * logsigmoid(beta * h_M) + e * logsigmoid(-beta * h_M)) / (1 - 2 * e)

    return lambda logps_PV: weighted(pairs, margins(world, pairs, logps_PV), least)


def ipo(world: World, pairs: Pairs, beta: float) -> Loss:
    """2310.12036, equation 17: (h - 1 / (2 tau))^2, tau = beta."""
    return lambda logps_PV: weighted(pairs, margins(world, pairs, logps_PV), lambda h: (h - 0.5 / beta) ** 2)


def hinge(world: World, pairs: Pairs, beta: float, sharpness: float = math.inf) -> Loss:
    """2309.06657: max(0, 1 - beta h); a finite sharpness s rounds its corner, softplus(s x) / s."""

    def least(h_M: Tensor) -> Tensor:
        short_M = 1 - beta * h_M
        return torch.relu(short_M) if math.isinf(sharpness) else softplus(sharpness * short_M) / sharpness

    return lambda logps_PV: weighted(pairs, margins(world, pairs, logps_PV), least)


def simpo(world: World, pairs: Pairs, beta: float, gamma: float) -> Loss:
    """2405.14734, equation 6: -log sigmoid(beta / |y_w| log pi(y_w) - beta / |y_l| log pi(y_l) - gamma)."""

    def loss(logps_PV: Tensor) -> Tensor:
        first_M, second_M = pairs.of(logps_PV / torch.from_numpy(world.lengths_V))
        return weighted(pairs, beta * (first_M - second_M), lambda d: -logsigmoid(d - gamma))

    return loss


def orpo(world: World, pairs: Pairs, weight: float) -> Loss:
    """2403.07691, equations 3 to 7: -log P(y_w) - lambda log sigmoid(log odds(y_w) - log odds(y_l)), P a mean over tokens."""

    def loss(logps_PV: Tensor) -> Tensor:
        mean_PV = logps_PV / torch.from_numpy(world.lengths_V)
        odds_PV = mean_PV - torch.log1p(-mean_PV.exp())
        (mean_1, mean_2), (odds_1, odds_2) = pairs.of(mean_PV), pairs.of(odds_PV)
        p_M, ahead_M = pairs.preferred_M, odds_1 - odds_2
        imitation_M = -p_M * mean_1 - (1 - p_M) * mean_2
        contrast_M = -p_M * logsigmoid(ahead_M) - (1 - p_M) * logsigmoid(-ahead_M)
        return (pairs.weight_M * (imitation_M + weight * contrast_M)).sum()

    return loss


def kto(world: World, rows: Sequence[Row], beta: float) -> np.ndarray:
    """2402.01306, equations 7 and 8: where the gradient vanishes with z0, held fixed in it, equal to the mean over the rows
    of log pi / pi_ref of the response to another prompt that the row brings. Found by turns."""
    own = torch.tensor([world.number(row.ids[0]) for row in rows]).T
    foreign = torch.tensor([world.number(row.ids[1]) for row in rows]).T
    wanted = torch.tensor([float(row.numbers["label"][0]) for row in rows], dtype=torch.float64)
    policy_PV, z0 = world.reference_PV, 0.0

    def loss(logps_PV: Tensor, z0: float) -> Tensor:
        gain = torch.sigmoid(beta * (ratios(world, logps_PV)[own[0], own[1]] - z0))
        return (wanted * (1 - gain) + (1 - wanted) * gain).mean()

    for _ in range(20):
        policy_PV = minimum(world, partial(loss, z0=z0), policy_PV)
        z0 = max(
            0.0, float(ratios(world, torch.from_numpy(np.log(policy_PV.clip(1e-300))))[foreign[0], foreign[1]].mean())
        )
    return policy_PV


def k_terms(d: Tensor, estimator: str) -> Tensor:
    """Schulman's estimators of d = log pi - log ref of a drawn token."""
    return {"k1": d, "k2": d.square() / 2, "k3": torch.expm1(-d) + d}[estimator]


Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log pi of every token [P, V, L], the same less log ref, pi of every response [P, V] without gradient) -> [P, V]."""


def followed(world: World, earned: Field, steps: int = 600) -> np.ndarray:
    """Where sum_y pi(y) grad earned(y) vanishes, pi(y) held fixed: the expected gradient of a loss on drawn responses, which is
    the gradient of no function, as the draws carry none. Followed with Adam over the table of logits until it is 0."""
    states, tokens, mask = (torch.from_numpy(x) for x in world.paths)
    logits = torch.from_numpy(world.reference_logits_VA.copy()).requires_grad_()
    reference_PVL = torch.log_softmax(logits.detach(), 1)[states, tokens] * mask
    optimizer = torch.optim.Adam([logits])
    for step in range(steps):
        logps_PVL = torch.log_softmax(logits, 1)[states, tokens] * mask
        probs_PV = logps_PVL.detach().sum(2).exp()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        (-probs_PV * earned(logps_PVL, logps_PVL - reference_PVL, probs_PV)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return (torch.log_softmax(logits, 1)[states, tokens] * mask).sum(2).exp().numpy()


def group_relative(
    world: World, beta: float, *, estimator: str, scale: bool = False, per_token: bool = False, draws: int = 32
) -> np.ndarray:
    """GRPO (2402.03300, equations 3 and 4), the KL a loss on drawn tokens: A(y) log pi(y) - beta sum_t k(t), with the advantage of
    infinitely many draws but for the share of a response in its own group's mean. `scale` divides by the standard deviation;
    `per_token` weighs a response's tokens by 1 / length."""
    reward_PV, lengths_V = torch.from_numpy(world.reward_PV), torch.from_numpy(world.lengths_V)

    def earned(logps_PVL: Tensor, d_PVL: Tensor, probs_PV: Tensor) -> Tensor:
        centred_PV = reward_PV - (probs_PV * reward_PV).sum(1, keepdim=True)
        spread = (probs_PV * centred_PV.square()).sum(1, keepdim=True).sqrt() if scale else torch.ones(())
        advantage_PV = (1 - 1 / draws) * centred_PV / spread
        earned_PV = advantage_PV * logps_PVL.sum(2) - beta * k_terms(d_PVL, estimator).sum(2)
        return earned_PV / lengths_V if per_token else earned_PV

    return followed(world, earned)


def penalised_reward(world: World, beta: float, *, estimator: str) -> np.ndarray:
    """REINFORCE on R(y) = r(y) - beta sum_t k(t), a number without gradient: R is the same for all responses in the end. With k1
    that is pi*; k2 and k3 depend on the policy, and what they change by is left out of the gradient."""
    reward_PV = torch.from_numpy(world.reward_PV)

    def earned(logps_PVL: Tensor, d_PVL: Tensor, probs_PV: Tensor) -> Tensor:
        penalised_PV = reward_PV - beta * k_terms(d_PVL.detach(), estimator).sum(2)
        return (penalised_PV - (probs_PV * penalised_PV).sum(1, keepdim=True)) * logps_PVL.sum(2)

    return followed(world, earned)


def tilted_by_state(world: World, beta: float) -> np.ndarray:
    """Closed form of the same for k2, no scale, infinitely many draws: pi(t | s) proportional to ref(t | s) exp(Q(s, t) / beta).

    Q is the expected reward after s and t under pi itself, where pi* has the soft value beta log sum ref exp: the KL of tokens to
    come counts for nothing in the choice of this one. With one token per response the two are the same.
    """
    states, tokens, mask = world.paths
    logits_VA = world.reference_logits_VA
    logps_VA = logits_VA - np.logaddexp.reduce(logits_VA, 1, keepdims=True)
    policy_VA, worth = np.zeros_like(logps_VA), dict[int, float]()
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for p, v in np.ndindex(world.reward_PV.shape):
        for place in range(len(world.responses[v])):
            after.setdefault((int(states[p, v, place]), int(tokens[v, place])), []).append((p, v))
    for state in sorted({state for state, _ in after}, reverse=True):  # longer prefixes have larger numbers
        q_A = np.zeros(world.letters + 1)
        for token in range(world.letters + 1):
            p, v = after[state, token][0]
            place = int(np.flatnonzero(states[p, v] == state)[0])
            ends = place + 1 == len(world.responses[v])
            q_A[token] = world.reward_PV[p, v] if ends else worth[int(states[p, v, place + 1])]
        tilted_A = logps_VA[state] + q_A / beta
        policy_VA[state] = tilted_A - np.logaddexp.reduce(tilted_A)
        worth[state] = float(np.exp(policy_VA[state]) @ q_A)
    return np.exp((policy_VA[states, tokens] * mask).sum(2))


def empirical(world: World, rows: Sequence[Row]) -> np.ndarray:
    """Where the likelihood of whole responses is largest: their shares in the data (each prompt by itself)."""
    counts_PV = np.zeros_like(world.reference_PV)
    for row in rows:
        for ids in row.ids:
            counts_PV[world.number(ids)] += 1
    return counts_PV / counts_PV.sum(1, keepdims=True)


def run(seed: int, beta: float = 0.5) -> str:
    """Each objective's own optimum under exact preferences, all pairs equally often."""
    world = make_world(seed=seed)
    everything = range(len(world.responses))
    rows = [world.row(p, everything, counts=np.exp(r)) for p, r in enumerate(world.reward_PV)]
    pairs = pairs_in(world, rows)
    best_PV = gibbs(world.reference_PV, world.reward_PV, beta)
    found = {
        "dpo": minimum(world, dpo(world, pairs, beta)),
        "dpo, label smoothing 0.1": minimum(world, cdpo(world, pairs, beta, 0.1)),
        "dpo, robust 0.1": minimum(world, robust(world, pairs, beta, 0.1)),
        "dpo, ipo": minimum(world, ipo(world, pairs, beta)),
        "dpo, hinge": least_of_kinked(world, partial(hinge, world, pairs, beta)),
        "simpo": minimum(world, simpo(world, pairs, 2.0, 1.0)),
        "orpo": minimum(world, orpo(world, pairs, 0.1)),
    }
    lines = ["| objective | total variation of its optimum to pi* |", "|---|---|"]
    lines += [f"| {name} | {total_variation(p, best_PV):.4f} |" for name, p in found.items()]
    return "\n".join(lines)


def rehearse(folder: Path) -> None:
    """One seed."""
    assert "| dpo |" in run(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    print(run(args.seed, args.beta))


if __name__ == "__main__":
    main()
