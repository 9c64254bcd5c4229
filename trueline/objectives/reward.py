"""The reward model: a score per response whose differences explain what people prefer (Bradley-Terry).

    P(y_i > y_j | x) = sigmoid(r(x, y_i) - r(x, y_j))
    L = - sum_pairs w [ p log sigmoid(r_i - r_j - m) + (1 - p) log sigmoid(r_j - r_i - m) ] / sum_pairs w

p is the preference (1 when i was chosen, a share of votes, 1/2 for a tie), w = 1 / (number of pairs of the prompt): all
K(K-1)/2 pairs of K ranked responses are one element of the batch, from one forward of the tree that they share. m is an
optional margin from the data (Llama 2, 2307.09288): numbers["margin"]. `center_rewards_coefficient` c adds
c (r_i + r_j)^2 per pair, which fixes the level that differences leave open (Eisenstein et al., 2312.09244).
Bradley and Terry 1952; Ouyang et al., 2203.02155, equation 1. The score is read at the last token of a response.
The level that demonstrations have is subtracted afterwards, as the paper does before PPO: `trueline center`.
The paper drops ties and does not say what it divides by then; `ties` "drop" divides by the pairs that remain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.pairs import numbers_of, pair_weights, pairs_of
from trueline.protocols import Crew
from trueline.records import Comparison, Row


def bradley_terry(difference_P: Tensor, preferred_P: Tensor, margin_P: Tensor | float = 0.0) -> Tensor:
    """Negative log-likelihood of each pair; `difference_P` = score of the first - score of the second."""
    return preferred_P * softplus(margin_P - difference_P) + (1 - preferred_P) * softplus(margin_P + difference_P)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Bradley-Terry on pairs of responses."""

    center_rewards_coefficient: float = 0.0
    """Pulls the sum of a pair's scores to 0; 0.01 is usual, 0 leaves the level open."""
    ties: Literal["half", "drop"] = "half"
    """A tie is a preference of 1/2, or it is dropped (InstructGPT) and the prompt's other pairs share its weight."""

    verb: ClassVar[str] = "reward"
    record: ClassVar[type[Comparison]] = Comparison
    head: ClassVar[str] = "scalar"
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 1e-5, "warmup_ratio": 0.03}
    citation: ClassVar[str] = (
        "Ouyang et al. Training language models to follow instructions with human feedback. https://arxiv.org/abs/2203.02155"
    )

    def __post_init__(self) -> None:
        if self.center_rewards_coefficient < 0:
            raise ValueError(f"center_rewards_coefficient is {self.center_rewards_coefficient}: it must be at least 0")
        if self.ties not in ("half", "drop"):
            raise ValueError(f"ties is {self.ties!r}: use half or drop")

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, partial(pair_weights, ties=self.ties))

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        scores_S = model(batch.layout).float()
        pairs = pairs_of(batch.rows, scores_S.device, ties=self.ties)
        margin_P = numbers_of(batch.rows, "margin", scores_S.device, missing=0.0)[pairs.first_P]
        first_P, second_P = scores_S[pairs.first_P], scores_S[pairs.second_P]
        loss_P = bradley_terry(first_P - second_P, pairs.preferred_P, margin_P)
        loss_P = loss_P + self.center_rewards_coefficient * (first_P + second_P) ** 2
        with torch.no_grad():
            ahead_P = scores_S[pairs.chosen_P] - scores_S[pairs.rejected_P]
            decided, count = float(pairs.decided_P.sum()), float(len(scores_S))
            metrics = {
                "accuracy": (((ahead_P > 0) * pairs.decided_P).sum(), decided),
                "margin": ((ahead_P * pairs.decided_P).sum(), decided),
                "mean_reward": (scores_S.sum(), count),
            }
        return Losses({"loss": (pairs.weight_P * loss_P).sum()}, metrics)
