"""Confidence intervals and tests on prompts: Wilson, bootstrap, paired difference, sign test.

    wilson(wins, n)                      a share of independent yes/no outcomes
    normal_mean(values, groups)          mean and standard error, clustered by prompt
    bootstrap_mean(values, groups)       percentile bootstrap; the prompt is the unit that is drawn
    paired_difference(a, b, groups)      mean of a - b on the same prompts
    crossed_mean(values_SP)              every training seed answers every prompt: both vary
    sign_test(wins, losses)              exact two-sided p-value of wins = losses

Responses to one prompt are not independent, so every function takes `groups`: one label per value, the same label for values
of the same prompt. Legend: N values, P prompts, R resamples, S training seeds.
Left out: unpaired two-sample tests, since everything here answers the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from trueline.evals.pooled import Spread, range_quantile
from trueline.evals.result import Interval

Values = Sequence[float] | np.ndarray
Groups = Sequence[Hashable] | np.ndarray | None


def wilson(wins: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share wins/n. Half wins (ties) are allowed, but the bootstrap suits them better.

    centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)   (Wilson 1927)
    """
    if n < 1 or not 0 <= wins <= n:
        raise ValueError(f"wilson needs 0 <= wins <= n and n >= 1, got wins={wins}, n={n}: count the outcomes first")
    z = _quantile(level)
    share = wins / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    se = math.sqrt(share * (1 - share) / n)
    low, high = max(0.0, centre - half) if wins else 0.0, min(1.0, centre + half) if wins < n else 1.0
    return Interval(estimate=share, low=low, high=high, se=se, level=level, n=n, method="wilson")


def normal_mean(values: Values, groups: Groups = None, *, level: float = 0.95) -> Interval:
    """Mean with the standard error clustered by group: sqrt(P/(P-1) sum_p (sum of p's deviations)^2) / N."""
    values_N, group_N, P = _units(values, groups)
    mean = float(values_N.mean())
    deviations_P = np.bincount(group_N, weights=values_N - mean, minlength=P)
    se = math.sqrt(P / (P - 1) * float((deviations_P**2).sum())) / len(values_N) if P > 1 else math.nan
    z = _quantile(level)
    return Interval(estimate=mean, low=mean - z * se, high=mean + z * se, se=se, level=level, n=P, method="normal")


def bootstrap_mean(
    values: Values, groups: Groups = None, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of the mean; whole prompts are drawn with replacement, all their values with them."""
    values_N, group_N, P = _units(values, groups)
    means_R = _resampled_means(values_N, group_N, P, resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return Interval(
        estimate=float(values_N.mean()), low=float(low), high=float(high), se=float(means_R.std(ddof=1)),
        level=level, n=P, method="bootstrap over prompts",
    )  # fmt: skip


def paired_difference(
    a: Values, b: Values, groups: Groups = None, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of a - b, value by value on the same prompts, with a bootstrap interval over prompts."""
    if len(a) != len(b):
        raise ValueError(
            f"paired values must match one to one, got {len(a)} and {len(b)}: score both on the same prompts"
        )
    difference_N = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return bootstrap_mean(difference_N, groups, level=level, resamples=resamples, seed=seed)


def crossed_mean(
    values_SP: Sequence[Sequence[float]] | np.ndarray, *, level: float = 0.95, spread: Spread | None = None, among: int = 2
) -> Interval:
    """Mean over training seeds and prompts, every seed having answered every prompt: [S, P] -> Interval of the method's mean.

        Y_sp = m + seed_s + prompt_p + rest_sp       Var(mean) = var_s(Y_s.)/S + var_p(Y_.p)/P - var(rest)/(S P)

    (crossed random effects; the rest is in both of the first terms, so it is taken off once). Seeds and prompts have a Student's
    quantile each, by their own degrees of freedom, and half^2 is the sum of both parts' squares (Graybill and Wang 1980): one quantile
    by Satterthwaite's rule covers 87 to 90 % where two seeds differ more than prompts do. `spread` is what other methods say of seeds
    (evals.pooled); the larger of it and var_s counts. `among`: so many methods are compared with one another, and the intervals of
    all differences shall hold together.
    With one seed the interval is over prompts only, and `method` says so.
    """
    y_SP = np.atleast_2d(np.asarray(values_SP, dtype=np.float64))
    if y_SP.ndim != 2 or y_SP.shape[1] < 2 or not np.isfinite(y_SP).all():
        raise ValueError(f"crossed_mean needs finite values of at least 2 prompts as [seeds, prompts], got shape {y_SP.shape}")
    S, P = y_SP.shape
    mean, of_seed_S, of_prompt_P = float(y_SP.mean()), y_SP.mean(1), y_SP.mean(0)
    trained = S > 1 and (spread is None or math.isfinite(spread.dof))
    of_seeds, seeds_dof = (float(of_seed_S.var(ddof=1)), S - 1.0) if trained else (0.0, math.inf)
    if trained and spread is not None:
        of_seeds, seeds_dof = max(of_seeds, spread.variance), spread.dof
    from_prompts, from_seeds = float(of_prompt_P.var(ddof=1)) / P, of_seeds / S
    rest_SP = y_SP - of_seed_S[:, None] - of_prompt_P[None, :] + mean
    twice = float((rest_SP**2).sum()) / ((S - 1) * (P - 1)) / (S * P) if trained else 0.0
    se = math.sqrt(max(from_prompts + from_seeds - twice, from_prompts, from_seeds))
    quantiles = [
        student_quantile(level, dof) if among <= 2 else range_quantile(level, among, dof)
        for dof in (P - 1, seeds_dof)
    ]  # fmt: skip
    half = math.hypot(quantiles[0] * math.sqrt(from_prompts), quantiles[1] * math.sqrt(max(from_seeds - twice, 0.0)))
    method = "crossed over seeds and prompts" if trained else f"over prompts, {'of one seed' if S == 1 else 'nothing was trained'}"
    method += f", {among} methods together" if among > 2 else ""
    return Interval(estimate=mean, low=mean - half, high=mean + half, se=se, level=level, n=P, method=method)


def student_quantile(level: float, dof: float) -> float:
    """t with P(|T| <= t) = level. With T = sqrt(dof) tan(theta) the density of theta is proportional to cos(theta)^(dof - 1)."""
    normal = _quantile(level)
    if dof > 1000:  # equal to 0.2 %
        return normal
    if dof < 1:
        raise ValueError(f"Student's distribution needs at least 1 degree of freedom here, got {dof}")
    theta_G = np.linspace(0, math.pi / 2, 4001)
    density_G = np.cos(theta_G) ** (dof - 1)
    mass_G = np.concatenate([[0.0], np.cumsum((density_G[1:] + density_G[:-1]) / 2)])
    return float(math.sqrt(dof) * math.tan(np.interp(level, mass_G / mass_G[-1], theta_G)))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of `wins` against `losses` under a fair coin; ties are left out before the call."""
    if wins < 0 or losses < 0:
        raise ValueError(
            f"sign_test needs counts >= 0, got wins={wins}, losses={losses}: leave ties out, do not subtract"
        )
    n, least = wins + losses, min(wins, losses)
    # sum of binomial weights in log space: 2^-n underflows for n > 1,000
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(least + 1)
    ]
    return min(1.0, 2 * sum(math.exp(term) for term in logs))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}: write 0.95 for 95%")
    return NormalDist().inv_cdf(0.5 + level / 2)


def _units(values: Values, groups: Groups) -> tuple[np.ndarray, np.ndarray, int]:
    """Checked values, the index of each value's prompt, and the number of prompts."""
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0:
        raise ValueError(
            f"a mean needs at least one value in one dimension, got shape {values_N.shape}: nothing was scored"
        )
    if not np.isfinite(values_N).all():
        bad = int(np.flatnonzero(~np.isfinite(values_N))[0])
        raise ValueError(f"value {bad} is {values_N[bad]}: drop or repair scores that are not finite before averaging")
    if groups is None:
        return values_N, np.arange(len(values_N)), len(values_N)
    if len(groups) != len(values_N):
        raise ValueError(f"{len(groups)} group labels for {len(values_N)} values: give one label per value")
    number: dict[Hashable, int] = {}
    group_N = np.array([number.setdefault(label, len(number)) for label in groups])
    return values_N, group_N, len(number)


def _resampled_means(values_N: np.ndarray, group_N: np.ndarray, P: int, resamples: int, seed: int) -> np.ndarray:
    sums_P = np.bincount(group_N, weights=values_N, minlength=P)
    counts_P = np.bincount(group_N, minlength=P).astype(np.float64)
    # equal prompts are drawn together, which is the same distribution: wins, ties and losses are three kinds, not P prompts
    kinds_U2, equal_U = np.unique(np.stack([sums_P, counts_P], 1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, 4_000_000 // len(equal_U)))  # at most about 32 MB of draws at once
    means = []
    for start in range(0, resamples, block):
        drawn_RU = rng.multinomial(P, equal_U / P, size=min(block, resamples - start)).astype(np.float64)
        sums_R2 = drawn_RU @ kinds_U2
        means.append(sums_R2[:, 0] / sums_R2[:, 1])
    return np.concatenate(means)
