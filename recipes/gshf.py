"""Pessimism offline, main and enhancer online: the theory's methods for preference learning where features are known and all is exact.

    python -m recipes.gshf --worlds 100

Xiong et al. (GSHF), 2312.11456. A linear bandit: 20 prompts, 20 actions, features phi(x, a) on the unit sphere of 5 dimensions, reward
<theta*, phi> with |theta*| = B, a uniform reference, J(pi) = E r - eta KL(pi || pi_0), labels by Bradley-Terry. The gap that is measured
is J(pi*) - J(pi).

    MLE        pi_0 exp(r / eta) / Z of the likeliest reward, |theta| at most B
    point-wise of r - beta ||phi - nu||_{Sigma^-1}                             algorithm 1, option II;  nu = E phi of who was compared
    expected   argmax E r - beta ||E phi - nu||_{Sigma^-1} - eta KL            algorithm 1, option I
    spread     of mean_m r_m - beta std_m r_m, r_m centred at nu, m = 1 ... 8 bootstrapped fits        `spread` in a sum of reward models

    Sigma = lambda I + sum over pairs of (phi_1 - phi_2)(phi_1 - phi_2)'

Online (algorithm 2), rounds of m labels on one response of each of two players, refitted on all pairs so far: main and main; main and
the reference; main and main at a higher temperature; both from the reference (no rounds needed); best against worst of 8 of main by the
fit; main and the paper's enhancer,
    argmax ||E phi(pi') - E phi(pi)||_{Sigma^-1} among pi' with eta KL(pi' || pi) <= width x that norm,
which is a tilted main policy: of all policies with the same mean features the tilted one has the least KL.

Worlds are shared by all arms: differences are paired. Cost: a few minutes of one core. Prints the tables of docs/recipes/gshf.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.out_of_preference import likeliest_reward, said

# W worlds, X prompts, A actions, D features, N pairs, M models, C directions.

PROMPTS, ACTIONS, WIDTH, BOUND, ETA, RIDGE = 20, 20, 5, 2.0, 0.1, 1.0
"""BOUND is B, RIDGE lambda."""
BETAS, SPREADS, MODELS = (0.3, 1.0, 3.0), (1.0, 2.0, 4.0), 8
"""Strengths of pessimism that are tried, of the norm and of the spread; bootstrapped fits."""


@dataclass(frozen=True)
class Worlds:
    """Many of them, side by side."""

    phi_WXAD: Tensor
    theta_WD: Tensor

    @staticmethod
    def drawn(count: int, seed: int = 0) -> Worlds:
        chance = torch.Generator().manual_seed(seed)
        phi, theta = (torch.randn(*shape, WIDTH, generator=chance, dtype=torch.float64) for shape in ((count, PROMPTS, ACTIONS), (count,)))
        return Worlds(phi / phi.norm(dim=-1, keepdim=True), BOUND * theta / theta.norm(dim=-1, keepdim=True))

    def reward(self, theta_WD: Tensor) -> Tensor:
        """<theta, phi> [W, X, A]."""
        return (self.phi_WXAD @ theta_WD[:, None, :, None]).squeeze(-1)

    def gap(self, logps_WXA: Tensor) -> np.ndarray:
        """J(pi*) - J(pi) [W]."""
        best, own = (value(self.reward(self.theta_WD), logps) for logps in (gibbs(self.reward(self.theta_WD)), logps_WXA))
        return (best - own).numpy()

    def mean_features(self, logps_WXA: Tensor) -> Tensor:
        """E phi [W, D]."""
        return torch.einsum("wxa,wxad->wd", logps_WXA.exp(), self.phi_WXAD) / self.phi_WXAD.shape[1]


def gibbs(reward_WXA: Tensor, eta: float = ETA) -> Tensor:
    """log of the best policy against a uniform reference."""
    return torch.log_softmax(reward_WXA / eta, -1)


def value(reward_WXA: Tensor, logps_WXA: Tensor) -> Tensor:
    """J [W]."""
    return (logps_WXA.exp() * (reward_WXA - ETA * (logps_WXA + math.log(logps_WXA.shape[-1])))).sum(-1).mean(-1)


def divergence(first_WXA: Tensor, second_WXA: Tensor) -> Tensor:
    """KL(first || second), mean over prompts [W]."""
    return (first_WXA.exp() * (first_WXA - second_WXA)).sum(-1).mean(-1)


# ---- data and fits


def compared(worlds: Worlds, first_WXA: Tensor, second_WXA: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """An action of each policy to so many random prompts: features of the preferred less those of the other [W, N, D]."""
    W, X, _, _ = worlds.phi_WXAD.shape
    asked_WN1 = torch.randint(X, (W, count), generator=chance)[..., None]

    def taken(logps_WXA: Tensor) -> Tensor:
        probs_WNA = logps_WXA.exp().gather(1, asked_WN1.expand(-1, -1, logps_WXA.shape[-1]))
        action_WN = torch.multinomial(probs_WNA.flatten(0, 1), 1, generator=chance).view(W, count)
        return worlds.phi_WXAD[torch.arange(W)[:, None], asked_WN1.squeeze(-1), action_WN]

    return labelled(worlds, taken(first_WXA) - taken(second_WXA), chance)


def labelled(worlds: Worlds, differences_WND: Tensor, chance: torch.Generator) -> Tensor:
    """Turned round where the second one wins, as Bradley and Terry draw it."""
    ahead_WN = (differences_WND @ worlds.theta_WD[..., None]).squeeze(-1)
    wins_WN = torch.rand(ahead_WN.shape, generator=chance, dtype=torch.float64) < torch.sigmoid(ahead_WN)
    return torch.where(wins_WN[..., None], differences_WND, -differences_WND)


def fitted(pairs_WND: Tensor) -> Tensor:
    """The likeliest theta [W, D], shortened to B."""
    theta_WD = likeliest_reward(pairs_WND, ridge=1e-2, iterations=25)
    return theta_WD * (BOUND / theta_WD.norm(dim=-1, keepdim=True)).clamp(max=1)


def covariance(pairs_WND: Tensor) -> Tensor:
    """Sigma [W, D, D]."""
    return RIDGE * torch.eye(WIDTH, dtype=torch.float64) + pairs_WND.transpose(1, 2) @ pairs_WND


# ---- offline


def pointwise(worlds: Worlds, nu_WD: Tensor, theta_WD: Tensor, sigma_WDD: Tensor, beta: float) -> Tensor:
    """Option II."""
    off_WXAD = worlds.phi_WXAD - nu_WD[:, None, None]
    norm_WXA = torch.einsum("wxad,wde,wxae->wxa", off_WXAD, sigma_WDD.inverse(), off_WXAD).sqrt()
    return gibbs(worlds.reward(theta_WD) - beta * norm_WXA)


def expected(worlds: Worlds, nu_WD: Tensor, theta_WD: Tensor, sigma_WDD: Tensor, beta: float, updates: int = 400) -> Tensor:
    """Option I: the best policy for the worst theta of the ellipsoid, since max over pi and min over theta may be exchanged.

    min over |u| <= 1 of eta log E_pi0 exp(<theta + beta Sigma^-1/2 u, phi - nu> / eta), convex in u: projected gradient descent.
    """
    root_WDD = torch.linalg.cholesky(sigma_WDD.inverse())
    off_WXAD = worlds.phi_WXAD - nu_WD[:, None, None]
    turned_WXAD = beta * torch.einsum("wxad,wde->wxae", off_WXAD, root_WDD)
    stride_W1 = ETA / turned_WXAD.square().sum(-1).amax((1, 2))[:, None]  # the curvature is at most its inverse
    u_WD, before_WD, start_WXA = torch.zeros_like(theta_WD), torch.zeros_like(theta_WD), worlds.reward(theta_WD)
    for step in range(updates):  # Nesterov's
        ahead_WD = u_WD + step / (step + 3) * (u_WD - before_WD)
        probs_WXA = gibbs(start_WXA + (turned_WXAD @ ahead_WD[:, None, :, None]).squeeze(-1)).exp()
        slope_WD = torch.einsum("wxa,wxad->wd", probs_WXA, turned_WXAD) / PROMPTS
        before_WD, u_WD = u_WD, ahead_WD - stride_W1 * slope_WD
        u_WD = u_WD / u_WD.norm(dim=-1, keepdim=True).clamp(min=1)
    return gibbs(start_WXA + (turned_WXAD @ u_WD[:, None, :, None]).squeeze(-1))


def spread(worlds: Worlds, nu_WD: Tensor, pairs_WND: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) [W, X, A] of bootstrapped rewards, each centred at nu."""
    W, N, D = pairs_WND.shape
    found = []
    for _ in range(MODELS):
        again_WND = pairs_WND.gather(1, torch.randint(N, (W, N), generator=chance)[..., None].expand(-1, -1, D))
        theta_WD = fitted(again_WND)
        found.append(worlds.reward(theta_WD) - (nu_WD * theta_WD).sum(-1)[:, None, None])
    rewards_MWXA = torch.stack(found)
    return rewards_MWXA.mean(0), rewards_MWXA.std(0, correction=0)


COVERAGES = ("all actions alike", "mostly good ones", "a random few", "mostly bad ones")


def behaviour(worlds: Worlds, coverage: str, chance: torch.Generator) -> Tensor:
    """log-probabilities of who answered when people compared: alike, or in proportion to exp(12 <w, phi>) for a direction w."""
    towards_WD = worlds.theta_WD / BOUND
    random_WD = torch.randn(towards_WD.shape, generator=chance, dtype=torch.float64)
    random_WD = random_WD / random_WD.norm(dim=-1, keepdim=True)
    which = (0 * towards_WD, towards_WD, random_WD, -towards_WD)[COVERAGES.index(coverage)]
    return torch.log_softmax(12 * worlds.reward(which), -1)


def offline(worlds: Worlds, coverage: str, labels: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Arm -> gap of each world."""
    chance = torch.Generator().manual_seed(seed)
    behaves = behaviour(worlds, coverage, chance)
    pairs = compared(worlds, behaves, behaves, labels, chance)
    theta, sigma, nu = fitted(pairs), covariance(pairs), worlds.mean_features(behaves)
    mean, deviation = spread(worlds, nu, pairs, chance)
    arms = {"MLE": gibbs(worlds.reward(theta))}
    arms |= {f"point-wise, beta {beta:g}": pointwise(worlds, nu, theta, sigma, beta) for beta in BETAS}
    arms |= {f"expected, beta {beta:g}": expected(worlds, nu, theta, sigma, beta) for beta in BETAS}
    arms |= {f"mean of {MODELS}, less {beta:g} spreads" if beta else f"mean of {MODELS}": gibbs(mean - beta * deviation)
             for beta in (0.0, *SPREADS)}  # fmt: skip
    middle = worlds.phi_WXAD.mean((1, 2))
    arms |= {f"expected, beta {beta:g}, nu of the reference": expected(worlds, middle, theta, sigma, beta) for beta in BETAS[1:]}
    arms["the reference"] = gibbs(0 * worlds.reward(theta))
    return {name: worlds.gap(logps) for name, logps in arms.items()}


# ---- online

Player = Callable[[Worlds, Tensor, Tensor], Tensor]
"""(worlds, log-probabilities of main, Sigma) -> its own."""


def enhancer(worlds: Worlds, main_WXA: Tensor, sigma_WDD: Tensor, width: float = 1.0, directions: int = 24) -> Tensor:
    """The tilt of main by the direction, of many, that is most uncertain relative to it, as far as the KL allows."""
    W, inverse_WDD = len(main_WXA), sigma_WDD.inverse()
    ways_WCD = torch.randn(W, directions, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    ways_WCD = torch.cat([torch.linalg.eigh(inverse_WDD)[1].transpose(1, 2), ways_WCD], 1)
    ways_WCD = torch.cat([ways_WCD, -ways_WCD], 1) / ways_WCD.norm(dim=-1, keepdim=True).repeat(1, 2, 1)
    start_WD = worlds.mean_features(main_WXA)
    best_W, best_WXA = torch.full((W,), -1.0, dtype=torch.float64), main_WXA
    for way_WD in ways_WCD.unbind(1):
        tilt_WXA = worlds.reward(way_WD)
        low_W, high_W = torch.zeros(W, dtype=torch.float64), torch.full((W,), 100.0, dtype=torch.float64)
        for _ in range(20):
            middle_W = (low_W + high_W) / 2
            logps_WXA = torch.log_softmax(main_WXA + middle_W[:, None, None] * tilt_WXA, -1)
            off_WD = worlds.mean_features(logps_WXA) - start_WD
            unsure_W = width * torch.einsum("wd,wde,we->w", off_WD, inverse_WDD, off_WD).sqrt()
            allowed_W = ETA * divergence(logps_WXA, main_WXA) <= unsure_W
            low_W, high_W = torch.where(allowed_W, middle_W, low_W), torch.where(allowed_W, high_W, middle_W)
        better_W = unsure_W > best_W
        best_W = torch.where(better_W, unsure_W, best_W)
        best_WXA = torch.where(better_W[:, None, None], logps_WXA, best_WXA)
    return best_WXA


def best_and_worst(worlds: Worlds, main_WXA: Tensor, theta_WD: Tensor, count: int, chance: torch.Generator, K: int = 8) -> Tensor:
    """Pairs as `compared` gives them, of the best and the worst by the fit of K draws of main."""
    W, X, _, _ = worlds.phi_WXAD.shape
    asked_WN = torch.randint(X, (W, count), generator=chance)
    probs_WNA = main_WXA.exp()[torch.arange(W)[:, None], asked_WN]
    drawn_WNK = torch.multinomial(probs_WNA.flatten(0, 1), K, replacement=True, generator=chance).view(W, count, K)
    phi_WNKD = worlds.phi_WXAD[torch.arange(W)[:, None, None], asked_WN[..., None], drawn_WNK]
    scores_WNK = (phi_WNKD @ theta_WD[:, None, :, None]).squeeze(-1)
    ends = [one[..., None, None].expand(-1, -1, 1, WIDTH) for one in (scores_WNK.argmax(-1), scores_WNK.argmin(-1))]
    best_WND, worst_WND = (phi_WNKD.gather(2, end).squeeze(2) for end in ends)
    return labelled(worlds, best_WND - worst_WND, chance)


def uniform(worlds: Worlds, main_WXA: Tensor, sigma_WDD: Tensor) -> Tensor:
    return gibbs(0 * main_WXA)


def itself(worlds: Worlds, main_WXA: Tensor, sigma_WDD: Tensor) -> Tensor:
    return main_WXA


def hot(worlds: Worlds, main_WXA: Tensor, sigma_WDD: Tensor) -> Tensor:
    return torch.log_softmax(main_WXA / 3, -1)


PLAYERS: Mapping[str, tuple[Player, Player]] = {
    "main and main": (itself, itself),
    "main and the reference": (itself, uniform),
    "main and main at temperature 3": (itself, hot),
    "main and the paper's enhancer": (itself, enhancer),
    "both from the reference": (uniform, uniform),
}
BEST_AND_WORST = "best and worst of 8 of main"


def online(worlds: Worlds, rounds: int, labels: int, at: Sequence[int], seed: int = 2) -> dict[str, dict[int, np.ndarray]]:
    """Arm -> labels so far -> gap of main in each world. The first round is the reference's, the same for all arms."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for name in (*PLAYERS, BEST_AND_WORST):
        chance = torch.Generator().manual_seed(seed)
        start = uniform(worlds, worlds.phi_WXAD[..., 0], worlds.theta_WD)
        pairs, found[name] = compared(worlds, start, start, labels, chance), {}
        for number in range(1, rounds + 1):
            theta, sigma = fitted(pairs), covariance(pairs)
            main = gibbs(worlds.reward(theta))
            if number * labels in at:
                found[name][number * labels] = worlds.gap(main)
            if name == BEST_AND_WORST:
                more = best_and_worst(worlds, main, theta, labels, chance)
            else:
                first, second = (player(worlds, main, sigma) for player in PLAYERS[name])
                more = compared(worlds, first, second, labels, chance)
            pairs = torch.cat([pairs, more], 1)
    return found


# ---- tables


def table(cells: Mapping[str, Mapping[str, np.ndarray]], base: str) -> str:
    """A column per cell: the gap of the base, and how much smaller that of each other arm is, paired."""
    lines = [f"| | {' | '.join(cells)} |", "|---" * (len(cells) + 1) + "|"]
    lines.append(f"| gap of {base} | {' | '.join(said(found[base]) for found in cells.values())} |")
    for name in next(iter(cells.values())):
        if name != base:
            lines.append(f"| less with: {name} | {' | '.join(said(found[base] - found[name]) for found in cells.values())} |")
    return "\n".join(lines)


def run(count: int, labels: Sequence[int] = (30, 300), rounds: int = 20, per_round: int = 10) -> str:
    """All tables."""
    worlds, parts = Worlds.drawn(count), []
    for many in labels:
        found = {coverage: offline(worlds, coverage, many) for coverage in COVERAGES}
        parts.append(f"**offline, {many} labels**\n\n{table(found, 'MLE')}")
    at = sorted({2 * per_round, rounds // 4 * per_round, rounds // 2 * per_round, rounds * per_round} - {0})
    arms = online(worlds, rounds, per_round, at)
    found = {f"{many} labels": {name: gaps[many] for name, gaps in arms.items()} for many in at}
    return "\n\n".join([*parts, f"**online**\n\n{table(found, 'main and main')}"])


def rehearse(folder: Path) -> None:
    """Three worlds, few labels."""
    text = run(3, labels=(12,), rounds=4, per_round=4)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    assert text.count("gap of MLE") == 1 and text.count("gap of main and main") == 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(run(args.worlds))


if __name__ == "__main__":
    main()
