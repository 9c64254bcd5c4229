"""A world small enough to list: a few prompts, every possible response, a known reward. Policies in it are tables of logits.

    python -m recipes.oracle_world --kind smooth --seed 0        prints its exact quantities

    tokens      0 ends a response, 1 .. L are letters; prompts are made of letters too, so a decoder over L + 1 tokens has the
                same response space as a table
    responses   up to `longest` letters, ended by 0 or by their length: V = 1 + L + ... + L^longest
    reward      smooth: weights of letters and of pairs of letters; sparse: 1 for a few responses; trap: smooth in what can be
                seen, but one rare response is much worse than it looks
    reference   softmax of a random table

A Table stands where a Decoder stands: `token_logps(layout)`. A ScoreTable stands where a reward model stands. TableScorer and
TableSampler are the crew. Nothing here knows a method.

Legend: P prompts, V responses, T tokens of a layout, N scored tokens, S sequences.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueline.evals.oracle import expected_reward, gibbs, log_partition, mean_kl
from trueline.models.attention import Layout
from trueline.models.head import TokenScores, token_logps
from trueline.records import Message, Messages, Row, Sample, Sampling

END = 0
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
    """The reference's table; A = letters + 1 tokens to choose from."""

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
        return self.table().probs()

    def table(self) -> Table:
        """A policy that starts as the reference."""
        return Table(self, self.reference_logits_VA)

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

    def judge(self, reward_PV: np.ndarray | None = None) -> TableJudge:
        """Gives texts their reward (this one, or the world's)."""
        return TableJudge(self, self.reward_PV if reward_PV is None else reward_PV)


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
    if kind == "trap":  # what looks best is worst, wherever the reference seldom goes
        looks_best_P = np.argmax(smooth_PV - 4 * (world.reference_PV > 0.05), axis=1)
        world.reward_PV[np.arange(prompts), looks_best_P] = smooth_PV.min(1) - 2 * spread
    return world


def _smooth(listed: Sequence[tuple[int, ...]], letters: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of letters, of neighbours and of the length, brought to mean 0 and standard deviation 1 over the responses."""
    single, double, length = rng.normal(size=letters + 1), rng.normal(size=(letters + 1,) * 2), rng.normal()
    found = np.array([
        sum(single[t] for t in y) + 0.5 * sum(double[pair] for pair in itertools.pairwise(y)) + 0.5 * length * len(y)
        for y in listed
    ])  # fmt: skip
    return (found - found.mean()) / found.std()


class Table(nn.Module):
    """p(token | prefix) from a table of logits [prefixes, letters + 1]: every policy on the responses has one."""

    def __init__(self, world: World, logits_VA: np.ndarray):
        super().__init__()
        self.world = world
        self.identity: Tensor
        self.logits = nn.Parameter(torch.from_numpy(logits_VA).float())
        self.register_buffer("identity", torch.eye(world.letters + 1), persistent=False)

    def forward(self, layout: Layout) -> Tensor:
        """Logits after every token [T, A]."""
        return self.logits[
            self.world.states(layout) % len(self.logits)
        ]  # whole responses predict nothing: any row will do

    def token_logps(self, layout: Layout, *, temperature: float = 1.0, equal_weights: bool = False) -> TokenScores:
        """As a Decoder's, through the same head."""
        hidden_ND = self(layout)[layout.predicted_by_N]
        return token_logps(
            hidden_ND, self.identity, layout.targets_N, temperature=temperature, equal_weights=equal_weights
        )

    def probs(self) -> np.ndarray:
        """pi(y | x) [P, V] in float64."""
        return np.exp(self.logps())

    def logps(self) -> np.ndarray:
        """log pi(y | x) [P, V] in float64."""
        return self.token_table().sum(2)

    @torch.no_grad()
    def token_table(self) -> np.ndarray:
        """log pi of every token of every response [P, V, longest] in float64, 0 past its end."""
        states, tokens, mask = self.world.paths
        return torch.log_softmax(self.logits.double(), 1).numpy()[states, tokens] * mask


class ScoreTable(nn.Module):
    """A reward model: one score per prompt and response."""

    def __init__(self, world: World, scores_PV: np.ndarray | None = None):
        super().__init__()
        self.world = world
        self.scores = nn.Parameter(torch.zeros(world.num_states))
        if scores_PV is not None:
            self.scores.data[self._ends()] = torch.from_numpy(scores_PV).float()

    def forward(self, layout: Layout) -> Tensor:
        """[S]."""
        return self.scores[self.world.states(layout)[layout.last_S]]

    @torch.no_grad()
    def table(self) -> np.ndarray:
        """Scores [P, V] in float64."""
        return self.scores.double()[self._ends()].numpy()

    def _ends(self) -> Tensor:
        rows = [
            self.world.row(p, [v]) for p in range(len(self.world.prompts)) for v in range(len(self.world.responses))
        ]
        layout = Layout.packed([row.ids[0] for row in rows], [row.scored[0] for row in rows])
        return self.world.states(layout)[layout.last_S].reshape(len(self.world.prompts), -1)


@dataclass
class TableScorer:
    """A Scorer: a number per prompt and response, such as a reward."""

    world: World
    values_PV: np.ndarray
    fingerprint: str = "table"

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        return [np.array([self.values_PV[self.world.number(x)] for x in row.ids], dtype=np.float32) for row in rows]


@dataclass
class TablePolicy:
    """A TokenScorer: a frozen policy, such as the reference."""

    world: World
    token_logps_PVL: np.ndarray
    fingerprint: str = "table"

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        return [np.array([x.sum() for x in logps], dtype=np.float32) for logps in self.token_logps(rows)]

    def token_logps(self, rows: Sequence[Row], temperature: float = 1.0) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence float32 [scored tokens]."""
        assert temperature == 1
        cut = len(self.world.prompts[0])
        return [
            tuple(self.token_logps_PVL[self.world.number(x)][: len(x) - cut].astype(np.float32) for x in row.ids)
            for row in rows
        ]


@dataclass(frozen=True)
class TableJudge:
    """A Judge: the reward of the text."""

    world: World
    reward_PV: np.ndarray
    name: str = "exact reward"

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response; texts are digits, the end is not spelled."""
        texts = ["".join(str(t) for t in y if t != END) for y in self.world.responses]
        p = self.world.prompts.index(tuple(int(c) for c in prompt[-1].content))
        return [float(self.reward_PV[p, texts.index(response[-1].content)]) for response in responses]


class TableSampler:
    """A Sampler: exact draws from the table that was loaded last; equal seeds draw equal responses."""

    agreement = None

    def __init__(self, world: World):
        self.world, self.version = world, ""
        self.token_logps_PVL = np.zeros(0)

    def load(self, weights: Any, version: str) -> None:
        """Draw from this table from now on."""
        self.version, self.token_logps_PVL = version, weights.token_table()

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        """`sampling.n` draws per prompt at temperature 1."""
        if sampling.truncates or sampling.temperature != 1:
            raise ValueError("a table is drawn from at temperature 1, with no tokens left out")
        drawn = []
        for number, prompt in enumerate(prompts):
            p = self.world.prompts.index(tuple(int(t) for t in prompt))
            probs_V = np.exp(self.token_logps_PVL[p].sum(1))
            rng = np.random.default_rng([sampling.seed, number])
            chosen = rng.choice(len(probs_V), size=sampling.n, p=probs_V / probs_V.sum())
            drawn.append([self._sample(np.asarray(prompt), p, int(v)) for v in chosen])
        return drawn

    def _sample(self, prompt: np.ndarray, p: int, v: int) -> Sample:
        y = self.world.responses[v]
        return Sample(
            prompt_ids=prompt.astype(np.int32),
            ids=np.array(y, dtype=np.int32),
            logps=self.token_logps_PVL[p, v, : len(y)].astype(np.float32),
            mask=np.ones(len(y), dtype=bool),
            finish_reason="stop" if y[-1] == END else "length",
            policy=self.version,
        )


@torch.no_grad()
def probs_of(model: Any, world: World) -> np.ndarray:
    """pi(y | x) [P, V] of anything with token_logps, such as a Decoder."""
    everything = range(len(world.responses))
    layout = Layout.tree([world.row(p, everything) for p in range(len(world.prompts))])
    logps_N = model.token_logps(layout).logps_N.double()
    logps_S = logps_N.new_zeros(layout.num_sequences).index_add(0, layout.sequence_of_N, logps_N)
    return np.exp(logps_S.numpy()).reshape(len(world.prompts), -1)


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
