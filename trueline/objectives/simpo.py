"""Simple preference optimisation: pairs without a reference, the reward is the mean log-probability of a token.

    r(y) = beta / |y| sum_t log pi(y_t | x, y_<t)                     averaged over the response's tokens, its end included
    L = sum_pairs w [ q l(r_w - r_l) + (1 - q) l(r_l - r_w) ] / sum_pairs w,      l(d) = -log sigmoid(d - gamma)

Meng et al., 2405.14734, equation 6. q is how strongly the first response is preferred: 1 when chosen, a share of votes, 1/2 for
a tie. The mean instead of the sum is what generation by likelihood ranks by, and it takes the reward for length away; gamma
is the margin that a pair must reach.
Nothing holds the policy near its start but the learning rate and the number of steps. The defaults are those of Llama-3-Base
in the authors' table, gamma / beta = 0.5; they search the learning rate over 3e-7, 5e-7 and 1e-6.
Simplified: nothing; votes and ties are ours.

Legend: P pairs, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import softplus

from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.pairs import implicit_reward_metrics, mean_logps, pair_weights, pairs_of
from trueline.protocols import Crew
from trueline.records import Comparison, Row


def margin_loss(difference_P: Tensor, gamma: float) -> Tensor:
    """-log sigmoid(d - gamma), without taking the logarithm of a small number."""
    return softplus(gamma - difference_P)


@dataclass(frozen=True, kw_only=True)
class SimPO:
    """Pairs of responses, no reference; log-probabilities averaged over tokens."""

    beta: float = 2.0
    """Scale of the reward; 2 to 10, far above DPO's."""
    gamma: float = 1.0
    """Margin between the two rewards that a pair is pushed to; usually 0 to beta."""

    verb: ClassVar[str] = "simpo"
    record: ClassVar[type[Comparison]] = Comparison
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 6e-7, "warmup_ratio": 0.1}
    citation: ClassVar[str] = (
        "Meng et al. SimPO: simple preference optimization with a reference-free reward. https://arxiv.org/abs/2405.14734"
    )

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}: it must be above 0")
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}: it must be at least 0")

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, pair_weights)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        mean_S = mean_logps(model, batch)
        pairs = pairs_of(batch.rows, mean_S.device)
        difference_P = self.beta * (mean_S[pairs.first_P] - mean_S[pairs.second_P])
        loss_P = pairs.preferred_P * margin_loss(difference_P, self.gamma)
        loss_P = loss_P + (1 - pairs.preferred_P) * margin_loss(-difference_P, self.gamma)
        metrics = implicit_reward_metrics(self.beta, mean_S, mean_S, pairs)
        return Losses({"loss": (pairs.weight_P * loss_P).sum()}, metrics)
