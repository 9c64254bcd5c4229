"""Calibration: does a stated probability come true that often?

    confidence, correct --reliability--> Reliability(bins, ECE, Brier)        --null_ece--> what chance alone would give
    score gaps of a reward model --pair_calibration--> PairCalibration(accuracy, ECE, temperature, accuracy by gap)
    right or wrong, groups --share_right--> Interval, with prompts as the unit

A reward model says P(chosen beats rejected) = sigmoid(gap). Its verdict on a pair is the response it scores higher, its
confidence sigmoid(|gap|), and it is right when the gap is positive (a gap of zero is right by half).
ECE = sum_b n_b/N |accuracy_b - confidence_b|; it is biased up in small samples (perfect predictor, N = 200, 15 equal-width
bins: 0.061), so compare it with `null_ece`. Legend: N predictions, B bins, C classes.
Left out: drawing (`trueline.evals.diagram`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueline.evals.interval import Groups, Values, normal_mean, wilson
from trueline.evals.result import Interval, to_plain


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions with similar confidence (or score gap)."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence, or mean gap. NaN in an empty bin."""
    accuracy: float
    """Share that was right. NaN in an empty bin."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability curve and its summary."""

    bins: tuple[Bin, ...]
    ece: float
    brier: float
    """Mean (confidence - correct)^2."""
    n: int
    mass: str
    """ "equal width" or "equal mass" bins."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


@dataclass(frozen=True, kw_only=True)
class PairCalibration:
    """How far a reward model's score gaps can be believed."""

    accuracy: Interval
    nll: float
    """Mean -log sigmoid(gap): log 2 = 0.693 is a coin."""
    reliability: Reliability
    null_ece: float
    """Mean ECE of a perfectly calibrated model with these confidences: less than this is not measurable."""
    temperature: float
    """T that minimises the mean of -log sigmoid(gap / T); above 1 the model is over-confident. Infinite: worse than a coin."""
    by_gap: tuple[Bin, ...]
    """Accuracy by size of the gap, equal-mass bins."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def reliability(confidence: Values, correct: Values, *, bins: int = 15, equal_mass: bool = False) -> Reliability:
    """Bins of confidence in [0, 1] against how often it was right. `correct` is 0 or 1, or 0.5 for a tie."""
    confidence_N, correct_N = _checked(confidence, correct)
    edges = _edges(confidence_N, bins, equal_mass)
    found = _bins(confidence_N, correct_N, edges)
    ece = sum(b.count * abs(b.accuracy - b.confidence) for b in found if b.count) / len(confidence_N)
    brier = float(((confidence_N - correct_N) ** 2).mean())
    mass = "equal mass" if equal_mass else "equal width"
    return Reliability(bins=found, ece=ece, brier=brier, n=len(confidence_N), mass=mass)


def null_ece(confidence: Values, *, bins: int = 15, equal_mass: bool = False, draws: int = 200, seed: int = 0) -> float:
    """Mean ECE if every confidence were exactly true: outcomes are drawn from the confidences themselves."""
    confidence_N, _ = _checked(confidence, confidence)
    edges = _edges(confidence_N, bins, equal_mass)
    bin_N = _bin_numbers(confidence_N, edges)
    rng = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        right_N = rng.random(len(confidence_N)) < confidence_N
        # n_b |accuracy_b - confidence_b| is the absolute sum of (right - confidence) in the bin
        total += np.abs(np.bincount(bin_N, weights=right_N - confidence_N, minlength=len(edges) - 1)).sum()
    return float(total / draws / len(confidence_N))


def pair_calibration(gaps: Values, groups: Groups = None, *, bins: int = 15, gap_bins: int = 5, seed: int = 0) -> PairCalibration:
    """Calibration of a reward model from its gaps: score of the preferred response minus score of the other, per pair.

    `groups`: the prompt of each pair; pairs of one prompt are not independent, and the interval of the accuracy goes by prompts.
    """
    gap_N = np.asarray(gaps, dtype=np.float64)
    if gap_N.ndim != 1 or len(gap_N) == 0 or not np.isfinite(gap_N).all():
        raise ValueError(
            f"pair_calibration needs a list of finite score gaps, got shape {gap_N.shape}: score some pairs first"
        )
    correct_N = np.where(gap_N > 0, 1.0, np.where(gap_N < 0, 0.0, 0.5))
    size_N = np.abs(gap_N)
    confidence_N = 1 / (1 + np.exp(-size_N))
    return PairCalibration(
        accuracy=share_right(correct_N, groups),
        nll=float(np.logaddexp(0, -gap_N).mean()),
        reliability=reliability(confidence_N, correct_N, bins=bins),
        null_ece=null_ece(confidence_N, bins=bins, seed=seed),
        temperature=fit_temperature(gap_N),
        by_gap=_bins(size_N, correct_N, _edges(size_N, gap_bins, equal_mass=True)),
    )


def share_right(correct: Values, groups: Groups = None) -> Interval:
    """Share of right verdicts: Wilson's interval of as many independent ones as the scatter of prompts is worth.

        n = p (1 - p) / se^2, at most N;  se clustered by prompt      (the design effect is N / n: Kish 1965; Korn and Graubard 1998)

    Where the scatter says nothing (all right, all wrong, or alike in every prompt) a prompt counts as one. `Interval.n` is the number
    of prompts.
    """
    correct_N = np.asarray(correct, dtype=np.float64)
    if groups is None or len(set(groups)) == len(correct_N):
        return wilson(float(correct_N.sum()), len(correct_N))
    clustered = normal_mean(correct_N, groups)
    variance = clustered.se**2  # NaN of one prompt
    worth = clustered.estimate * (1 - clustered.estimate) / variance if variance > 0 else float(clustered.n)
    n = max(1, min(len(correct_N), int(worth)))
    return replace(wilson(clustered.estimate * n, n), estimate=clustered.estimate, n=clustered.n, method="wilson, over prompts")


def accuracy_by_gap(gaps: Values, *, bins: int = 5) -> tuple[Bin, ...]:
    """Accuracy of a reward model by the size of its score gap, in bins that hold equally many pairs."""
    gap_N = np.asarray(gaps, dtype=np.float64)
    correct_N = np.where(gap_N > 0, 1.0, np.where(gap_N < 0, 0.0, 0.5))
    return _bins(np.abs(gap_N), correct_N, _edges(np.abs(gap_N), bins, equal_mass=True))


def fit_temperature(gaps: Values) -> float:
    """T > 0 that minimises the mean of -log sigmoid(gap / T), by Newton's method on 1/T (the loss is convex in it).

    Infinite when no positive 1/T helps (the model is no better than a coin); 0 when every gap is positive (any sharper is better).
    """
    gap_N = np.asarray(gaps, dtype=np.float64)
    if gap_N.mean() <= 0:  # slope at 1/T = 0 is -mean(gap)/2
        return math.inf
    if (gap_N >= 0).all():
        return 0.0
    low, high = 0.0, 1.0 / np.abs(gap_N).mean()
    while _slope(gap_N, high) < 0:
        low, high = high, 2 * high
    inverse = (low + high) / 2
    for _ in range(100):
        slope = _slope(gap_N, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        right_N = _sigmoid(gap_N * inverse)
        curvature = float((gap_N**2 * right_N * (1 - right_N)).mean())
        step = inverse - slope / curvature if curvature > 0 else low
        step = step if low < step < high else (low + high) / 2  # a Newton step that leaves the bracket is a bisection
        if abs(step - inverse) <= 1e-12 * inverse:
            break
        inverse = step
    return 1 / inverse


def _slope(gap_N: np.ndarray, inverse: float) -> float:
    """d/d(1/T) of mean -log sigmoid(gap/T)."""
    return float(-(gap_N * _sigmoid(-gap_N * inverse)).mean())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _checked(confidence: Values, correct: Values) -> tuple[np.ndarray, np.ndarray]:
    confidence_N, correct_N = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence_N.ndim != 1 or confidence_N.shape != correct_N.shape or len(confidence_N) == 0:
        raise ValueError(
            f"confidence and outcome must match one to one, got {confidence_N.shape} and {correct_N.shape}"
        )
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError("confidence must lie between 0 and 1: pass probabilities, not logits")
    return confidence_N, correct_N


def _edges(values_N: np.ndarray, bins: int, equal_mass: bool) -> np.ndarray:
    """bins + 1 increasing edges. Equal mass: quantiles, equal ones merged. Equal width: of [0, 1]."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not equal_mass:
        return np.linspace(0, 1, bins + 1)
    edges = np.unique(np.quantile(values_N, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0]])


def _bin_numbers(values_N: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin b holds edges[b] <= value < edges[b+1]; the last one holds its upper edge too."""
    return np.clip(np.searchsorted(edges, values_N, side="right") - 1, 0, len(edges) - 2)


def _bins(values_N: np.ndarray, correct_N: np.ndarray, edges: np.ndarray) -> tuple[Bin, ...]:
    B = len(edges) - 1
    bin_N = _bin_numbers(values_N, edges)
    counts = np.bincount(bin_N, minlength=B)
    values = np.bincount(bin_N, weights=values_N, minlength=B)
    corrects = np.bincount(bin_N, weights=correct_N, minlength=B)
    return tuple(
        Bin(
            low=float(edges[b]), high=float(edges[b + 1]), count=int(counts[b]),
            confidence=float(values[b] / counts[b]) if counts[b] else math.nan,
            accuracy=float(corrects[b] / counts[b]) if counts[b] else math.nan,
        )
        for b in range(B)
    )  # fmt: skip
