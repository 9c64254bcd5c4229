"""pass@k: how likely one of k responses is right, from n >= k responses of which some are.

    pass@k = mean over prompts of 1 - C(n - c, k) / C(n, k)        Chen et al. 2021, arXiv 2107.03374, equation 1

n responses to a prompt, c of them right. The formula counts the sets of k of the n that hold no right one; unlike 1 - (1 - c/n)^k it is
unbiased. Left out: temperature, which pass@k depends on (say it beside the figure).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trueline.evals.interval import bootstrap_mean, wilson
from trueline.evals.result import Interval


def pass_at_k(n: int, c: int, k: int) -> float:
    """For one prompt. ValueError: not 0 <= c <= n and 1 <= k <= n."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} responses, {c} of them right: k must lie between 1 and the number of responses")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(right: Sequence[Sequence[float]], k: int, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Over prompts, with an interval over prompts. `right[p]` has 1 for each right response to prompt p, else 0."""
    found_P = np.array([pass_at_k(len(row), sum(score > 0 for score in row), k) for row in right])
    interval = bootstrap_mean(found_P, level=level, seed=seed)
    if interval.low == interval.high and interval.estimate in (0, 1):  # a bootstrap of equal numbers has no width
        return wilson(interval.estimate * interval.n, interval.n, level=level)
    return interval
