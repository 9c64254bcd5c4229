"""The decoder's two halves with hand-written gradients: fewer passes over memory than one autograd node per operation.

    qkv   x_TD -> RMSNorm -> q, k, v products -> QK-norm -> RoPE        (the attention itself is attention.py)
    mlp   x_TD -> RMSNorm -> gate, up -> SwiGLU -> down -> + x_TD

Both walk over blocks of rows small enough for a core's cache; the backward recomputes what is cheap (norms, SwiGLU)
and keeps what is not (products): 2 D + 2 F + 2 (H + G) E + G E floats per token and layer, and the attention's output.
Under bfloat16 autocast the products run in bfloat16; norms, rotations, the residual stream and the gradients of weights
stay in float32.

The decoder uses them where the family has these very parts and every projection is a plain `nn.Linear`. LayerNorm, partial
rotation, norms behind a half, other activations, and layers with an adapter go through modules.

Legend: T tokens, C tokens of a block, D width, F inner width, X heads (query or key), E width of a head, R = E / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Turn = tuple[Tensor, Tensor]


def blocks(T: int, device: torch.device) -> Iterator[slice]:
    """Row blocks: 512 rows on a CPU, everything at once elsewhere."""
    rows = 512 if device.type == "cpu" else max(T, 1)
    return (slice(i, min(i + rows, T)) for i in range(0, T, rows))


def product_dtype(x: Tensor) -> torch.dtype:
    """What products are computed in: autocast's choice, or the activations' own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def cast(product: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    """These in the products' type; asking first costs less than a call that changes nothing."""
    return tuple(x if x.dtype == product else x.to(product) for x in tensors)


def as_they_are(kind: str) -> AbstractContextManager[Any]:
    """No casts inside: autocast off where it is on. Entering it costs as much as a small product."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x) over the last dimension, and 1 / rms(x), both float32."""
    x = x.float()
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


def normalize_backward(grad: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """Gradient of `normalize`: scale (grad - normal <grad, normal> / width). Overwrites `grad`."""
    inner = (grad * normal).mean(-1, keepdim=True)
    return grad.addcmul_(normal, inner, value=-1).mul_(scale)


def turn_heads(x_CXE: Tensor, cos_CR: Tensor, sin_CR: Tensor, sign: float, out_CXE: Tensor) -> Tensor:
    """Rotates each pair (i, i + R) by its angle (sign 1) or back (sign -1) into `out_CXE`."""
    R = cos_CR.shape[1]
    cos, sin = cos_CR[:, None], sin_CR[:, None]
    first, second = x_CXE[..., :R], x_CXE[..., R:]
    torch.mul(first, cos, out=out_CXE[..., :R]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_CXE[..., R:]).addcmul_(first, sin, value=sign)
    return out_CXE


def accumulate(grad_OD: Tensor | None, grad_CO: Tensor, x_CD: Tensor) -> None:
    """grad_OD += grad_CO' x_CD, in float32 whatever the product's type. Nothing for a frozen weight."""
    if grad_OD is None:
        return
    if grad_CO.dtype == grad_OD.dtype:
        grad_OD.addmm_(grad_CO.T, x_CD)
    else:
        grad_OD.add_(grad_CO.T @ x_CD)


def zeros(weight: Tensor | None, needed: bool) -> Tensor | None:
    return torch.zeros_like(weight, dtype=torch.float32) if needed and weight is not None else None


def like(grad: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if grad is None or weight is None else grad.to(weight.dtype)


def mlp(x_TD: Tensor, norm_D: Tensor, eps: float, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """x + down(silu(gate(n)) * up(n)), n = RMSNorm(x)."""
    if torch.is_grad_enabled():
        return MLP.apply(x_TD, norm_D, eps, gate_FD, up_FD, down_DF)
    return _mlp(x_TD, norm_D, eps, gate_FD, up_FD, down_DF)


def _mlp(
    x_TD: Tensor, norm_D: Tensor, eps: float, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, kept: tuple[Tensor, ...] = ()
) -> Tensor:
    """`mlp` itself; where two tensors [T, F] are given, the products of gate and up are left in them."""
    product = product_dtype(x_TD)
    gate, up, down, norm = cast(product, gate_FD, up_FD, down_DF, norm_D)
    out_TD = torch.empty_like(x_TD)
    with as_they_are(x_TD.device.type):
        for c in blocks(x_TD.shape[0], x_TD.device):
            n_CD = cast(product, normalize(x_TD[c], eps)[0])[0].mul_(norm)
            gate_CF, up_CF = (
                torch.mm(n_CD, w.T, out=kept[i][c] if kept else None) for i, w in enumerate((gate, up))
            )
            act_CF = torch.nn.functional.silu(gate_CF, inplace=not kept).mul_(up_CF)
            if product == x_TD.dtype:
                torch.addmm(x_TD[c], act_CF, down.T, out=out_TD[c])
            else:
                torch.add(x_TD[c], act_CF @ down.T, out=out_TD[c])
    return out_TD


class MLP(torch.autograd.Function):
    """`mlp` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, norm_D: Tensor, eps: float, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor
    ) -> Tensor:
        ctx.product, ctx.eps = product_dtype(x_TD), eps
        gate_TF, up_TF = (x_TD.new_empty(x_TD.shape[0], gate_FD.shape[0], dtype=ctx.product) for _ in range(2))
        out_TD = _mlp(x_TD, norm_D, eps, gate_FD, up_FD, down_DF, (gate_TF, up_TF))
        ctx.save_for_backward(x_TD, norm_D, gate_FD, up_FD, down_DF, gate_TF, up_TF)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, gate_FD, up_FD, down_DF, gate_TF, up_TF = ctx.saved_tensors
        gate, up, down, norm = cast(ctx.product, gate_FD, up_FD, down_DF, norm_D)
        need = ctx.needs_input_grad
        grad_norm = zeros(norm_D, need[1])
        grad_gate, grad_up, grad_down = (zeros(w, n) for w, n in zip((gate_FD, up_FD, down_DF), need[3:], strict=True))
        out_TD = torch.empty_like(x_TD)
        for c in blocks(x_TD.shape[0], x_TD.device):
            grad_CD = grad_TD[c].to(ctx.product)
            gate_CF, up_CF = gate_TF[c], up_TF[c]
            silu_CF = torch.nn.functional.silu(gate_CF)
            if grad_down is not None:
                accumulate(grad_down, grad_CD, silu_CF * up_CF)
            grad_act_CF = grad_CD @ down
            grad_up_CF = silu_CF.mul_(grad_act_CF)
            grad_gate_CF = torch.ops.aten.silu_backward(grad_act_CF.mul_(up_CF), gate_CF)
            normal_CD, scale_C1 = normalize(x_TD[c], ctx.eps)
            if grad_gate is not None or grad_up is not None:
                n_CD = normal_CD.to(ctx.product) * norm
                accumulate(grad_gate, grad_gate_CF, n_CD)
                accumulate(grad_up, grad_up_CF, n_CD)
            grad_n_CD = torch.mm(grad_gate_CF, gate).addmm_(grad_up_CF, up).float()
            if grad_norm is not None:
                grad_norm += (grad_n_CD * normal_CD).sum(0)
            grad_x_CD = normalize_backward(grad_n_CD.mul_(norm_D), normal_CD, scale_C1)
            torch.add(grad_x_CD, grad_TD[c], out=out_TD[c])
        return (
            out_TD,
            like(grad_norm, norm_D),
            None,
            like(grad_gate, gate_FD),
            like(grad_up, up_FD),
            like(grad_down, down_DF),
        )


def qkv(
    x_TD: Tensor, norm_D: Tensor, eps: float, turn: Turn, width: int, q_norm_E: Tensor | None, k_norm_E: Tensor | None,
    *weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v [T, X, E] of RMSNorm(x), with QK-norm where its weights are given, q and k rotated.

    `weights` are the q, k, v matrices, then their biases (or None).
    """
    if torch.is_grad_enabled():
        return QKV.apply(x_TD, norm_D, eps, turn, width, q_norm_E, k_norm_E, *weights)
    q, k, v, *_ = _qkv(x_TD, norm_D, eps, turn, width, q_norm_E, k_norm_E, weights)
    return q, k, v


def _qkv(
    x_TD: Tensor, norm_D: Tensor, eps: float, turn: Turn, width: int, q_norm_E: Tensor | None, k_norm_E: Tensor | None,
    weights: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:  # fmt: skip
    """q, k, v, and the products [T, X E] that q and k were made from."""
    T, product = x_TD.shape[0], product_dtype(x_TD)
    norm, *matrices = cast(product, norm_D, *(w for w in weights[:3] if w is not None))
    with as_they_are(x_TD.device.type):
        raw = [x_TD.new_empty(T, m.shape[0], dtype=product) for m in matrices]
        turned = [torch.empty_like(r).view(T, -1, width) for r in raw[:2]]
        for c in blocks(T, x_TD.device):
            n_CD = cast(product, normalize(x_TD[c], eps)[0])[0].mul_(norm)
            for out, matrix, bias in zip(raw, matrices, weights[3:], strict=True):
                torch.mm(n_CD, matrix.T, out=out[c])
                if bias is not None:
                    out[c].add_(bias)
            for r, t, head_norm in zip(raw[:2], turned, (q_norm_E, k_norm_E), strict=True):
                heads_CXE = r[c].view(-1, t.shape[1], width)
                if head_norm is not None:
                    heads_CXE = normalize(heads_CXE, eps)[0].mul_(head_norm)
                if product == torch.float32:
                    turn_heads(heads_CXE, turn[0][c], turn[1][c], 1.0, t[c])
                else:
                    heads_CXE = heads_CXE.float()
                    t[c] = turn_heads(heads_CXE, turn[0][c], turn[1][c], 1.0, torch.empty_like(heads_CXE))
    return *turned, raw[2].view(T, -1, width), raw[0], raw[1]


class QKV(torch.autograd.Function):
    """`qkv` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        norm_D: Tensor,
        eps: float,
        turn: Turn,
        width: int,
        q_norm_E: Tensor | None,
        k_norm_E: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.product, ctx.eps, ctx.width = product_dtype(x_TD), eps, width
        *out, raw_q, raw_k = _qkv(x_TD, norm_D, eps, turn, width, q_norm_E, k_norm_E, weights)
        keep = (raw_q, raw_k) if q_norm_E is not None else (None, None)
        ctx.save_for_backward(x_TD, norm_D, *turn, q_norm_E, k_norm_E, *weights, *keep)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_TXE: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, norm_D, cos_TR, sin_TR, q_norm_E, k_norm_E, *rest = ctx.saved_tensors
        weights, raw = rest[:6], rest[6:]
        need = ctx.needs_input_grad
        matrices, norm = [w.to(ctx.product) for w in weights[:3]], norm_D.to(ctx.product)
        grad_norm, grad_q_norm, grad_k_norm = (
            zeros(w, n) for w, n in zip((norm_D, q_norm_E, k_norm_E), (need[1], need[5], need[6]), strict=True)
        )
        grad_weights = [zeros(w, n) for w, n in zip(weights, need[7:], strict=True)]
        out_TD = torch.empty_like(x_TD)
        for c in blocks(x_TD.shape[0], x_TD.device):
            grads_CO = []
            for grad_TXE, r, head_norm, grad_head_norm in zip(
                grads_TXE[:2], raw, (q_norm_E, k_norm_E), (grad_q_norm, grad_k_norm), strict=True
            ):
                back_CXE = grad_TXE[c].float()
                back_CXE = turn_heads(
                    back_CXE,
                    cos_TR[c],
                    sin_TR[c],
                    -1.0,
                    torch.empty_like(back_CXE, memory_format=torch.contiguous_format),
                )
                if head_norm is not None:
                    normal_CXE, scale_CX1 = normalize(r[c].view(back_CXE.shape), ctx.eps)
                    if grad_head_norm is not None:
                        grad_head_norm += (back_CXE * normal_CXE).sum((0, 1))
                    back_CXE = normalize_backward(back_CXE.mul_(head_norm), normal_CXE, scale_CX1)
                grads_CO.append(back_CXE.flatten(1).to(ctx.product))
            grads_CO.append(grads_TXE[2][c].flatten(1).to(ctx.product))
            normal_CD, scale_C1 = normalize(x_TD[c], ctx.eps)
            n_CD = normal_CD.to(ctx.product) * norm
            for grad_CO, grad_matrix, grad_bias in zip(grads_CO, grad_weights[:3], grad_weights[3:], strict=True):
                accumulate(grad_matrix, grad_CO, n_CD)
                if grad_bias is not None:
                    grad_bias += grad_CO.sum(0)
            grad_n_CD = (
                torch.mm(grads_CO[0], matrices[0])
                .addmm_(grads_CO[1], matrices[1])
                .addmm_(grads_CO[2], matrices[2])
                .float()
            )
            if grad_norm is not None:
                grad_norm += (grad_n_CD * normal_CD).sum(0)
            out_TD[c] = normalize_backward(grad_n_CD.mul_(norm_D), normal_CD, scale_C1)
        given = (norm_D, q_norm_E, k_norm_E, *weights)
        sums = [like(g, w) for g, w in zip((grad_norm, grad_q_norm, grad_k_norm, *grad_weights), given, strict=True)]
        return (out_TD, sums[0], None, None, None, *sums[1:])
