"""Statistical rejection sampling optimisation: pairs of the start model's own responses, as if drawn from the optimum.

    prompts -> num_generations responses of the start model -> rewards r -> accept with probability exp((r - r_max) / beta)
            -> num_samples of each prompt -> pairs, the higher reward first -> pair loss against the start model

    h = [log pi(y_w|x) - log pi(y_l|x)] - [log pi_ref(y_w|x) - log pi_ref(y_l|x)]      log-probabilities summed over tokens
    sigmoid_norm   l = -log sigmoid(gamma h)          DPO's loss
    hinge_norm     l = max(0, 1 - gamma h)
    hinge          l = max(0, 1 - gamma [log pi(y_w|x) - log pi(y_l|x)])               no reference: SLiC's, 2305.10425

Liu et al., 2309.06657, algorithm 1 and section 3. Accepted responses follow pi_ref exp(r / beta) / Z as the candidates go to infinity
(`trueline.align.rejection`), the policy that a pair loss should see its pairs from. Two temperatures: beta of the sampling, in
units of the reward, gamma of the loss. beta = inf is the paper's "sft-sample-rank": no rejection. The better response simply wins,
as in the paper, so no finite margin is enough for sigmoid_norm; with `soft_labels` a pair's preference is
sigmoid(r_w - r_l), the loss q l(h) + (1 - q) l(-h), and sigmoid_norm is least at pi proportional to pi_ref exp(r / gamma).
Simplified: r is what judge or reward model says, where the paper takes the logit of a pairwise ranker against one drawn response;
drawing has no top-k (40 there); every prompt is drawn for when its step comes, always by the start model, not all before the first
step: the pairs have the same law. Equal rewards make no pair.

Legend: P pairs, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.dpo import hinge_loss, sigmoid_loss
from trueline.objectives.pairs import (
    implicit_reward_metrics,
    pair_weights,
    pairs_of,
    policy_and_ratios,
    with_reference_logps,
)
from trueline.objectives.rounds import Rounds
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class RSO:
    """Pairs of the start model's own responses that rejection sampling accepts."""

    beta: float = 0.5
    """Of the rejection, in units of the reward: 0 keeps the best candidates, inf any. Choose it near the rewards' standard
    deviation: far below, the accepted ones are all alike and pairs of them say little."""
    num_samples: int = 8
    """Responses accepted per prompt, of --num_generations drawn."""
    ranking: Literal["first_round", "tournament"] = "first_round"
    """Pairs made of them: num_samples / 2 random ones, or the num_samples - 1 games of a knock-out."""
    loss_type: Literal["sigmoid_norm", "hinge_norm", "hinge"] = "sigmoid_norm"
    """Loss of a pair: DPO's, a hinge on the same margin, or a hinge without the reference (SLiC)."""
    gamma: float = 0.05
    """Of the loss: DPO's beta. The hinges let go of a pair at a margin of 1 / gamma."""
    soft_labels: bool = False
    """Prefer by the probability that a Bradley-Terry reward model gives, sigmoid of the difference, instead of always."""

    verb: ClassVar[str] = "rso"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    defaults: ClassVar[dict[str, object]] = {
        "learning_rate": 1e-5, "warmup_ratio": 0.1, "num_generations": 64, "temperature": 0.7,
    }  # fmt: skip
    citation: ClassVar[str] = (
        "Liu et al. Statistical rejection sampling improves preference optimization. https://arxiv.org/abs/2309.06657"
    )

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}: it must be at least 0 (inf accepts everything)")
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}: it must be above 0")
        if self.num_samples < 2:
            raise ValueError(f"num_samples is {self.num_samples}: a pair needs at least 2")
        for name, value, known in (
            ("ranking", self.ranking, ("first_round", "tournament")),
            ("loss_type", self.loss_type, ("sigmoid_norm", "hinge_norm", "hinge")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: use {', '.join(known[:-1])} or {known[-1]}")

    @property
    def rounds(self) -> Rounds:
        """The start model draws, whatever has been learned since."""
        options = {"beta": self.beta, "num_samples": self.num_samples, "ranking": self.ranking}
        return Rounds(select="statistical_rejection", options=options, responses=2, frozen=True)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        if self.soft_labels:
            odds = [np.exp(row.numbers["reward"] - row.numbers["reward"].max()) for row in rows]
            rows = [
                replace(row, numbers={**row.numbers, "counts": odds_K}) for row, odds_K in zip(rows, odds, strict=True)
            ]
        return with_reference_logps(rows, crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, pair_weights)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        logps_S, ratio_S = policy_and_ratios(model, batch)
        pairs = pairs_of(batch.rows, logps_S.device)
        margins_S = logps_S if self.loss_type == "hinge" else ratio_S
        h_P, preferred_P = margins_S[pairs.first_P] - margins_S[pairs.second_P], pairs.preferred_P
        loss_P = preferred_P * self.pair_loss(h_P) + (1 - preferred_P) * self.pair_loss(-h_P)
        metrics = implicit_reward_metrics(self.gamma, logps_S, ratio_S, pairs)
        return Losses({"loss": (pairs.weight_P * loss_P).sum()}, metrics)

    def pair_loss(self, h_P: Tensor) -> Tensor:
        """The loss of each pair, from its margin."""
        return sigmoid_loss(h_P, self.gamma) if self.loss_type == "sigmoid_norm" else hinge_loss(h_P, self.gamma)
