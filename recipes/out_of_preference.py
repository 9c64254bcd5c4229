"""Does it help to use a reward model on prompts that nobody compared? The bandits of Li, Xu and Yu, with equal numbers of updates.

    python -m recipes.out_of_preference --worlds 100

Policy optimization in RLHF: the impact of out-of-preference data, 2312.10584. n states with one comparison each, m without:

    DPO       the pair loss on the n comparisons
    RMB-PO    rhat fitted to the n comparisons; then max E_a~pi [ rhat - beta log(pi / uniform) ] on the same n states
    RMB-PO+   the same, on the n states and the m others

E_a is the exact sum over the actions, so the arms differ by their data and their updates alone. Gap: E[max r*] - E_a~pi [r*] on fresh
states; lower is better. Every world (a drawn reward, states, comparisons, start of the networks) is shared by all arms: differences
are paired. The worlds are computed side by side, as one batch of networks.

    linear   s in [0, 1], 4 actions, features of the policy swapped against the reward's; n = 20, m = 10
    neural   s in [-1, 1]^50, 10 actions, n = 50; the true reward is a sum of a state's and an action's part
    joint    the same with a true reward of standard deviation 1.6 that is no such sum, s in [-1, 1]^10, n = 200, beta = 0.05

In the neural world the best action is one for all states, as in the authors' code. That code feeds DPO probabilities for
log-probabilities; here it has log-probabilities.

Cost: 3 minutes on one core for 100 worlds. Prints the tables of docs/recipes/out_of_preference.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

# W worlds, N states, A actions, D features.


# ---- what all arms share


def policy_objective(logps_NA: Tensor, reward_NA: Tensor, beta: float, reference_NA: Tensor | None = None) -> Tensor:
    """E_a~pi [ r - beta log(pi / pi_ref) ] of each state [N], exact over the listed actions; a uniform reference by default."""
    reference = -math.log(logps_NA.shape[-1]) if reference_NA is None else reference_NA
    return (logps_NA.exp() * (reward_NA - beta * (logps_NA - reference))).sum(-1)


def pair_loss(logps_NA: Tensor, pairs_N2: Tensor, beta: float) -> Tensor:
    """DPO's sigmoid loss of each comparison [N], the preferred action first; a uniform reference cancels."""
    chosen, rejected = logps_NA.gather(-1, pairs_N2).unbind(-1)
    return softplus(-beta * (chosen - rejected))


def gap(logps_NA: Tensor, reward_NA: Tensor) -> np.ndarray:
    """E[max r] - E_a~pi [r] of each world [W]."""
    return (reward_NA.max(-1).values - (logps_NA.exp() * reward_NA).sum(-1)).mean(-1).detach().numpy()


def compared(reward_WNA: Tensor, chance: torch.Generator) -> Tensor:
    """Two different actions of every state [W, N, 2], drawn, the preferred one first as Bradley and Terry say."""
    noise = torch.rand(reward_WNA.shape, generator=chance)
    first, second = noise.argsort(-1)[..., :2].unbind(-1)
    r1, r2 = (reward_WNA.gather(-1, a[..., None]).squeeze(-1) for a in (first, second))
    wins = torch.rand(r1.shape, generator=chance) < torch.sigmoid(r1 - r2)
    return torch.stack([torch.where(wins, first, second), torch.where(wins, second, first)], -1)


# ---- the linear bandit


def features(states_WN: Tensor, swapped: bool) -> Tensor:
    """phi(s, a) [W, N, 4, 2]."""
    places = torch.arange(1, 5, dtype=states_WN.dtype)
    cos, sin = torch.cos(math.pi * states_WN)[..., None], torch.sin(math.pi * states_WN)[..., None]
    if swapped:
        cos, sin = sin, cos
    return torch.stack([places * cos, sin / places], -1)


def ascend(value: Callable[[Tensor], Tensor], start_WD: Tensor, updates: int) -> Tensor:
    """Gradient ascent with a step of 1 / sqrt(sum of squared gradient norms), each world with its own."""
    theta_WD, total_W1 = start_WD.clone(), torch.zeros(len(start_WD), 1, dtype=start_WD.dtype)
    for _ in range(updates):
        theta_WD.requires_grad_(True)
        (slope_WD,) = torch.autograd.grad(value(theta_WD).sum(), theta_WD)
        total_W1 = total_W1 + (slope_WD**2).sum(-1, keepdim=True)
        theta_WD = (theta_WD + slope_WD / total_W1.clamp(min=1e-30).sqrt()).detach()
    return theta_WD


def likeliest_reward(differences_WND: Tensor, ridge: float = 1e-3, iterations: int = 60) -> Tensor:
    """Bradley-Terry's theta [W, D] by Newton's method, preferred minus other; the ridge keeps separable data finite."""
    theta_WD = torch.zeros(differences_WND.shape[0], differences_WND.shape[2], dtype=differences_WND.dtype)
    eye = ridge * torch.eye(theta_WD.shape[1], dtype=theta_WD.dtype)
    for _ in range(iterations):
        p_WN = torch.sigmoid((differences_WND @ theta_WD[..., None]).squeeze(-1))
        slope_WD = ((1 - p_WN)[..., None] * differences_WND).sum(1) - ridge * theta_WD
        bend = torch.einsum("wn,wni,wnj->wij", p_WN * (1 - p_WN), differences_WND, differences_WND) + eye
        step_WD = torch.linalg.solve(bend, slope_WD)
        theta_WD = theta_WD + step_WD / (1 + step_WD.norm(dim=-1, keepdim=True) / 5)  # at most 5 at a time
    return theta_WD


def linear(
    worlds: int, updates: int, n: int = 20, m: int = 10, beta: float = 0.01, swapped: bool = True
) -> dict[str, np.ndarray]:
    """Arm -> gap of each world."""
    chance, true = torch.Generator().manual_seed(2021), torch.tensor([1.0, 2.0], dtype=torch.float64)
    states = torch.rand(worlds, n + m, generator=chance, dtype=torch.float64)
    others = torch.rand(worlds, 1000, generator=chance, dtype=torch.float64)
    fresh = ((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)[None]
    start = torch.rand(worlds, 2, generator=chance, dtype=torch.float64)
    pairs = compared((features(states[:, :n], False) @ true).float(), chance)

    def taken(phi: Tensor) -> Tensor:
        chosen, rejected = phi.gather(2, pairs[..., None].expand(-1, -1, -1, 2)).unbind(2)
        return chosen - rejected

    rhat = likeliest_reward(taken(features(states[:, :n], False)))[:, None, :, None]
    final = features(fresh, swapped)
    reward = features(fresh, False) @ true

    def logps(phi: Tensor, theta: Tensor) -> Tensor:
        return torch.log_softmax((phi @ theta[:, None, :, None]).squeeze(-1), -1)

    def ended(theta: Tensor) -> np.ndarray:
        return gap(logps(final, theta), reward.expand(worlds, -1, -1))

    def rmb(on: Tensor, updates: int) -> np.ndarray:
        phi, learned = features(on, swapped), (features(on, False) @ rhat).squeeze(-1)
        return ended(ascend(lambda theta: policy_objective(logps(phi, theta), learned, beta).mean(-1), start, updates))

    def dpo(updates: int) -> np.ndarray:
        differences = taken(features(states[:, :n], swapped))

        def value(theta: Tensor) -> Tensor:
            return -softplus(-beta * (differences @ theta[..., None]).squeeze(-1)).mean(-1)

        return ended(ascend(value, start, updates))

    greedy = (features(fresh, False) @ rhat).squeeze(-1)
    best = torch.full_like(greedy, -torch.inf).scatter(-1, greedy.argmax(-1, keepdim=True), 0.0)
    return {
        f"DPO, {updates // 5} updates": dpo(updates // 5),
        f"DPO, {updates} updates": dpo(updates),
        f"DPO, {20 * updates} updates": dpo(20 * updates),
        f"RMB-PO, {updates} updates": rmb(states[:, :n], updates),
        f"RMB-PO+ (m = {m}), {updates} updates": rmb(states, updates),
        f"RMB-PO+ (m = 1000), {updates} updates": rmb(torch.cat([states[:, :n], others], 1), updates),
        "the best action by rhat": gap(best, reward.expand(worlds, -1, -1)),
        "uniform": gap(torch.full_like(greedy, -math.log(4)), reward.expand(worlds, -1, -1)),
    }


# ---- the neural bandits


def layers(worlds: int, sizes: Sequence[int], chance: torch.Generator) -> list[Tensor]:
    """Weights [W, in, out] and biases [W, 1, out], as torch starts a Linear."""
    found = []
    for wide, narrow in itertools.pairwise(sizes):
        bound = 1 / math.sqrt(wide)
        found += [(torch.rand(worlds, rows, narrow, generator=chance) * 2 - 1) * bound for rows in (wide, 1)]
    return found


def through(
    x_WND: Tensor, parameters: Sequence[Tensor], bend: Callable[[Tensor], Tensor], last: bool = False
) -> Tensor:
    """The network's outputs; `last` bends those, too."""
    for place in range(0, len(parameters), 2):
        x_WND = torch.baddbmm(parameters[place + 1], x_WND, parameters[place])
        if last or place + 2 < len(parameters):
            x_WND = bend(x_WND)
    return x_WND


@dataclass(frozen=True)
class Scores:
    """A reward of state and action: their parts side by side, or what a network makes of both together."""

    parts: Sequence[Sequence[Tensor]]
    bend: Callable[[Tensor], Tensor]
    joint: bool
    actions: int

    def __call__(self, states_WND: Tensor) -> Tensor:
        """[W, N, A]."""
        W, N, _ = states_WND.shape
        actions = one_hot(torch.arange(self.actions), self.actions).float()[None]
        if self.joint:
            both = torch.cat(
                [states_WND[:, :, None].expand(-1, -1, self.actions, -1), actions[:, None].expand(W, N, -1, -1)], -1
            )
            return through(both.reshape(W, N * self.actions, -1), self.parts[0], self.bend).view(W, N, self.actions)
        of_state = through(states_WND, self.parts[0], self.bend, last=True)
        of_action = through(actions.expand(W, -1, -1), self.parts[1], self.bend, last=True)
        head, bias = self.parts[2]
        wide = of_state.shape[-1]
        return (of_state @ head[:, :wide]) + (of_action @ head[:, wide:]).transpose(1, 2) + bias

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for part in self.parts for parameter in part]


def scores(
    worlds: int,
    width: int,
    actions: int,
    joint: bool,
    hidden: int,
    bend: Callable[[Tensor], Tensor],
    chance: torch.Generator,
) -> Scores:
    """A reward network with `hidden` layers of 64."""
    inner = [64] * hidden
    if joint:
        return Scores([layers(worlds, [width + actions, *inner, 1], chance)], bend, True, actions)
    parts = [layers(worlds, [size, *inner], chance) for size in (width, actions)]
    return Scores([*parts, layers(worlds, [128, 1], chance)], bend, False, actions)


def learn(loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], rows: int, updates: int, seed: int) -> None:
    """AdamW 1e-3 on minibatches of 64 of so many rows; `loss` of row numbers [B] is a sum over worlds."""
    chance = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, done = torch.optim.AdamW(parameters, lr=1e-3), 0
    while done < updates:
        for batch in torch.randperm(rows, generator=chance).split(64):
            if done == updates:
                return
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            done += 1


def neural(
    worlds: int, epochs: int, ratios: Sequence[float], n: int = 50, width: int = 50, actions: int = 10, beta: float = 0.01,
    joint: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Arm -> gap of each world."""
    chance, most = torch.Generator().manual_seed(2021), round(max(ratios) * n)
    states, fresh = (torch.rand(worlds, size, width, generator=chance) * 2 - 1 for size in (n + most, 1000))
    true = scores(worlds, width, actions, joint, 1, torch.tanh, chance)

    if joint:
        true.parameters[0].mul_(8)  # far enough into the tanh that state and action do not simply add up
    plain = true(fresh)
    level, spread = (one.view(-1, 1, 1) for one in (plain.mean((1, 2)), plain.std((1, 2))))

    def signed(states_WND: Tensor) -> Tensor:
        reward = true(states_WND)
        return 1.6 * (reward - level) / spread if joint else reward + reward.sign()

    pairs = compared(signed(states[:, :n]), chance)
    rhat = scores(worlds, width, actions, joint, 2, torch.relu, chance)

    def misfit(batch: Tensor) -> Tensor:
        return pair_loss(rhat(states[:, batch]), pairs[:, batch], 1.0).mean(-1).sum()

    learn(misfit, rhat.parameters, n, 20 * -(-n // 64), seed=1)
    start = layers(worlds, [width, 64, 64, actions], chance)
    with torch.no_grad():
        learned, truth, guessed = rhat(states), signed(fresh), rhat(fresh)

    def ended(value: Callable[[Tensor, Tensor], Tensor], rows: int, updates: int) -> np.ndarray:
        policy = [parameter.clone() for parameter in start]
        learn(
            lambda batch: -value(torch.log_softmax(through(states[:, batch], policy, torch.relu), -1), batch).mean(-1).sum(),
            policy, rows, updates, seed=2,
        )  # fmt: skip
        with torch.no_grad():
            return gap(torch.log_softmax(through(fresh, policy, torch.relu), -1), truth)

    def dpo(logps: Tensor, batch: Tensor) -> Tensor:
        return -pair_loss(logps, pairs[:, batch], beta)

    def rmb(logps: Tensor, batch: Tensor) -> Tensor:
        return policy_objective(logps, learned[:, batch], beta)

    def passes(rows: int) -> int:
        return epochs * -(-rows // 64)

    sizes = [n + round(ratio * n) for ratio in ratios]
    equal = passes(max(sizes))
    found = {"DPO": ended(dpo, n, passes(n)), "RMB-PO": ended(rmb, n, passes(n))}
    found |= {f"RMB-PO+ (m = {size - n})": ended(rmb, size, passes(size)) for size in sizes}
    found = {
        f"{arm}, {updates} updates": gaps
        for (arm, gaps), updates in zip(found.items(), map(passes, [n, n, *sizes]), strict=True)
    }
    found |= {f"DPO, {equal} updates": ended(dpo, n, equal), f"RMB-PO, {equal} updates": ended(rmb, n, equal)}
    best = torch.full_like(guessed, -torch.inf).scatter(-1, guessed.argmax(-1, keepdim=True), 0.0)
    usual = truth.argmax(-1).mode(-1).values
    found["the one action that is best most often"] = gap(
        torch.full_like(truth, -torch.inf).scatter(-1, usual[:, None, None].expand(-1, truth.shape[1], 1), 0.0), truth
    )
    return found | {
        "the best action by rhat": gap(best, truth),
        "uniform": gap(torch.full_like(guessed, -math.log(actions)), truth),
    }


# ---- the table


def said(values: np.ndarray) -> str:
    """Mean and standard error over worlds."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def table(found: Mapping[str, np.ndarray]) -> str:
    """Gap of each arm, and what it is below the first RMB-PO arm, paired."""
    base = next(name for name in found if name.startswith("RMB-PO,"))
    lines = [f"| arm | gap | less than {base} |", "|---|---|---|"]
    lines += [
        f"| {name} | {said(gaps)} | {'' if name == base else said(found[base] - gaps)} |"
        for name, gaps in found.items()
    ]
    return "\n".join(lines)


def run(worlds: int, updates: int = 1000, epochs: int = 50) -> str:
    """All three worlds."""
    parts = {
        "linear, features swapped": linear(worlds, updates),
        "linear, features matched": linear(worlds, updates, swapped=False),
        "neural": neural(worlds, epochs, [0.5, 2, 5, 10]),
        "joint": neural(max(2, worlds // 5), epochs, [10], n=200, width=10, beta=0.05, joint=True),
    }
    counted = ((name, found, len(next(iter(found.values())))) for name, found in parts.items())
    return "\n\n".join(f"**{name}**, {count} worlds\n\n{table(found)}" for name, found, count in counted)


def rehearse(folder: Path) -> None:
    """Three worlds, two updates."""
    text = run(3, updates=10, epochs=1)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    assert text.count("| uniform |") == 4


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--updates", type=int, default=1000, help="of the linear policies")
    parser.add_argument("--epochs", type=int, default=50, help="of the neural policies")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(run(args.worlds, args.updates, args.epochs))


if __name__ == "__main__":
    main()
