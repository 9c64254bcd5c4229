"""A world small enough to list: a few prompts, every possible response, a known reward.

    python -m recipes.oracle_world --kind smooth --seed 0        prints its exact quantities

    tokens      0 ends a response, 1 .. L are letters; prompts are made of letters too, so a decoder over L + 1 tokens has the
                same response space as a table
    responses   up to `longest` letters, ended by 0 or by their length: V = 1 + L + ... + L^longest
    reward      smooth: weights of letters and of pairs of letters; sparse: 1 for one response, 0 for the others; trap: smooth,
                but for one rare response that by all others' rewards should be the best, and is by far the worst
    reference   softmax of a random table

    data        everything, flipped, drawn_pairs, demonstrations, ratings: rows to train on

Left out: what is trained in it (recipes/oracle_tables.py), and how (recipes/oracle.py).

Legend: P prompts, V responses, A = letters + 1 tokens to choose from, T tokens of a layout.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trueline.evals.oracle import expected_reward, gibbs, log_partition, mean_kl
from trueline.models.attention import Layout
from trueline.records import Message, Messages, Row

END = 0
PAIRS = 4096
"""Drawn pairs of a data set, over all prompts."""
KINDS = ("smooth", "sparse", "trap")


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything is known: prompts, responses, reward, reference."""

    prompts: tuple[tuple[int, ...], ...]
    """All of one length."""
    letters: int
    longest: int
    seed: int
    reward_PV: np.ndarray
    reference_logits_VA: np.ndarray
    """The reference's table: a row per prefix."""

    @cached_property
    def responses(self) -> list[tuple[int, ...]]:
        """By length, the longest ones without an end."""
        return responses_of(self.letters, self.longest)

    @cached_property
    def lengths_V(self) -> np.ndarray:
        """Tokens of each response, its end included."""
        return np.array([len(y) for y in self.responses])

    @cached_property
    def reference_PV(self) -> np.ndarray:
        """pi_ref."""
        states, tokens, mask = self.paths
        logps_VA = self.reference_logits_VA - np.logaddexp.reduce(self.reference_logits_VA, 1, keepdims=True)
        return np.exp((logps_VA[states, tokens] * mask).sum(2))

    def states(self, layout: Layout) -> Tensor:
        """For every token of the layout the number of the prefix that ends there; 0 inside of prompts."""
        before_T = np.arange(-1, layout.num_tokens - 1)
        for span in layout.spans:
            parent = layout.spans[span.parent] if span.parent >= 0 else None
            before_T[span.start] = parent.start + parent.length - 1 if parent else -1
        ids_T, positions_T = layout.ids_T.cpu().numpy(), layout.positions_T.cpu().numpy()
        base, start = self.letters + 1, len(self.prompts[0]) - 1
        code_T = np.zeros(layout.num_tokens, np.int64)
        for position in range(int(positions_T.max()) + 1):
            here = np.flatnonzero(positions_T == position)
            code_T[here] = ids_T[here] + (base * code_T[before_T[here]] if position else 0)
            if position == start:
                code_T[here] = self._prompt_of_code[code_T[here]]
        depth_T = positions_T - start
        return torch.from_numpy(np.where(depth_T >= 0, self._offsets[depth_T.clip(0)] + code_T, 0))

    def said(self, states_S: Tensor) -> tuple[Tensor, Tensor]:
        """(prompts, responses) of the states in which whole responses end."""
        return self._said[0][states_S], self._said[1][states_S]

    @cached_property
    def _said(self) -> Tensor:
        """[2, states]; 0 where a response is not over."""
        found = torch.zeros(2, self.num_states, dtype=torch.long)
        base = self.letters + 1
        for p, (v, y) in itertools.product(range(len(self.prompts)), enumerate(self.responses)):
            code = p * base ** len(y) + int("".join(map(str, y)), base)
            found[:, self._offsets[len(y)] + code] = torch.tensor([p, v])
        return found

    @cached_property
    def _prompt_of_code(self) -> np.ndarray:
        base = self.letters + 1
        found = np.full(base ** len(self.prompts[0]), -1)
        for number, prompt in enumerate(self.prompts):
            found[int("".join(map(str, prompt)), base)] = number
        return found

    @cached_property
    def _offsets(self) -> np.ndarray:
        """Where the prefixes of 0, 1, ... response tokens start."""
        sizes = [len(self.prompts) * (self.letters + 1) ** depth for depth in range(self.longest + 1)]
        return np.concatenate([[0], np.cumsum(sizes)])

    @cached_property
    def paths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(states [P, V, longest], tokens [V, longest], mask [V, longest]): what a response's probability multiplies."""
        base, V = self.letters + 1, len(self.responses)
        states = np.zeros((len(self.prompts), V, self.longest), np.int64)
        tokens, mask = np.zeros((V, self.longest), np.int64), np.zeros((V, self.longest), bool)
        for p, (v, y) in itertools.product(range(len(self.prompts)), enumerate(self.responses)):
            code = p
            for place, token in enumerate(y):
                states[p, v, place], tokens[v, place], mask[v, place] = self._offsets[place] + code, token, True
                code = code * base + token
        return states, tokens, mask

    @property
    def num_prefixes(self) -> int:
        """Rows of a policy's table."""
        return int(self._offsets[self.longest])

    @property
    def num_states(self) -> int:
        """Prefixes and whole responses."""
        return int(self._offsets[-1])

    def number(self, ids: Sequence[int] | np.ndarray) -> tuple[int, int]:
        """(prompt, response) of a whole sequence."""
        return self._numbers[tuple(ids.tolist() if isinstance(ids, np.ndarray) else ids)]

    @cached_property
    def _numbers(self) -> dict[tuple[int, ...], tuple[int, int]]:
        """Whole sequence -> (prompt, response)."""
        return {(*x, *y): (p, v) for p, x in enumerate(self.prompts) for v, y in enumerate(self.responses)}

    def row(self, prompt: int, responses: Sequence[int], **numbers: Sequence[float]) -> Row:
        """These responses to one prompt, scored, best first."""
        ids = tuple(np.array((*self.prompts[prompt], *self.responses[v]), dtype=np.int32) for v in responses)
        scored = tuple(np.arange(len(x)) >= len(self.prompts[prompt]) for x in ids)
        columns = {name: np.array(values, dtype=np.float32) for name, values in numbers.items()}
        key = f"{prompt}:{'-'.join(map(str, responses))}"
        return Row(ids=ids, scored=scored, key=key, numbers=columns)

    def messages(self, prompt: int) -> Messages:
        """The prompt as text: its tokens as digits."""
        return (Message(role="user", content="".join(map(str, self.prompts[prompt]))),)


def responses_of(letters: int, longest: int) -> list[tuple[int, ...]]:
    """All responses, in a fixed order."""
    alphabet = range(1, letters + 1)
    ended = [(*word, END) for n in range(longest) for word in itertools.product(alphabet, repeat=n)]
    return ended + list(itertools.product(alphabet, repeat=longest))


def make_world(
    kind: str = "smooth", seed: int = 0, *, prompts: int = 4, letters: int = 2, longest: int = 3, spread: float = 0.6
) -> World:
    """A random world. `spread` is the reward's standard deviation over responses, about; the sparse reward is 0 or 1."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: use one of {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, KINDS.index(kind), prompts, letters, longest])
    starts = list(itertools.product(range(1, letters + 1), repeat=max(1, math.ceil(math.log(prompts, letters)))))
    listed = responses_of(letters, longest)
    smooth_PV = np.stack([_smooth(listed, letters, rng) for _ in range(prompts)]) * spread
    reward_PV = smooth_PV
    if kind == "sparse":
        reward_PV = np.zeros_like(smooth_PV)
        for p in range(prompts):
            reward_PV[p, rng.choice(len(listed), size=max(1, len(listed) // 8), replace=False)] = 1.0
    world = World(
        prompts=tuple(starts[:prompts]), letters=letters, longest=longest, seed=seed, reward_PV=reward_PV,
        reference_logits_VA=rng.normal(0, 0.7, (prompts * sum((letters + 1) ** d for d in range(longest)), letters + 1)),
    )  # fmt: skip
    if kind == "trap":  # what looks best is worst, and the reference seldom takes the last step to it
        best_P, (states, tokens, _) = smooth_PV.argmax(1), world.paths
        for p, best in enumerate(best_P):
            last = len(listed[best]) - 1
            world.reference_logits_VA[states[p, best, last], tokens[best, last]] -= 3.0
        world.reward_PV[np.arange(prompts), best_P] = smooth_PV.min(1) - 2 * spread
    return world


def _smooth(listed: Sequence[tuple[int, ...]], letters: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of letters, of neighbours and of the length, brought to mean 0 and standard deviation 1 over the responses."""
    single, double, length = rng.normal(size=letters + 1), rng.normal(size=(letters + 1,) * 2), rng.normal()
    found = features(listed, letters) @ np.concatenate([single, 0.5 * double.ravel(), [0.5 * length]])
    return (found - found.mean()) / found.std()


def features(listed: Sequence[tuple[int, ...]], letters: int) -> np.ndarray:
    """What a smooth reward sees of responses [V, F]: how often each token, and each pair of neighbours, and the length."""
    found = np.zeros((len(listed), letters + 1 + (letters + 1) ** 2 + 1))
    for row_F, y in zip(found, listed, strict=True):
        np.add.at(row_F, list(y), 1)
        np.add.at(row_F, [letters + 1 + (letters + 1) * a + b for a, b in itertools.pairwise(y)], 1)
        row_F[-1] = len(y)
    return found


def everything(world: World) -> list[Row]:
    """One row per prompt with all responses: counts in these ratios are exact Bradley-Terry probabilities of all pairs."""
    return [world.row(p, range(len(r_V)), counts=np.exp(r_V)) for p, r_V in enumerate(world.reward_PV)]


def flipped(world: World, share: float = 0.1) -> list[Row]:
    """Exact probabilities after a share of the labels was flipped, for the pairs of neighbours on two random rings."""
    rng, rows = np.random.default_rng([world.seed, 0]), []
    for p, reward_V in enumerate(world.reward_PV):
        for ring in (rng.permutation(len(reward_V)) for _ in range(2)):
            for i, j in zip(ring, np.roll(ring, 1), strict=True):
                right = 1 / (1 + np.exp(reward_V[j] - reward_V[i]))
                seen = right * (1 - share) + (1 - right) * share
                rows.append(world.row(p, (int(i), int(j)), counts=(seen, 1 - seen)))
    return rows


def drawn_pairs(world: World, policy_PV: np.ndarray | None = None, count: int = PAIRS, noise: float = 1.0) -> list[Row]:
    """Pairs of different responses drawn from the policy (default: the reference) and labelled by Bradley-Terry; noise 0: the
    better one wins. One row per pair that came, with counts of its labels and their number as its weight."""
    rng = np.random.default_rng([world.seed, 1])
    probs_PV = world.reference_PV if policy_PV is None else policy_PV
    rows = []
    for p, probs_V in enumerate(probs_PV):
        both_VV = np.triu(np.outer(probs_V, probs_V), 1)
        drawn_VV = rng.multinomial(count // len(probs_PV), (both_VV / both_VV.sum()).ravel()).reshape(both_VV.shape)
        for i, j in zip(*np.nonzero(drawn_VV), strict=True):
            gap, n = world.reward_PV[p, i] - world.reward_PV[p, j], int(drawn_VV[i, j])
            wins = n * float(gap > 0) if noise == 0 else int(rng.binomial(n, 1 / (1 + np.exp(-gap / noise))))
            rows.append(world.row(p, (int(i), int(j)), counts=(wins, n - wins), weight=(n, n)))
    return rows


def demonstrations(world: World, beta: float, count: int = 512) -> list[Row]:
    """Responses that pi* gave."""
    rng = np.random.default_rng([world.seed, 2])
    best_PV = gibbs(world.reference_PV, world.reward_PV, beta)
    several = count // len(best_PV)
    return [
        world.row(p, [int(v)]) for p, best_V in enumerate(best_PV) for v in rng.choice(len(best_V), several, p=best_V)
    ]


def ratings(world: World) -> list[Row]:
    """Every response alone, desirable with probability sigmoid(reward): the share of votes is its label."""
    shares_PV = 1 / (1 + np.exp(-world.reward_PV))
    return [
        world.row(p, [v], label=[share]) for p, shares_V in enumerate(shares_PV) for v, share in enumerate(shares_V)
    ]


def scores(world: World) -> list[Row]:
    """Every response with its reward as a score."""
    return [
        world.row(p, [v], score=[score])
        for p, reward_V in enumerate(world.reward_PV)
        for v, score in enumerate(reward_V)
    ]


def facts(world: World, beta: float) -> str:
    """The world in a table."""
    best_PV = gibbs(world.reference_PV, world.reward_PV, beta)
    lines = ["| policy | reward | KL to the reference |", "|---|---|---|"]
    for name, policy_PV in {"reference": world.reference_PV, f"optimum at beta {beta:g}": best_PV}.items():
        reward, kl = expected_reward(policy_PV, world.reward_PV), mean_kl(policy_PV, world.reference_PV)
        lines.append(f"| {name} | {reward:.4f} | {kl:.4f} |")
    log_z = log_partition(world.reference_PV, world.reward_PV, beta)
    found = f"{len(world.prompts)} prompts, {len(world.responses)} responses; log Z per prompt " + ", ".join(
        f"{z:.4f}" for z in log_z
    )
    return "\n".join([*lines, "", found])


def rehearse(folder: Path) -> None:
    """Every kind of reward."""
    for kind in KINDS:
        assert "15 responses" in facts(make_world(kind), 0.5)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="smooth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta", type=float, default=0.5)
    args = parser.parse_args()
    print(facts(make_world(args.kind, args.seed), args.beta))


if __name__ == "__main__":
    main()
