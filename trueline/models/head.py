"""The language-model head: log-probabilities of the scored tokens, without ever holding all their logits.

    hidden_TD --rows predicted_by_N--> hidden_CD x weight_VD -> logits_CV -> logps_N, correct_N, entropy_N

Forward and backward walk over chunks of c rows; the forward keeps one log-normaliser per token, the backward computes a
chunk's logits once more. Under bfloat16 autocast the products run in bfloat16, the softmax in float32.

Legend: T positions, N scored tokens, D width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueline.models.attention import Layout


class TokenScores(NamedTuple):
    """One entry per scored token, in the layout's order."""

    logps_N: Tensor
    """log softmax(logits / temperature) of the target, float32, with gradient."""
    correct_N: Tensor
    """True where no token is more likely than the target; no gradient."""
    entropy_N: Tensor
    """Entropy of the predicted distribution in nats; no gradient."""


def token_logps(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    where: Layout | tuple[Tensor, Tensor],
    *,
    temperature: float = 1.0,
    chunk_bytes: int = 8 << 20,
) -> TokenScores:
    """Scores the tokens that `where` (a Layout, or predicted_by_N and targets_N) names."""
    predicted_by_N, targets_N = (where.predicted_by_N, where.targets_N) if isinstance(where, Layout) else where
    rows = max(1, chunk_bytes // (4 * weight_VD.shape[0]))
    return TokenScores(*_Head.apply(hidden_TD, weight_VD, predicted_by_N, targets_N, temperature, rows))


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_CV = (hidden_CD @ weight_VD.T).float()
    return logits_CV if temperature == 1 else logits_CV.div_(temperature)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        predicted_by_N: Tensor,
        targets_N: Tensor,
        temperature: float,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden_TD.device.type
        ctx.product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TD.dtype
        ctx.temperature, ctx.rows = temperature, rows
        hidden_ND = hidden_TD.index_select(0, predicted_by_N).to(ctx.product)
        weight = weight_VD.to(ctx.product)
        logps, correct, entropy, normalizers = [], [], [], []
        with torch.autocast(device, enabled=False):
            for hidden_CD, targets_C in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
                logits_CV = _logits(hidden_CD, weight, temperature)
                target_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
                largest_C = logits_CV.amax(1)
                odds_CV = (logits_CV - largest_C[:, None]).exp_()
                total_C = odds_CV.sum(1)
                normalizer_C = largest_C + total_C.log()
                mean_C = torch.bmm(odds_CV[:, None], logits_CV[:, :, None]).view(-1) / total_C
                logps.append(target_C - normalizer_C)
                correct.append(target_C >= largest_C)
                entropy.append(normalizer_C - mean_C)
                normalizers.append(normalizer_C)
        if not logps:
            empty_N = hidden_ND.new_zeros(0, dtype=torch.float32)
            logps, correct, entropy, normalizers = [empty_N], [empty_N.bool()], [empty_N.clone()], [empty_N]
        ctx.save_for_backward(hidden_TD, weight_VD, predicted_by_N, targets_N, torch.cat(normalizers))
        out = torch.cat(logps), torch.cat(correct), torch.cat(entropy)
        ctx.mark_non_differentiable(out[1], out[2])
        return out

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, predicted_by_N, targets_N, normalizers_N = ctx.saved_tensors
        weight = weight_VD.to(ctx.product)
        grad_hidden = torch.zeros_like(hidden_TD) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        chunks = zip(*(x.split(ctx.rows) for x in (predicted_by_N, targets_N, normalizers_N, grad_N)), strict=True)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            for rows_C, targets_C, normalizers_C, grad_C in chunks:
                hidden_CD = hidden_TD.index_select(0, rows_C).to(ctx.product)
                slope_CV = _logits(hidden_CD, weight, ctx.temperature).sub_(normalizers_C[:, None]).exp_()
                scale_C = grad_C.float() / ctx.temperature
                slope_CV.mul_(-scale_C[:, None]).scatter_add_(1, targets_C[:, None], scale_C[:, None])
                slope = slope_CV.to(ctx.product)
                if grad_hidden is not None:
                    grad_hidden.index_add_(0, rows_C, (slope @ weight).to(grad_hidden.dtype))
                if grad_weight is not None:
                    if ctx.product == torch.float32:
                        grad_weight.addmm_(slope.T, hidden_CD)
                    else:
                        grad_weight += slope.T @ hidden_CD
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None, None, None
