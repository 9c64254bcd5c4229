"""The language-model head: log-probabilities of the scored tokens, without ever holding all their logits.

    hidden_ND --chunks of rows--> hidden_CD x weight_VD -> logits_CV -> logps_N, correct_N, entropy_N

Forward and backward walk over chunks of C rows. The forward keeps one log-normaliser per token and the backward computes
a chunk's logits once more, unless all probabilities together are small enough to keep. A loss that weighs all tokens
equally (next-token, SFT) can say so: then the forward computes the gradient of the sum while a chunk's probabilities are
at hand, and the backward only scales it. Under bfloat16 autocast the products run in bfloat16, the softmax in float32.

Legend: N scored tokens, D width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from trueline.models.fused import accumulate, like, product_dtype, zeros


class TokenScores(NamedTuple):
    """One entry per scored token, in the layout's order."""

    logps_N: Tensor
    """log softmax(logits / temperature) of the target, float32, with gradient."""
    correct_N: Tensor
    """True where no token is more likely than the target; no gradient."""
    entropy_N: Tensor
    """Entropy of the predicted distribution in nats; no gradient."""


def token_logps(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    cap: float | None = None,
    equal_weights: bool = False,
    chunk_bytes: int = 0,
) -> TokenScores:
    """Scores each target by the hidden state that predicts it.

    `cap` bends the logits smoothly into (-cap, cap), before the temperature: Gemma 2's final soft cap, 2408.00118.
    `equal_weights` promises a loss that is a multiple of logps_N.sum(): one product of four is saved in training. A
    broken promise costs time, never correctness. `chunk_bytes` bounds the logits held at a time, and the probabilities
    kept for the backward pass; 0 takes 64 MB on a CPU and 256 MB elsewhere, and at least 64 rows.
    """
    on_cpu, row_bytes = hidden_ND.device.type == "cpu", 4 * weight_VD.shape[0]
    limit = chunk_bytes or (64 << 20 if on_cpu else 256 << 20)
    rows = max(1 if chunk_bytes else 64, limit // row_bytes)
    if on_cpu and not chunk_bytes:
        rows = min(rows, 256)  # products are at full speed from there on, and the softmax stays in cache
    early = equal_weights and cap is None
    keep = not early and cap is None and len(targets_N) * row_bytes <= limit
    needs_gradient = torch.is_grad_enabled()
    return TokenScores(*_Head.apply(
        hidden_ND, weight_VD, targets_N, temperature, cap, rows, early and needs_gradient, keep and needs_gradient,
    ))  # fmt: skip


def entropies(
    hidden_ND: Tensor, weight_VD: Tensor, *, temperature: float = 1.0, cap: float | None = None, chunk_bytes: int = 64 << 20
) -> Tensor:
    """Entropy [N] of the predicted distributions in nats, with gradient: for a bonus, which few losses have. It costs the head's
    products once more; a chunk's logits are computed again in the backward pass."""

    def of_chunk(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
        logits_CV = (hidden_CD @ weight_VD.T).float()
        logits_CV = logits_CV if cap is None else (logits_CV / cap).tanh() * cap
        logps_CV = (logits_CV / temperature).log_softmax(1)
        return -(logps_CV.exp() * logps_CV).sum(1)

    rows = max(1, chunk_bytes // (4 * weight_VD.shape[0]))
    parts = [checkpoint(of_chunk, part_CD, weight_VD, use_reentrant=False) for part_CD in hidden_ND.split(rows)]
    return torch.cat(parts)


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap tanh(logits / cap), in place; without a cap the logits as they are."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float, cap: float | None) -> Tensor:
    logits_CV = soft_cap((hidden_CD @ weight_VD.T).float(), cap)
    return logits_CV if temperature == 1 else logits_CV.div_(temperature)


class _Gradients:
    """Gradients of hidden states and weight, chunk by chunk; either may be unwanted."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, product: torch.dtype, needed: tuple[bool, ...]) -> None:
        self.weight = weight_VD.to(product)
        self.hidden = torch.empty_like(hidden_ND) if needed[0] else None
        self.weight_sum = zeros(weight_VD, needed[1])

    def add(self, slope_CV: Tensor, hidden_CD: Tensor, c: slice) -> None:
        slope_CV = slope_CV.to(self.weight.dtype)
        if self.hidden is not None:
            if self.hidden.dtype == slope_CV.dtype:
                torch.mm(slope_CV, self.weight, out=self.hidden[c])
            else:
                self.hidden[c] = slope_CV @ self.weight
        accumulate(self.weight_sum, slope_CV, hidden_CD)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        cap: float | None,
        rows: int,
        early: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.product, ctx.temperature, ctx.cap, ctx.rows = product_dtype(hidden_ND), temperature, cap, rows
        early, keep = (wanted and any(ctx.needs_input_grad) for wanted in (early, keep))
        kept: list[Tensor] = []
        grads = _Gradients(hidden_ND, weight_VD, ctx.product, ctx.needs_input_grad if early else (False, False))
        logps_N, entropy_N, normalizers_N = (hidden_ND.new_empty(len(targets_N), dtype=torch.float32) for _ in range(3))
        correct_N = torch.empty_like(targets_N, dtype=torch.bool)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for i in range(0, len(targets_N), rows):
                c = slice(i, i + rows)
                hidden_CD = hidden_ND[c].to(ctx.product)
                logits_CV = _logits(hidden_CD, grads.weight, temperature, cap)
                largest_C1 = logits_CV.amax(1, keepdim=True)
                logits_CV -= largest_C1  # 0 at the most likely token
                target_C = logits_CV.gather(1, targets_N[c, None]).squeeze(1)
                odds_CV = logits_CV.exp()
                total_C = odds_CV.sum(1)
                log_total_C = total_C.log()
                torch.sub(target_C, log_total_C, out=logps_N[c])
                torch.ge(target_C, 0, out=correct_N[c])
                torch.sub(log_total_C, logits_CV.mul_(odds_CV).sum(1) / total_C, out=entropy_N[c])
                torch.add(log_total_C, largest_C1.squeeze(1), out=normalizers_N[c])
                if early:
                    slope_CV = odds_CV.div_((total_C * -temperature)[:, None])
                    slope_CV.scatter_add_(1, targets_N[c, None], torch.full_like(target_C[:, None], 1 / temperature))
                    grads.add(slope_CV, hidden_CD, c)
                elif keep:
                    kept.append(odds_CV.div_(total_C[:, None]))
        ctx.early, ctx.kept = early, kept
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, normalizers_N)
        ctx.grads = grads if early else None
        ctx.mark_non_differentiable(correct_N, entropy_N)
        return logps_N, correct_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, normalizers_N = ctx.saved_tensors
        if ctx.early and len(grad_N) and bool((grad_N == grad_N[0]).all()):
            parts = [None if g is None else g * grad_N[0] for g in (ctx.grads.hidden, ctx.grads.weight_sum)]
            return like(parts[0], hidden_ND), like(parts[1], weight_VD), None, None, None, None, None, None
        grads = _Gradients(hidden_ND, weight_VD, ctx.product, ctx.needs_input_grad)
        for number, i in enumerate(range(0, len(grad_N), ctx.rows)):
            c = slice(i, i + ctx.rows)
            hidden_CD = hidden_ND[c].to(ctx.product)
            scale_C1, bend_CV = grad_N[c, None].float() / ctx.temperature, None
            if ctx.kept:
                slope_CV = ctx.kept[number] * -scale_C1
            else:
                slope_CV = _logits(hidden_CD, grads.weight, ctx.temperature, ctx.cap)
                if ctx.cap is not None:
                    bend_CV = 1 - (slope_CV * (ctx.temperature / ctx.cap)) ** 2  # tanh' = 1 - tanh^2
                slope_CV.sub_(normalizers_N[c, None]).exp_().mul_(-scale_C1)
            slope_CV.scatter_add_(1, targets_N[c, None], scale_C1)
            if bend_CV is not None:
                slope_CV.mul_(bend_CV)
            grads.add(slope_CV, hidden_CD, c)
        return grads.hidden, like(grads.weight_sum, weight_VD), None, None, None, None, None, None
