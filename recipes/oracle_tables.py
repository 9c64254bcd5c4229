"""What is trained in the listed world, and its crew: a policy, a critic, a reward model, each a table of free numbers.

    python -m recipes.oracle_tables --seed 0        draws from a table, beside its probabilities

    Table          p(token | prefix): where a Decoder stands; every policy on the responses has one
    CriticTable    the same with a value per prefix: where an ActorCritic stands
    ScoreTable     a score per response, or a logit per category: where a reward model stands
    TablePolicy, TableScorer, TableJudge, TableSampler      what trueline.protocols asks of a crew, exactly

Nothing here knows a method.

Legend: P prompts, V responses, A tokens to choose from, T tokens of a layout, N scored tokens, S sequences, C categories.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.oracle_world import END, World, make_world
from trueline.models.attention import Layout
from trueline.models.head import TokenScores, token_logps
from trueline.records import Messages, Row, Sample, Sampling


class Table(nn.Module):
    """p(token | prefix) from a table of logits [prefixes, letters + 1]: every policy on the responses has one."""

    def __init__(self, world: World):
        """It starts as the reference."""
        super().__init__()
        self.world = world
        self._last: tuple[Tensor, Tensor] | None = None
        self.identity: Tensor
        self.logits = nn.Parameter(torch.from_numpy(world.reference_logits_VA).float())
        self.register_buffer("identity", torch.eye(world.letters + 1), persistent=False)

    def forward(self, layout: Layout) -> Tensor:
        """Logits after every token [T, A]."""
        if self._last is None or self._last[0] is not layout.ids_T:  # the same rows again, more often than not
            self._last = layout.ids_T, self.world.states(layout) % len(self.logits)  # whole responses predict nothing
        return self.logits[self._last[1]]

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


class CriticTable(Table):
    """A policy and what a response is still worth after every prefix; the values start at 0."""

    def __init__(self, world: World):
        super().__init__(world)
        self.worth = nn.Parameter(torch.zeros(world.num_prefixes))

    def values(self, layout: Layout) -> Tensor:
        """V [N] where each scored token is predicted."""
        return self.worth[self.world.states(layout)[layout.predicted_by_N]]

    def scores_and_values(
        self, layout: Layout, *, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[TokenScores, Tensor]:
        """As an ActorCritic's."""
        assert not entropy_gradient
        return self.token_logps(layout, temperature=temperature), self.values(layout)


class ScoreTable(nn.Module):
    """A reward model: a score per prompt and response, or the expected utility of C categories."""

    def __init__(self, world: World, categories: int = 1, basis: np.ndarray | None = None):
        """With a `basis` [V, F] scores are linear in it, weights per prompt: what is learned of a response then holds for others."""
        super().__init__()
        self.world, self.basis = world, None if basis is None else torch.from_numpy(basis).float()
        size = world.num_states if basis is None else basis.shape[1] * len(world.prompts)
        self.scores = nn.Parameter(torch.zeros(size, categories))
        self.utilities: tuple[float, ...] = ()
        """What the categories are worth; an objective over them says so."""

    def logits(self, layout: Layout) -> Tensor:
        """[S, C]."""
        states_S = self.world.states(layout)[layout.last_S]
        if self.basis is None:
            return self.scores[states_S]
        prompt_S, response_S = self.world.said(states_S)
        weights_PFC = self.scores.view(len(self.world.prompts), -1, self.scores.shape[1])
        return torch.einsum("sf,sfc->sc", self.basis[response_S], weights_PFC[prompt_S])

    def forward(self, layout: Layout) -> Tensor:
        """[S]."""
        logits_SC = self.logits(layout)
        return logits_SC.softmax(1) @ logits_SC.new_tensor(self.utilities) if self.utilities else logits_SC.squeeze(1)

    @torch.no_grad()
    def table(self) -> np.ndarray:
        """Scores [P, V]."""
        rows = [self.world.row(p, range(len(self.world.responses))) for p in range(len(self.world.prompts))]
        return self(Layout.tree(rows)).double().numpy().reshape(len(rows), -1)


@dataclass
class TableScorer:
    """A Scorer: a number per prompt and response, such as a reward."""

    world: World
    values_PV: np.ndarray
    fingerprint: str = "table"

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        return [np.array([self.values_PV[self.world.number(x)] for x in row.ids], dtype=np.float32) for row in rows]


class NoisyScorer:
    """The reward and Gumbel noise, new at every call: the better of two by it is preferred as Bradley-Terry says."""

    def __init__(self, world: World):
        self.exact, self.fingerprint = TableScorer(world, world.reward_PV), "noisy table"
        self.rng = np.random.default_rng([world.seed, 4])

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        return [
            scores_K + self.rng.gumbel(size=len(scores_K)).astype(np.float32) for scores_K in self.exact.score(rows)
        ]


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

    def __init__(self, world: World, policy: Table | None = None):
        self.world, self.version = world, ""
        self.token_logps_PVL = np.zeros(0) if policy is None else policy.token_table()

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


def rehearse(folder: Path) -> None:
    """A few draws."""
    assert "| 0 |" in facts(make_world(prompts=2), 10)


def facts(world: World, draws: int) -> str:
    """How often each response to the first prompt is drawn."""
    sampler = TableSampler(world, Table(world))
    (samples,) = sampler.sample([np.array(world.prompts[0])], Sampling(n=draws))
    counts_V = np.bincount(
        [world.responses.index(tuple(s.ids.tolist())) for s in samples], minlength=len(world.responses)
    )
    lines = ["| response | probability | share of the draws |", "|---|---|---|"]
    for y, probability, count in zip(world.responses, world.reference_PV[0], counts_V, strict=True):
        lines.append(f"| {' '.join(map(str, y))} | {probability:.4f} | {count / draws:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10_000)
    args = parser.parse_args()
    print(facts(make_world(seed=args.seed), args.draws))


if __name__ == "__main__":
    main()
