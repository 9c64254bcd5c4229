"""Odds ratio preference optimisation: imitate the preferred response and lower the odds of the other, in one stage.

    p(y) = exp( 1/|y| sum_t log pi(y_t | x, y_<t) ),      odds(y) = p(y) / (1 - p(y))
    l(w, l) = -log p(y_w) - beta log sigmoid( log odds(y_w) - log odds(y_l) )
    L = sum_pairs w [ q l(first, second) + (1 - q) l(second, first) ] / sum_pairs w

Hong et al., 2403.07691, equations 3 to 7; beta is their lambda (TRL's name for it). q is how strongly the first response is
preferred: 1 when chosen, a share of votes, 1/2 for a tie. It needs no reference and no supervised tuning before it: the first
term is that tuning. The odds of a response that the model is certain of are infinite: log p is held below -1e-6.
Simplified: the first term is a mean per response, as in the paper; TRL's is a mean over the tokens of a microbatch, and
counts the prompt's.

Legend: P pairs, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.pairs import Pairs, implicit_reward_metrics, mean_logps, pair_weights, pairs_of
from trueline.protocols import Crew
from trueline.records import Comparison, Row


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logps); 1 - p is not computed as a difference, which is 0 for p near 1."""
    logps = logps.clamp(max=-1e-6)
    return logps - torch.log(-torch.expm1(logps))


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """Pairs of responses, no reference; supervised tuning and preference in one loss."""

    beta: float = 0.1
    """Weight of the odds ratio beside the imitation of the preferred response: the paper's lambda."""

    verb: ClassVar[str] = "orpo"
    record: ClassVar[type[Comparison]] = Comparison
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 5e-6, "warmup_ratio": 0.1}
    citation: ClassVar[str] = (
        "Hong et al. ORPO: monolithic preference optimization without reference model. https://arxiv.org/abs/2403.07691"
    )

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}: it must be above 0 (0 is trueline sft)")

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, pair_weights)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        mean_S = mean_logps(model, batch)
        pairs = pairs_of(batch.rows, mean_S.device)
        return Losses({"loss": (pairs.weight_P * self.pair_loss(mean_S, pairs)).sum()}, self._metrics(mean_S, pairs))

    def pair_loss(self, mean_S: Tensor, pairs: Pairs) -> Tensor:
        """The loss of each pair [P], from mean log-probabilities."""
        odds_S, first_P, second_P = log_odds(mean_S), pairs.first_P, pairs.second_P
        ratio_P = odds_S[first_P] - odds_S[second_P]
        if_first_P = self.beta * softplus(-ratio_P) - mean_S[first_P]
        if_second_P = self.beta * softplus(ratio_P) - mean_S[second_P]
        return pairs.preferred_P * if_first_P + (1 - pairs.preferred_P) * if_second_P

    def _metrics(self, mean_S: Tensor, pairs: Pairs) -> dict[str, tuple[Tensor, float]]:
        mean_S = mean_S.detach()
        odds_S = log_odds(mean_S)
        ratio_P = odds_S[pairs.chosen_P] - odds_S[pairs.rejected_P]
        values = {
            "nll_loss": -mean_S[pairs.chosen_P],
            "log_odds_ratio": logsigmoid(ratio_P),
            "log_odds_chosen": ratio_P,
        }
        count = float(pairs.decided_P.sum())
        own = {name: ((value_P * pairs.decided_P).sum(), count) for name, value_P in values.items()}
        return own | implicit_reward_metrics(self.beta, mean_S, mean_S, pairs)
