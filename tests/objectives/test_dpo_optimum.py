"""Closed form: on an enumerable response space sigmoid DPO ends at pi_ref exp(r/beta)/Z (Rafailov et al. 2023, section 4).

Tokens 0 prompt, 1 and 2 letters, 3 end. A response is up to 3 tokens and ends at 3 or at its length: 1 + 2 + 4 x 3 = 15 of them.
The policy is a table of logits, one row per prefix, so it can represent every distribution on them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueline.models.attention import Layout
from trueline.models.head import TokenScores, token_logps
from trueline.objectives.base import Budget
from trueline.objectives.dpo import DPO
from trueline.protocols import Crew
from trueline.records import Row

END, LETTERS, VOCAB, LONGEST = 3, (1, 2), 4, 3
BUDGET = Budget(rows=10**6, tokens=10**9)
BETA = 0.5


def responses() -> list[tuple[int, ...]]:
    stopped = [(*word, END) for n in range(LONGEST) for word in itertools.product(LETTERS, repeat=n)]
    return stopped + list(itertools.product(LETTERS, repeat=LONGEST))


class Table(nn.Module):
    """p(token | prefix) from a table; a prefix is the base-4 number of its tokens."""

    def __init__(self, seed: int):
        super().__init__()
        logits = torch.randn(
            VOCAB**LONGEST, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).float()
        logits[:, 0] = -30.0  # the prompt's token is not a response token
        self.logits = nn.Parameter(logits)

    def forward(self, layout: Layout) -> Tensor:
        state = np.zeros(layout.num_tokens, dtype=np.int64)
        ids = layout.ids_T.numpy()
        for span in layout.spans:
            before = layout.spans[span.parent] if span.parent >= 0 else None
            code = int(state[before.start + before.length - 1]) if before else 0
            for place in range(span.start, span.start + span.length):
                code = code * VOCAB + int(ids[place])
                state[place] = code
        return self.logits[torch.from_numpy(state) % VOCAB**LONGEST]

    def token_logps(self, layout: Layout) -> TokenScores:
        return token_logps(self(layout)[layout.predicted_by_N], torch.eye(VOCAB), layout.targets_N)


class Exact:
    """A frozen policy as the crew's reference."""

    fingerprint = "table"

    def __init__(self, policy: Table):
        self.policy = policy

    @torch.no_grad()
    def score(self, rows: list[Row]) -> list[np.ndarray]:
        return [np.array([logp(self.policy, ids[1:]) for ids in row.ids], dtype=np.float32) for row in rows]


def logp(policy: Table, response: np.ndarray) -> float:
    state, total = 0, 0.0
    for token in response:
        total += float(torch.log_softmax(policy.logits.detach()[state].double(), 0)[int(token)])
        state = state * VOCAB + int(token)
    return total


def distribution(policy: Table) -> np.ndarray:
    """Over the 15 responses; the prompt's token has no weight to speak of, and the rest is normalised."""
    p = np.exp([logp(policy, np.array(y)) for y in responses()])
    return p / p.sum()


def row(pair: list[tuple[int, ...]], **numbers: list[float]) -> Row:
    ids = tuple(np.array((0, *y), dtype=np.int32) for y in pair)
    scored = tuple(np.arange(len(x)) > 0 for x in ids)
    return Row(
        ids=ids, scored=scored, numbers={name: np.array(value, dtype=np.float32) for name, value in numbers.items()}
    )


def optimum(reference: Table, reward: np.ndarray) -> np.ndarray:
    p = distribution(reference) * np.exp(reward / BETA)
    return p / p.sum()


def fit(policy: Table, rows: list[Row], crew: Crew, iterations: int = 300) -> None:
    """The minimum of the objective over all rows, found with its own steps and loss."""
    objective = DPO(beta=BETA)
    (step,) = objective.steps(objective.annotate(rows, crew), BUDGET)
    total = sum(batch.weights["loss"] for batch in step)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=iterations, history_size=50, tolerance_grad=1e-9,
                                  tolerance_change=1e-12, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((objective.loss(policy, batch, crew).terms["loss"] for batch in step), torch.zeros(())) / total
        loss.backward()
        return loss

    optimizer.step(closure)


def variation(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * float(np.abs(p - q).sum())


@pytest.fixture
def reward() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.6, len(responses()))


def test_exact_preferences_lead_to_the_optimum(reward: np.ndarray) -> None:
    reference, policy = Table(1), Table(1)
    crew = Crew(reference=Exact(reference))
    everything = row(
        responses(), counts=list(np.exp(reward))
    )  # one prompt, 15 responses: counts in these ratios are the preferences
    assert variation(distribution(policy), optimum(reference, reward)) > 0.1
    fit(policy, [everything], crew)
    assert variation(distribution(policy), optimum(reference, reward)) < 1e-3


def test_drawn_labels_lead_near_the_optimum(reward: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    pairs = list(itertools.combinations(range(len(reward)), 2))
    draws = rng.multinomial(200_000, np.full(len(pairs), 1 / len(pairs)))
    rows = []
    for (i, j), n in zip(pairs, draws, strict=True):
        wins = int(rng.binomial(n, 1 / (1 + np.exp(reward[j] - reward[i]))))
        rows.append(row([responses()[i], responses()[j]], counts=[wins, n - wins], weight=[n, n]))
    reference, policy = Table(1), Table(1)
    fit(policy, rows, Crew(reference=Exact(reference)))
    assert variation(distribution(policy), optimum(reference, reward)) < 0.02
