"""How far predicted distributions over ordered categories can be believed.

    shares_NC, target_NC, utilities --distribution_quality--> log loss, distance, error of the expected utility, calibration
    shares of two responses --preference--> P(a is put in a better category than b), ties counting half
    shares of preferred and other responses --category_pair_calibration--> accuracy, by gap of the expected utility; calibration

A target is the share of people who put the response in each category: one-hot for a single pick. The confidence of a prediction is
its largest share, and it is right as often as people chose that category.
Legend: N responses, P pairs, C categories, worst first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.evals.calibration import Bin, Reliability, accuracy_by_gap, null_ece, reliability
from trueline.evals.interval import normal_mean, wilson
from trueline.evals.result import Interval, to_plain

LEAST = 1e-12
"""Shares below it count as this much in a logarithm."""


@dataclass(frozen=True, kw_only=True)
class DistributionQuality:
    """Predicted against observed shares of the same responses."""

    cross_entropy: Interval
    """Mean of - sum target log share, in nats."""
    entropy: float
    """Of the targets: no prediction has a lower cross-entropy."""
    wasserstein: Interval
    """Mean distance in categories."""
    utility_error: Interval
    """Mean |expected utility - target's expected utility|."""
    utility_bias: Interval
    """Mean of expected utility - target's expected utility."""
    accuracy: Interval
    """How often people chose the category with the largest predicted share."""
    reliability: Reliability
    """Largest share against how often people chose that category."""
    predicted: tuple[float, ...]
    """Mean share of each category, predicted ..."""
    observed: tuple[float, ...]
    """... and observed."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


@dataclass(frozen=True, kw_only=True)
class CategoryPairs:
    """How far a model of categories can be believed on pairs of responses."""

    accuracy: Interval
    """How often the preferred response has the higher expected utility."""
    nll: float
    """Mean -log of `preference` for the preferred response: log 2 = 0.693 is a coin."""
    reliability: Reliability
    """Of `preference`."""
    null_ece: float
    """Mean ECE of a perfectly calibrated model with these confidences: less than this is not measurable."""
    by_gap: tuple[Bin, ...]
    """Accuracy by size of the gap of the expected utilities, equal-mass bins."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def distribution_quality(
    shares: np.ndarray, targets: np.ndarray, utilities: Sequence[float], *, bins: int = 15
) -> DistributionQuality:
    """Compare predicted shares [N, C] with target shares [N, C]; each row of both sums to 1."""
    shares_NC, target_NC = _checked(shares), _checked(targets)
    worth_C = np.asarray(utilities, dtype=np.float64)
    if shares_NC.shape != target_NC.shape or shares_NC.shape[1] != len(worth_C):
        raise ValueError(f"shares {shares_NC.shape}, targets {target_NC.shape} and {len(worth_C)} utilities do not match")
    log_target_NC = np.log(np.maximum(target_NC, LEAST))
    off_N = (shares_NC - target_NC) @ worth_C
    top_N = shares_NC.argmax(1)
    right_N = target_NC[np.arange(len(top_N)), top_N]
    return DistributionQuality(
        cross_entropy=normal_mean(-(target_NC * np.log(np.maximum(shares_NC, LEAST))).sum(1)),
        entropy=float(-(target_NC * log_target_NC).sum(1).mean()),
        wasserstein=normal_mean(np.abs((shares_NC - target_NC).cumsum(1)[:, :-1]).sum(1)),
        utility_error=normal_mean(np.abs(off_N)),
        utility_bias=normal_mean(off_N),
        accuracy=normal_mean(right_N),
        reliability=reliability(np.minimum(shares_NC.max(1), 1.0), right_N, bins=bins),
        predicted=tuple(shares_NC.mean(0).tolist()),
        observed=tuple(target_NC.mean(0).tolist()),
    )


def preference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """P(a draw of the first is in a better category) + P(same category) / 2, [P], from shares [P, C]."""
    first_PC, second_PC = _checked(first), _checked(second)
    worse_PC = np.cumsum(second_PC, 1) - second_PC / 2  # mass of the second below each category, its own by half
    return np.clip((first_PC * worse_PC).sum(1), 0, 1)


def category_pair_calibration(chosen: np.ndarray, rejected: np.ndarray, utilities: Sequence[float], *, bins: int = 15) -> CategoryPairs:
    """From shares [P, C] of the preferred and the other response. The gap of two expected utilities is no log-odds: what is said of a
    pair is `preference`."""
    worth_C = np.asarray(utilities, dtype=np.float64)
    gap_P = (_checked(chosen) - _checked(rejected)) @ worth_C
    right_P = preference(chosen, rejected)
    correct_P = np.where(right_P > 0.5, 1.0, np.where(right_P < 0.5, 0.0, 0.5))
    confidence_P = np.maximum(right_P, 1 - right_P)
    return CategoryPairs(
        accuracy=wilson(float((gap_P > 0).sum() + 0.5 * (gap_P == 0).sum()), len(gap_P)),
        nll=float(-np.log(np.maximum(right_P, LEAST)).mean()),
        reliability=reliability(confidence_P, correct_P, bins=bins),
        null_ece=null_ece(confidence_P, bins=bins),
        by_gap=accuracy_by_gap(gap_P),
    )


def _checked(shares: np.ndarray) -> np.ndarray:
    shares_NC = np.asarray(shares, dtype=np.float64)
    if shares_NC.ndim != 2 or not len(shares_NC) or (shares_NC < 0).any() or (np.abs(shares_NC.sum(1) - 1) > 1e-3).any():
        raise ValueError(f"shares of shape {shares_NC.shape} should be rows of numbers that sum to 1")
    return shares_NC
