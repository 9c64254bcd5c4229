"""Attention over a layout: one function, `attend`, for training streams and for steps over a key-value cache.

    q_THE, k_TGE, v_TGE --layout--> out_THE          CPU: flash kernels per piece, merged by log-sum-exp, own backward
    the same + Cache                                 keys and values are written in place, nothing is concatenated

`Layout` itself lives in layout.py and is found here too.

Legend: T tokens, H query heads, G key-value heads, E width of a head, X either heads, B slots, L length.

Left out: a fused kernel for trees on a GPU (there each span is one call of the public attention function).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from trueline.models.layout import Layout, Piece, common_prefix, tree_tokens

__all__ = ["Cache", "Layout", "attend", "common_prefix", "tree_tokens"]


@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer for `num_slots` sequences, contiguous per slot and head, written in place.

    The engine owns the bookkeeping: which slot is whose and how many tokens it holds. It passes both in with
    `Layout.cached(ids, slots, starts)`, then `decoder(layout, cache)` appends the new keys and values and attends to
    positions 0..own of the slot. What lies beyond is never read, so freeing a slot needs no work.
    Keep live slots consecutive (move the last one into a hole with `copy`): then a step reads the cache in place.
    """

    keys: tuple[Tensor, ...]
    """Per layer [B, G, L, E]."""
    values: tuple[Tensor, ...]

    @staticmethod
    def new(
        num_layers: int,
        num_slots: int,
        max_length: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> Cache:
        shape = (num_slots, kv_heads, max_length, head_dim)
        return Cache(
            *(tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)) for _ in range(2))
        )

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[0]

    @property
    def max_length(self) -> int:
        return self.keys[0].shape[2]

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Slots `targets` begin with the first `length` tokens of slot `source`: a shared prompt is computed once."""
        where = torch.tensor(list(targets), device=self.keys[0].device)
        for tensor_BGLE in (*self.keys, *self.values):
            tensor_BGLE[where, :, :length] = tensor_BGLE[source, :, :length]


def attend(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, cache: Cache | None = None, layer: int = 0
) -> Tensor:
    """Attention within the layout -> [T, H, E]. With a cache, writes k and v into it and attends to the slots."""
    if cache is not None:
        return _attend_cached(q_THE, k_TGE, v_TGE, layout, cache.keys[layer], cache.values[layer])
    if q_THE.device.type == "cpu":
        return _Attend.apply(q_THE, k_TGE, v_TGE, layout.pieces)
    return _attend_generic(q_THE, k_TGE, v_TGE, layout)


def _grouped(x_TXE: Tensor, groups: int) -> Tensor:
    """[T, heads, E] -> [T, G, heads of a group, E], a view."""
    return x_TXE.unflatten(1, (groups, -1))


class _Attend(torch.autograd.Function):
    """Attention piece by piece with the CPU's flash kernels, straight from the stream: nothing is gathered or padded.

    A query that belongs to two pieces (its own branch, and its prompt) gets both outputs merged by their log-sum-exps.
    The gradient needs no more than the merged output and log-sum-exp: softmax over the union is exp(score - merged),
    whatever piece a key is in, so each piece's backward kernel is handed the merged ones.

    Query heads that share a key head form a group, and its key head is repeated without a copy (stride 0): the kernels
    of torch before 2.13 read past the end when they are given fewer key heads than query heads.
    """

    @staticmethod
    def forward(ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, pieces: tuple[Piece, ...]) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        groups = 1 if q_THE.shape[1] == k_TGE.shape[1] else k_TGE.shape[1]
        out_THE, lse_TH = (
            torch.empty_like(q_THE),
            q_THE.new_empty(q_THE.shape[:2], dtype=torch.promote_types(q_THE.dtype, torch.float32)),
        )
        queries = [_grouped(x, groups) for x in (q_THE, out_THE, lse_TH[..., None])]
        keys = [_grouped(x, groups) for x in (k_TGE, v_TGE)]
        for piece in pieces:
            for q, out, lse1, k, v in zip(*map(piece.queries, queries), *map(piece.keys, keys), strict=True):
                lse, shape = lse1.squeeze(-1), (-1, q.shape[1], -1, -1)
                part, part_lse = kernel(q, k.expand(shape), v.expand(shape), 0.0, piece.causal)
                if piece.causal:  # every token is a query of exactly one causal piece, which comes before the others
                    out.copy_(part)
                    lse.copy_(part_lse)
                else:
                    merged = torch.logaddexp(lse, part_lse)
                    out.mul_((lse - merged).exp_()[..., None])
                    out.add_(part.mul_((part_lse - merged).exp_()[..., None]))
                    lse.copy_(merged)
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, out_THE, lse_TH)
        ctx.pieces, ctx.groups = pieces, groups
        return out_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q_THE, k_TGE, v_TGE, out_THE, lse_TH = ctx.saved_tensors
        sums = torch.empty_like(q_THE), torch.empty_like(k_TGE), torch.empty_like(v_TGE)
        queries = [_grouped(x, ctx.groups) for x in (grad_THE, q_THE, out_THE, lse_TH[..., None], sums[0])]
        keys = [_grouped(x, ctx.groups) for x in (k_TGE, v_TGE, sums[1], sums[2])]
        for piece in ctx.pieces:
            views = zip(*map(piece.queries, queries), *map(piece.keys, keys), strict=True)
            for grad, q, out, lse1, sum_q, k, v, sum_k, sum_v in views:
                shape = (-1, q.shape[1], -1, -1)
                parts = kernel(grad, q, k.expand(shape), v.expand(shape), out, lse1.squeeze(-1), 0.0, piece.causal)
                for total, part in zip((sum_q, sum_k, sum_v), parts, strict=True):
                    if total.shape != part.shape:  # all queries of a group reach its one key head
                        part = part.sum(1, keepdim=True)
                    if piece.causal:
                        total.copy_(part)
                    else:
                        total.add_(part)
        return *sums, None


def _attend_generic(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout) -> Tensor:
    """The same with public operations on any device: each span with its parent's keys before its own."""
    parts = []
    for span in layout.spans:
        own = slice(span.start, span.start + span.length)
        keys = [own]
        if span.parent >= 0:
            parent = layout.spans[span.parent]
            keys.insert(0, slice(parent.start, parent.start + parent.length))
        k, v = (torch.cat([x[key] for key in keys]).transpose(0, 1)[None] for x in (k_TGE, v_TGE))
        before = k.shape[2] - span.length
        mask = torch.ones(span.length, k.shape[2], dtype=torch.bool, device=k.device).tril(before) if before else None
        part = scaled_dot_product_attention(
            q_THE[own].transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def _attend_cached(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, keys_BGLE: Tensor, values_BGLE: Tensor
) -> Tensor:
    assert layout.slots is not None and layout.starts is not None
    longest = layout.max_length
    if longest > keys_BGLE.shape[2]:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit the cache of {keys_BGLE.shape[2]}; make max_length larger."
        )
    T, H, E = q_THE.shape
    G = k_TGE.shape[1]
    if all(span.length == 1 for span in layout.spans):
        first, count = layout.slots[0], len(layout.slots)
        consecutive = layout.slots == tuple(range(first, first + count))
        slots_B = (
            torch.arange(first, first + count, device=q_THE.device)
            if consecutive
            else torch.tensor(layout.slots, device=q_THE.device)
        )
        keys_BGLE[slots_B, :, layout.positions_T] = k_TGE.to(keys_BGLE.dtype)
        values_BGLE[slots_B, :, layout.positions_T] = v_TGE.to(values_BGLE.dtype)
        k_BGLE, v_BGLE = (
            (c[first : first + count] if consecutive else c[slots_B])[:, :, :longest] for c in (keys_BGLE, values_BGLE)
        )
        mask_BL = torch.arange(longest, device=q_THE.device) <= layout.positions_T[:, None]
        # the H / G queries of one key head stand in for a query length: no expansion of keys and values
        out = scaled_dot_product_attention(
            q_THE.view(T, G, H // G, E),
            k_BGLE.to(q_THE.dtype),
            v_BGLE.to(q_THE.dtype),
            attn_mask=mask_BL[:, None, None],
        )
        return out.reshape(T, H, E)
    pieces = []
    for span, slot, start in zip(layout.spans, layout.slots, layout.starts, strict=True):
        own, end = slice(span.start, span.start + span.length), start + span.length
        keys_BGLE[slot, :, start:end] = k_TGE[own].transpose(0, 1)
        values_BGLE[slot, :, start:end] = v_TGE[own].transpose(0, 1)
        mask = torch.ones(span.length, end, dtype=torch.bool, device=q_THE.device).tril(start) if start else None
        k_GLE, v_GLE = (c[slot, :, :end].to(q_THE.dtype) for c in (keys_BGLE, values_BGLE))
        part = scaled_dot_product_attention(
            q_THE[own].transpose(0, 1)[None],
            k_GLE[None],
            v_GLE[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        pieces.append(part[0].transpose(0, 1))
    return torch.cat(pieces)
