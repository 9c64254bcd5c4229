"""The distributional reward model: how people would spread over ordered categories, and what that is worth.

    mu(x, y) = softmax(W h)            h: the last token's hidden state; C categories, worst first
    L = sum_responses d(mu, target) / number of responses
    r(x, y) = sum_i mu_i utility_i     the expected utility, the reward that policies are trained on

Li et al., "Aligning crowd feedback via distributional preference reward modeling", 2402.09764. d is

    cross_entropy  - sum_i target_i log mu_i                        DPRM_C
    wasserstein    sum_k |M_k - T_k|, cumulative                    DPRM_W: moving mass by one category costs 1
    transport      sum_k |M_k - T_k| (utility_(k+1) - utility_k)    DPRM_OT: moving mass costs the difference of utilities
    plane          Sinkhorn divergence, cost |helpful_i - helpful_j| + kappa |harm_i - harm_j|

With `transport` two categories of equal utility are at distance 0, and the loss cannot tell them apart (in the paper's table
helpful but harmful, and harmless but useless): `plane` can. The target is a response's share of votes, numbers["counts"] (votes,
or the pseudo-counts of a posterior: trueline.align.posterior). numbers["score"] is split over the two utilities around it so that
its expectation is the score (Bellemare et al., 1707.06887, section 4); numbers["label"] is the best category or the worst.
Simplified: the paper's prior and personas are data (posterior), and its definitions of W and OT, which we could not read, are the
closed forms above.

Legend: S responses, C categories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.pairs import numbers_of
from trueline.objectives.transport import cross_entropy, plane_cost, sinkhorn_divergence, wasserstein
from trueline.protocols import Crew
from trueline.records import Rating, Row


@dataclass(frozen=True, kw_only=True)
class DPRM:
    """A distribution over ordered categories per response."""

    utilities: tuple[float, ...] = (-3.0, -1.5, -1.0, -1.0, 0.5, 1.0)
    """What each category is worth, worst first; their number is the number of categories. The default is the paper's table."""
    loss_type: Literal["cross_entropy", "wasserstein", "transport", "plane"] = "cross_entropy"
    """Distance from the votes: cross_entropy; wasserstein (categories are a step apart); transport (as far apart as their utilities);
    plane (apart in helpfulness and harm)."""
    helpful: tuple[float, ...] = (-1.0, 0.5, 1.0, -1.0, 0.5, 1.0)
    """How helpful each category is, for loss_type plane."""
    harm: tuple[float, ...] = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    """How harmful each category is, for loss_type plane."""
    kappa: float = 1.0
    """How much harm weighs against helpfulness, for loss_type plane."""
    epsilon: float = 0.05
    """Entropy of the plans of loss_type plane, in units of the cost; smaller is closer to exact transport."""

    verb: ClassVar[str] = "dprm"
    record: ClassVar[type[Rating]] = Rating
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 1e-5, "warmup_ratio": 0.03}
    citation: ClassVar[str] = (
        "Li et al. Aligning crowd feedback via distributional preference reward modeling. https://arxiv.org/abs/2402.09764"
    )

    @property
    def head(self) -> str:
        """A logit per category."""
        return f"{len(self.utilities)} categories"

    def __post_init__(self) -> None:
        C = len(self.utilities)
        if C < 2 or not np.isfinite(self.utilities).all() or (np.diff(self.utilities) < 0).any():
            raise ValueError(f"utilities are {self.utilities}: name at least two finite numbers that do not fall, worst first")
        if self.utilities[0] == self.utilities[-1]:
            raise ValueError(f"utilities are all {self.utilities[0]}: every response would be worth the same")
        if self.loss_type not in ("cross_entropy", "wasserstein", "transport", "plane"):
            raise ValueError(f"loss_type is {self.loss_type!r}: use cross_entropy, wasserstein, transport or plane")
        if self.loss_type == "plane" and not len(self.helpful) == len(self.harm) == C:
            raise ValueError(
                f"there are {C} utilities, {len(self.helpful)} helpful and {len(self.harm)} harm: give one of each per category"
            )
        if self.kappa < 0 or self.epsilon <= 0:
            raise ValueError(f"kappa is {self.kappa} and epsilon is {self.epsilon}: they must be at least 0, and above 0")

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        rows = [replace(row, numbers={**row.numbers, "target": target_of(row, self.utilities)}) for row in rows]
        yield microbatches(rows, budget, lambda some: {"loss": float(sum(len(row.ids) for row in some))})

    def prepare(self, model: Any, step: list[Batch]) -> list[Batch]:
        model.utilities = tuple(map(float, self.utilities))  # the model is saved with what its categories are worth
        return step

    def loss(self, model: nn.Module, batch: Batch, crew: Crew) -> Losses:
        log_mu_SC = model.logits(batch.layout).log_softmax(-1)  # type: ignore[operator]
        target_SC = numbers_of(batch.rows, "target", log_mu_SC.device)
        loss_S = self.distance(log_mu_SC, target_SC)
        with torch.no_grad():
            mu_SC, count = log_mu_SC.exp(), float(len(log_mu_SC))
            worth_C = log_mu_SC.new_tensor(self.utilities)
            metrics = {
                "accuracy": (mu_SC.argmax(-1) == target_SC.argmax(-1)).float(),
                "cross_entropy": cross_entropy(log_mu_SC, target_SC),
                "wasserstein": wasserstein(mu_SC, target_SC),
                "rewards/error": ((mu_SC - target_SC) @ worth_C).abs(),
                "mean_reward": mu_SC @ worth_C,
            }
        return Losses({"loss": loss_S.sum()}, {name: (value_S.sum(), count) for name, value_S in metrics.items()})

    def distance(self, log_mu_SC: Tensor, target_SC: Tensor) -> Tensor:
        """d of each response, from log-probabilities."""
        if self.loss_type == "cross_entropy":
            return cross_entropy(log_mu_SC, target_SC)
        if self.loss_type == "plane":
            cost_CC = plane_cost(self.helpful, self.harm, self.kappa).to(log_mu_SC)
            return sinkhorn_divergence(log_mu_SC.exp(), target_SC, cost_CC, self.epsilon)
        return wasserstein(log_mu_SC.exp(), target_SC, self.utilities if self.loss_type == "transport" else None)


def target_of(row: Row, utilities: Sequence[float]) -> np.ndarray:
    """float32 [K, C]: each response's share of the categories."""
    worth_C, C, name = np.array(utilities, dtype=np.float64), len(utilities), row.key[:12] or "without a key"
    if "counts" in row.numbers:
        counts_KC = np.asarray(row.numbers["counts"], dtype=np.float64)
        if counts_KC.ndim != 2 or counts_KC.shape[1] != C:
            given = counts_KC.shape[-1] if counts_KC.ndim == 2 else "no"
            raise ValueError(f"row {name} has counts of {given} categories and there are {C} utilities: name one utility for each")
        if (counts_KC < 0).any() or (counts_KC.sum(1) <= 0).any():
            raise ValueError(f"row {name} has counts {counts_KC.tolist()}: they must be at least 0, and one of them above 0")
        return (counts_KC / counts_KC.sum(1, keepdims=True)).astype(np.float32)
    if "score" not in row.numbers and "label" not in row.numbers:
        raise ValueError(f"row {name} has no counts, score or label: it says nothing about categories")
    best, worst = worth_C[-1], worth_C[0]
    score_K = row.numbers["score"].astype(np.float64) if "score" in row.numbers else np.where(row.numbers["label"] > 0, best, worst)
    if (score_K < worst).any() or (score_K > best).any():
        ends = f"from {worst:g} to {best:g}"
        raise ValueError(f"row {name} has score {score_K.tolist()} and utilities go {ends}: name utilities around all scores")
    below_K = np.clip(np.searchsorted(worth_C, score_K, side="right") - 1, 0, C - 2)
    gap_K = worth_C[below_K + 1] - worth_C[below_K]
    up_K = np.divide(score_K - worth_C[below_K], gap_K, out=np.ones_like(score_K), where=gap_K > 0)
    target_KC = np.zeros((len(score_K), C), dtype=np.float32)
    target_KC[np.arange(len(score_K)), below_K] = 1 - up_K
    target_KC[np.arange(len(score_K)), below_K + 1] += up_K
    return target_KC
