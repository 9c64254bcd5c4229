"""Distances between distributions over C ordered categories, as losses of the first one.

    cross_entropy     - sum_i t_i log s_i                              blind to how far a category is from another
    wasserstein       sum_k gap_k |S_k - T_k|                          optimal transport on a line, exact
    sinkhorn          min over plans P of <P, cost> + eps KL(P | s t)  any cost, entropic, in the log domain
    sinkhorn_divergence  sinkhorn(s, t) - sinkhorn(s, s)/2 - sinkhorn(t, t)/2      0 where s = t, and least there

S and T are cumulative sums over the categories, worst first. On a line, where category i lies at x_i, the cost |x_i - x_j| moves
mass past each gap once, so gap_k = x_(k+1) - x_k: all 1 for the index cost |i - j|, differences of utilities for the cost
|r_i - r_j| (Villani, Topics in optimal transportation, 2003, section 2.2). Then |E_s r - E_t r| <= transport on the cost |r_i - r_j|
(Kantorovich and Rubinstein 1958): the error of an expected utility is bounded by the loss.

Transport to a category that one person picked is least where all mass lies on the median of the picks, not where the shares are
right; it needs the pooled shares of a response as its target. Cross-entropy needs no pooling.
Cuturi 2013, 1306.0895 (entropic transport); Feydy et al. 2018, 1810.08278 (the divergence without its bias).
Pure functions of float tensors. Legend: S rows, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def cross_entropy(log_s_SC: Tensor, t_SC: Tensor) -> Tensor:
    """[S], in nats, from log-probabilities (log_softmax of the logits, taken once)."""
    return -(t_SC * log_s_SC).sum(-1)


def wasserstein(s_SC: Tensor, t_SC: Tensor, positions: Sequence[float] | None = None) -> Tensor:
    """[S], exact transport cost |x_i - x_j|; positions are x, rising, default 0, 1, 2, ..."""
    ahead_SC = (s_SC - t_SC).cumsum(-1)[..., :-1]
    if positions is None:
        return ahead_SC.abs().sum(-1)
    gaps = [b - a for a, b in pairwise(positions)]
    if min(gaps) < 0:
        raise ValueError(f"positions {list(positions)} fall: order the categories from worst to best")
    return ahead_SC.abs() @ s_SC.new_tensor(gaps)


def sinkhorn(s_SC: Tensor, t_SC: Tensor, cost_CC: Tensor, epsilon: float = 0.05, iterations: int = 100) -> Tensor:
    """[S], entropic transport cost. Its gradient with respect to s is the dual potential, so it flows without unrolling.

    `epsilon` has the cost's unit; smaller is closer to exact transport and takes more iterations, about max(cost) / epsilon.
    """
    tiny = torch.finfo(s_SC.dtype).tiny
    log_s_SC, log_t_SC = s_SC.detach().clamp_min(tiny).log(), t_SC.detach().clamp_min(tiny).log()
    kernel_CC = -cost_CC / epsilon
    f_SC, g_SC = torch.zeros_like(log_s_SC), torch.zeros_like(log_t_SC)
    with torch.no_grad():
        for _ in range(iterations):
            f_SC = -torch.logsumexp(kernel_CC + (g_SC + log_t_SC)[..., None, :], -1)
            g_SC = -torch.logsumexp(kernel_CC + (f_SC + log_s_SC)[..., :, None], -2)
    # at the optimum the dual's value is <f, s> + <g, t>, and f is its gradient with respect to s
    return epsilon * ((f_SC * s_SC).sum(-1) + (g_SC * t_SC).sum(-1))


def sinkhorn_divergence(s_SC: Tensor, t_SC: Tensor, cost_CC: Tensor, epsilon: float = 0.05, iterations: int = 100) -> Tensor:
    """[S], at least 0, and 0 where s = t: entropic transport alone is least at another s, drawn together by the entropy."""
    cross_S = sinkhorn(s_SC, t_SC, cost_CC, epsilon, iterations)
    return cross_S - (_to_itself(s_SC, cost_CC, epsilon) + _to_itself(t_SC, cost_CC, epsilon)) / 2


def _to_itself(s_SC: Tensor, cost_CC: Tensor, epsilon: float, iterations: int = 30) -> Tensor:
    """sinkhorn(s, s) for a symmetric cost: one potential for both sides, found by averaged steps, which need few (Feydy)."""
    log_s_SC = s_SC.detach().clamp_min(torch.finfo(s_SC.dtype).tiny).log()
    f_SC = torch.zeros_like(log_s_SC)
    with torch.no_grad():
        for _ in range(iterations):
            f_SC = (f_SC - torch.logsumexp((f_SC + log_s_SC)[..., None, :] - cost_CC / epsilon, -1)) / 2
    return 2 * epsilon * (f_SC * s_SC).sum(-1)


def plane_cost(first: Sequence[float], second: Sequence[float], kappa: float = 1.0) -> Tensor:
    """[C, C] |x_i - x_j| + kappa |y_i - y_j|: categories of equal utility stay apart where they differ in kind."""
    x_C, y_C = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    return (x_C[:, None] - x_C).abs() + kappa * (y_C[:, None] - y_C).abs()
