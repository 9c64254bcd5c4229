"""Direct preference optimisation: the policy itself is the reward model.

    h = [log pi(y_w|x) - log pi(y_l|x)] - [log pi_ref(y_w|x) - log pi_ref(y_l|x)]      log-probabilities summed over response tokens
    L = sum_pairs w [ q l(h) + (1 - q) l(-h) ] / sum_pairs w

    sigmoid   l(h) = -log sigmoid(beta h)       Rafailov et al., 2305.18290, equation 7
    ipo       l(h) = (h - 1/(2 beta))^2         Azar et al., 2310.12036, equation 17; summed log-probs, as in the paper
    hinge     l(h) = max(0, 1 - beta h)         Liu et al. (RSO), 2309.06657; Zhao et al. (SLiC), 2305.10425
    robust    sigmoid with q = (p - e) / (1 - 2e): unbiased when a share e of the labels is flipped (Chowdhury et al., 2403.00409)

p is how strongly the first response is preferred: 1 when chosen, a share of votes, 1/2 for a tie. q = p (1 - e) + (1 - p) e with
`label_smoothing` e (conservative DPO, Mitchell 2023). With exact preference probabilities as p the sigmoid loss is least at
pi(y|x) proportional to pi_ref(y|x) exp(r(x,y)/beta).

Reference log-probs are not computed here: `annotate` asks the crew's reference once per row, before training.
The paper prints its gradient with y_w and y_l swapped in appendix A.4; the weight is sigmoid(-beta h), large for misranked pairs.
Simplified: AdamW instead of the paper's RMSprop. TRL's IPO averages log-probs over tokens; ours sums them.

Legend: N scored tokens, S sequences, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.pairs import (
    implicit_reward_metrics,
    pair_weights,
    pairs_of,
    policy_and_ratios,
    with_reference_logps,
)
from trueline.protocols import Crew
from trueline.records import Comparison, Row


def sigmoid_loss(h_P: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta h), without taking the logarithm of a small number."""
    return softplus(-beta * h_P)


def ipo_loss(h_P: Tensor, beta: float) -> Tensor:
    """Squared distance of h from 1 / (2 beta): a finite margin even where all annotators agree."""
    return (h_P - 1 / (2 * beta)) ** 2


def hinge_loss(h_P: Tensor, beta: float) -> Tensor:
    """Nothing more to gain once beta h exceeds 1."""
    return torch.relu(1 - beta * h_P)


def smooth(preferred_P: Tensor, epsilon: float) -> Tensor:
    """Labels as if a share epsilon of them were flipped."""
    return preferred_P * (1 - 2 * epsilon) + epsilon


def unflip(preferred_P: Tensor, epsilon: float) -> Tensor:
    """The inverse of `smooth`: what labels were before a share epsilon of them was flipped, in expectation."""
    return (preferred_P - epsilon) / (1 - 2 * epsilon)


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Pairs of responses, against a frozen reference."""

    beta: float = 0.1
    """Strength of the pull to the reference: the beta of reward - beta KL."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Loss of a pair: DPO's own; IPO's pull to a finite margin; a hinge; one for labels partly flipped."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped, below 1/2."""

    verb: ClassVar[str] = "dpo"
    record: ClassVar[type[Comparison]] = Comparison
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 1e-6, "warmup_ratio": 0.1}
    citation: ClassVar[str] = (
        "Rafailov et al. Direct preference optimization: your language model is secretly a reward model. https://arxiv.org/abs/2305.18290"
    )

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}: it must be above 0")
        if self.loss_type not in ("sigmoid", "ipo", "hinge", "robust"):
            raise ValueError(f"loss_type is {self.loss_type!r}: use sigmoid, ipo, hinge or robust")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 0.5")

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return with_reference_logps(rows, crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, pair_weights)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        logps_S, ratio_S = policy_and_ratios(model, batch)
        pairs = pairs_of(batch.rows, logps_S.device)
        loss_P = self.pair_loss(ratio_S[pairs.first_P] - ratio_S[pairs.second_P], pairs.preferred_P)
        metrics = implicit_reward_metrics(self.beta, logps_S, ratio_S, pairs)
        return Losses({"loss": (pairs.weight_P * loss_P).sum()}, metrics)

    def pair_loss(self, h_P: Tensor, preferred_P: Tensor) -> Tensor:
        """The loss of each pair, from h and the preference."""
        least = {"ipo": ipo_loss, "hinge": hinge_loss}.get(self.loss_type, sigmoid_loss)
        label_P = (unflip if self.loss_type == "robust" else smooth)(preferred_P, self.label_smoothing)
        return label_P * least(h_P, self.beta) + (1 - label_P) * least(-h_P, self.beta)
