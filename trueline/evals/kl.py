"""KL divergence of a policy from its reference, from samples of the policy.

    log-probs of the same drawn tokens under both --sequence_kl--> mean log-ratio with its standard error
    --kl_report--> k1, k2 and k3 side by side

With lr = log ref(x) - log policy(x) and x drawn from the policy (Schulman's estimators):
    k1 = -lr                 unbiased, noisy, may be negative
    k2 = lr^2 / 2            biased, low variance, never negative (up to 25% off at KL 0.5)
    k3 = exp(lr) - 1 - lr    unbiased, never negative; overflows where ref >> policy, so lr is clamped and the clamps are counted
A sequence's KL is the sum over its tokens: k1 sums exactly to the log-ratio of the sequence; k2 and k3 are summed token by
token (each token's term estimates the KL given its prefix), since exp of a whole sequence's log-ratio has no useful variance.
The samples must be drawn untruncated at the temperature at which both log-probs are taken.
Left out: KL as a loss or a reward (objectives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.evals.interval import Groups, Values, normal_mean
from trueline.evals.result import Interval, to_plain

ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True, kw_only=True)
class KL:
    """KL(policy || reference) per sequence, in nats, by three estimators."""

    k1: Interval
    k2: Interval
    k3: Interval
    per_token: float
    """k1 divided by the mean number of tokens."""
    clamped: int
    """Tokens whose log-ratio was clamped for k3."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def kl_terms(
    policy_logps: Values, reference_logps: Values, estimator: str = "k1", *, clamp: float = 20.0
) -> np.ndarray:
    """The estimator's term for every drawn item (token or sequence). lr above `clamp` is clamped in k3 only."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}: use one of {', '.join(ESTIMATORS)}")
    policy, reference = np.asarray(policy_logps, dtype=np.float64), np.asarray(reference_logps, dtype=np.float64)
    if policy.shape != reference.shape:
        raise ValueError(
            f"log-probs of policy {policy.shape} and reference {reference.shape} differ in shape: score the same tokens"
        )
    lr = reference - policy
    if estimator == "k1":
        return -lr
    if estimator == "k2":
        return lr**2 / 2
    lr = np.minimum(lr, clamp)
    return np.expm1(lr) - lr


def sequence_kl(policy_logps: Values, reference_logps: Values, prompts: Groups = None) -> Interval:
    """Mean of log policy(y) - log reference(y) over samples y of the policy: summed log-probs of one response per entry."""
    return normal_mean(kl_terms(policy_logps, reference_logps), prompts)


def kl_report(
    policy_logps: Sequence[np.ndarray],
    reference_logps: Sequence[np.ndarray],
    prompts: Groups = None,
    *,
    clamp: float = 20.0,
) -> KL:
    """All three estimators from per-token log-probs: one array per response, token by token."""
    if len(policy_logps) != len(reference_logps):
        raise ValueError(
            f"{len(policy_logps)} responses under the policy, {len(reference_logps)} under the reference: score the same ones"
        )
    pairs = list(zip(policy_logps, reference_logps, strict=True))
    found = {
        name: normal_mean([float(kl_terms(policy, ref, name, clamp=clamp).sum()) for policy, ref in pairs], prompts)
        for name in ESTIMATORS
    }
    tokens = sum(len(policy) for policy, _ in pairs)
    clamped = sum(int((np.asarray(ref) - np.asarray(policy) > clamp).sum()) for policy, ref in pairs)
    per_token = found["k1"].estimate * len(pairs) / max(1, tokens)
    return KL(k1=found["k1"], k2=found["k2"], k3=found["k3"], per_token=per_token, clamped=clamped)


def discrete_kl(p: Values, q: Values) -> float:
    """Exact sum of p log(p/q) over a listed set of outcomes; outcomes with p = 0 contribute 0."""
    p_V, q_V = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p_V.shape != q_V.shape:
        raise ValueError(
            f"distributions over different sets, {p_V.shape} and {q_V.shape}: list the same outcomes in both"
        )
    held = p_V > 0
    if (q_V[held] <= 0).any():
        return float("inf")
    return float((p_V[held] * np.log(p_V[held] / q_V[held])).sum())
