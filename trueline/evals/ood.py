"""Prompts unlike those that a reward model was trained on, by its own features.

    features of training prompts --fit--> Reference      its score of other prompts: the higher, the stranger
    score(v) = (v - m)' S^-1 (v - m) - (v - m)' diag(S)^-1 (v - m)

The simplified relative Mahalanobis distance (Bai et al., 2204.05862, section on out-of-distribution detection; Ren et al.,
2106.09022): what is far in single features is far for any text that is long or odd; what remains is far in how features go together.
S is shrunk towards its diagonal, as there may be fewer prompts than features: (1 - shrinkage) S + shrinkage diag(S). With shrinkage 1
every score is 0.

    auroc(inside, outside)       how often a strange prompt has the higher score
    Reference.threshold          the score that a share of held-out prompts of the reference exceeds
The prompts that a reference was fitted on score lower than new ones of the same kind: hold some out to compare with.
Left out: where features come from (`trueline.models.scorer.prompt_features`). Legend: N prompts, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trueline.evals.interval import Values

LEAST = 1e-6
"""Smallest variance of a feature, as a share of the mean variance: features that never change would divide by zero."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the features of known prompts look like."""

    mean_D: np.ndarray
    precision_DD: np.ndarray
    """Inverse of the shrunk covariance."""
    variance_D: np.ndarray
    n: int

    def score(self, features_ND: np.ndarray) -> np.ndarray:
        """Relative Mahalanobis distance [N]; negative values are common."""
        return self.mahalanobis(features_ND) - (self._centred(features_ND) ** 2 / self.variance_D).sum(1)

    def mahalanobis(self, features_ND: np.ndarray) -> np.ndarray:
        """(v - m)' S^-1 (v - m) alone [N]."""
        centred_ND = self._centred(features_ND)
        return np.einsum("nd,de,ne->n", centred_ND, self.precision_DD, centred_ND, optimize=True)

    def _centred(self, features_ND: np.ndarray) -> np.ndarray:
        features_ND = np.asarray(features_ND, dtype=np.float64)
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean_D):
            raise ValueError(f"the reference has {len(self.mean_D)} features, and these have the shape {features_ND.shape}")
        return features_ND - self.mean_D

    def threshold(self, held_out_ND: np.ndarray, share: float = 0.05) -> float:
        """The score that this share of held-out reference prompts exceeds: above it a prompt is flagged."""
        return float(np.quantile(self.score(held_out_ND), 1 - share))


def fit(features_ND: np.ndarray, *, shrinkage: float = 0.05) -> Reference:
    """Mean and covariance of the reference's features."""
    features_ND = np.asarray(features_ND, dtype=np.float64)
    if features_ND.ndim != 2 or len(features_ND) < 2 or not np.isfinite(features_ND).all():
        raise ValueError(f"a reference needs finite features of at least two prompts, got the shape {features_ND.shape}")
    if not 0 < shrinkage < 1:
        raise ValueError(f"shrinkage is {shrinkage}: it must lie between 0 and 1 (with 1 every score would be 0)")
    mean_D = features_ND.mean(0)
    covariance_DD = (features_ND - mean_D).T @ (features_ND - mean_D) / (len(features_ND) - 1)
    variance_D = covariance_DD.diagonal().copy()
    floor = LEAST * variance_D.mean()
    if floor <= 0:
        raise ValueError("the reference's prompts all have the same features: name more of them, and different ones")
    variance_D += floor
    shrunk_DD = (1 - shrinkage) * covariance_DD
    shrunk_DD[np.diag_indices_from(shrunk_DD)] = variance_D
    return Reference(mean_D=mean_D, precision_DD=np.linalg.inv(shrunk_DD), variance_D=variance_D, n=len(features_ND))


def auroc(inside: Values, outside: Values) -> float:
    """Probability that one of `outside` has a higher score than one of `inside`, ties counting half; 0.5 is a coin."""
    inside_N, outside_M = np.sort(np.asarray(inside, dtype=np.float64)), np.asarray(outside, dtype=np.float64)
    if not len(inside_N) or not len(outside_M):
        raise ValueError("auroc needs scores of both kinds")
    below = np.searchsorted(inside_N, outside_M, side="left") + np.searchsorted(inside_N, outside_M, side="right")
    return float(below.mean() / (2 * len(inside_N)))
