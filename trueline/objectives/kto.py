"""KTO, Kahneman-Tversky optimisation: single responses, each called desirable or not; no pairs.

    r(x, y) = log pi(y|x) - log pi_ref(y|x)                            log-probabilities summed over response tokens
    z0 = max(0, mean over the step of r(x, y'))                        y' answers another prompt; no gradient
    l = desirable_weight   * (1 - sigmoid(beta (r - z0)))              where y is desirable
    l = undesirable_weight * (1 - sigmoid(beta (z0 - r)))              where it is not
    L = sum of l / number of responses

Ethayarajh et al., 2402.01306, equations 7 and 8. z0 stands for KL(pi || pi_ref): what the policy gains on any text, against which
a gain on this one is felt. It is one number per optimizer step, from the policy as it is before the step, so the loss is the same
however the step is cut into microbatches. A label between 0 and 1 (a share of votes) weighs the two losses.
With n_D desirable and n_U other responses the paper wants n_D desirable_weight / (n_U undesirable_weight) between 1 and 4/3.
Simplified: y' is drawn once for the run, from all rows of other prompts, so that the reference need not be kept; the paper shifts
the responses of a microbatch by one and means over that microbatch.

Legend: S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueline.models.attention import Layout
from trueline.objectives.base import Batch, Budget, Losses, microbatches
from trueline.objectives.mismatched import with_mismatched
from trueline.objectives.pairs import numbers_of, policy_and_ratios, with_reference_logps
from trueline.protocols import Crew
from trueline.records import Rating, Row


def only(row: Row, k: int, **numbers: float) -> Row:
    """The k-th sequence of a row, with its numbers and more of them."""
    kept = {name: values[k : k + 1] for name, values in row.numbers.items()}
    more = {name: np.array([value], dtype=np.float32) for name, value in numbers.items()}
    return replace(row, ids=row.ids[k : k + 1], scored=row.scored[k : k + 1], numbers=kept | more)


@dataclass(frozen=True, kw_only=True)
class KTO:
    """Single responses labelled desirable or not, against a frozen reference."""

    beta: float = 0.1
    """How fast a gain saturates; lower lets the policy go farther from the reference."""
    desirable_weight: float = 1.0
    """Weight of a desirable response."""
    undesirable_weight: float = 1.0
    """Weight of an undesirable one."""

    verb: ClassVar[str] = "kto"
    record: ClassVar[type[Rating]] = Rating
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 5e-7, "warmup_ratio": 0.1}
    arrangement: ClassVar[str] = (
        "every row has a second response, one to another prompt: it is not trained on, the reference point is measured on it"
    )
    citation: ClassVar[str] = (
        "Ethayarajh et al. KTO: model alignment as prospect theoretic optimization. https://arxiv.org/abs/2402.01306"
    )

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}: it must be above 0")
        if min(self.desirable_weight, self.undesirable_weight) < 0:
            weights = f"{self.desirable_weight} and {self.undesirable_weight}"
            raise ValueError(f"desirable_weight and undesirable_weight are {weights}: they must be at least 0")

    def arrange(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Every row with its mismatched response, before training, so that the reference scores both then."""
        for row in rows:
            if "label" not in row.numbers:
                name = row.key[:12] or "without a key"
                raise ValueError(f"row {name} has no label: kto needs true (desirable) or false for every response")
        return with_mismatched(rows) if any(len(row.ids) == 1 for row in rows) else rows

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return with_reference_logps(self.arrange(rows), crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield microbatches(rows, budget, lambda some: {"loss": float(len(some))})

    def prepare(self, model: Any, step: list[Batch]) -> list[Batch]:
        trained, device = model.training, step[0].layout.ids_T.device
        model.eval()  # dropout would make the policy less likely than the reference
        gain, rows = 0.0, [row for batch in step for row in batch.rows]
        for batch in step:
            foreign = [only(row, 1) for row in batch.rows]
            answered = replace(batch, rows=foreign, layout=Layout.tree(foreign).to(device))
            gain += float(policy_and_ratios(model, answered)[1].sum())
        model.train(trained)
        z0, wanted = max(0.0, gain / len(rows)), sum(float(row.numbers["label"][0]) for row in rows)
        ready, both = [], 0 < wanted < len(rows)
        for batch in step:
            own = []
            for row in batch.rows:
                label = float(row.numbers["label"][0])
                contrast = label / wanted - (1 - label) / (len(rows) - wanted) if both else 0.0
                own.append(only(row, 0, reference_point=z0, contrast=contrast))
            ready.append(replace(batch, rows=own, layout=Layout.tree(own).to(device)))
        return ready

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        logps_S, ratio_S = policy_and_ratios(model, batch)
        names = ("label", "reference_point", "contrast")
        label_S, z0_S, contrast_S = (numbers_of(batch.rows, name, ratio_S.device) for name in names)
        loss_S = self.response_loss(ratio_S, z0_S, label_S)
        with torch.no_grad():
            reward_S, wanted, unwanted = self.beta * ratio_S, float(label_S.sum()), float((1 - label_S).sum())
            metrics = {
                "rewards/chosen": ((reward_S * label_S).sum(), wanted),
                "rewards/rejected": ((reward_S * (1 - label_S)).sum(), unwanted),
                "rewards/margins": ((reward_S * contrast_S).sum(), float(contrast_S.abs().sum()) / 2),
                "logps/chosen": ((logps_S * label_S).sum(), wanted),
                "logps/rejected": ((logps_S * (1 - label_S)).sum(), unwanted),
                "kl": (z0_S.sum(), float(len(z0_S))),
            }
        return Losses({"loss": loss_S.sum()}, metrics)

    def response_loss(self, ratio_S: Tensor, z0_S: Tensor, label_S: Tensor) -> Tensor:
        """The loss of each response, from log pi / pi_ref, the reference point, and 1 for desirable."""
        gain_S = self.beta * (ratio_S - z0_S)
        wanted_S = self.desirable_weight * torch.sigmoid(-gain_S)
        return label_S * wanted_S + (1 - label_S) * self.undesirable_weight * torch.sigmoid(gain_S)
