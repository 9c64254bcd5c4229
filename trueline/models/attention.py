"""Attention over a layout: one function, `attend`, for training streams and for steps over a key-value cache.

    q_THE, k_TGE, v_TGE --layout--> out_THE          CPU: flash kernels per piece, merged by log-sum-exp, own backward
    the same + Cache                                 keys and values are written into the blocks of tables, and read from there

A `Rule` says how products become weights: their scale, a soft cap, a sliding window. `Layout` itself lives in layout.py
and is found here too.

Legend: T tokens, H query heads, G key-value heads, E width of a head, X either heads, B sequences, L positions, R queries, K keys.

Left out: a fused kernel for trees on a GPU (there each span is one call of the public attention function) and for soft
caps (their scores are formed, block by block).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from trueline.models.cache import Cache
from trueline.models.layout import WINDOW_ROWS, Layout, Piece, common_prefix, tree_tokens

__all__ = ["Layout", "Rule", "attend", "common_prefix", "tree_tokens"]


class Rule(NamedTuple):
    """How products of queries and keys become the weights of values."""

    scale: float | None = None
    """Factor of the products; None is 1 / sqrt(E)."""
    cap: float | None = None
    """Bends products smoothly into (-cap, cap) before the softmax: cap tanh(product / cap) (Gemma 2, 2408.00118)."""
    window: int | None = None
    """A query sees itself and the `window - 1` tokens before it; None: all of them."""


def attend(
    q_THE: Tensor,
    k_TGE: Tensor,
    v_TGE: Tensor,
    layout: Layout,
    cache: Cache | None = None,
    layer: int = 0,
    rule: Rule = Rule(),  # noqa: B008 - immutable
) -> Tensor:
    """Attention within the layout -> [T, H, E]. With a cache, writes k and v into it and attends to what the tables hold."""
    if cache is not None:
        return _attend_cached(q_THE, k_TGE, v_TGE, layout, cache, layer, rule)
    if q_THE.device.type == "cpu" and rule.cap is None:
        return _Attend.apply(q_THE, k_TGE, v_TGE, layout.pieces_within(rule.window), rule)
    return _attend_generic(q_THE, k_TGE, v_TGE, layout, rule)


def _band(rows: int, columns: int, offset: int, window: int | None, device: torch.device) -> Tensor:
    """True where query r sees key c, bool [R, K]: the first query stands `offset` positions after the first key."""
    seen_RK = torch.ones(rows, columns, dtype=torch.bool, device=device).tril(offset)
    return seen_RK if window is None else seen_RK.triu(offset - window + 1)


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
    def forward(ctx: Any, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, pieces: tuple[Piece, ...], rule: Rule) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        groups = 1 if q_THE.shape[1] == k_TGE.shape[1] else k_TGE.shape[1]
        out_THE, lse_TH = (
            torch.empty_like(q_THE),
            q_THE.new_empty(q_THE.shape[:2], dtype=torch.promote_types(q_THE.dtype, torch.float32)),
        )
        queries = [_grouped(x, groups) for x in (q_THE, out_THE, lse_TH[..., None])]
        keys = [_grouped(x, groups) for x in (k_TGE, v_TGE)]
        for piece in pieces:
            mask = _mask(piece, rule, q_THE)
            for q, out, lse1, k, v in zip(*map(piece.queries, queries), *map(piece.keys, keys), strict=True):
                lse, shape = lse1.squeeze(-1), (-1, q.shape[1], -1, -1)
                k, v = k.expand(shape), v.expand(shape)
                part, part_lse = kernel(q, k, v, 0.0, piece.causal, attn_mask=mask, scale=rule.scale)
                if piece.own:  # every token is a query of exactly one such piece, which comes before the others
                    out.copy_(part)
                    lse.copy_(part_lse)
                else:
                    merged = torch.logaddexp(lse, part_lse)
                    out.mul_((lse - merged).exp_()[..., None])
                    out.add_(part.mul_((part_lse - merged).exp_()[..., None]))
                    lse.copy_(merged)
        ctx.save_for_backward(q_THE, k_TGE, v_TGE, out_THE, lse_TH)
        ctx.pieces, ctx.groups, ctx.rule = pieces, groups, rule
        return out_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        q_THE, k_TGE, v_TGE, out_THE, lse_TH = ctx.saved_tensors
        banded = any(piece.band is not None for piece in ctx.pieces)  # then a key can be in several pieces of its span
        empty = torch.zeros_like if banded else torch.empty_like
        sums = empty(q_THE), empty(k_TGE), empty(v_TGE)
        queries = [_grouped(x, ctx.groups) for x in (grad_THE, q_THE, out_THE, lse_TH[..., None], sums[0])]
        keys = [_grouped(x, ctx.groups) for x in (k_TGE, v_TGE, sums[1], sums[2])]
        for piece in ctx.pieces:
            mask = _mask(piece, ctx.rule, q_THE)
            views = zip(*map(piece.queries, queries), *map(piece.keys, keys), strict=True)
            for grad, q, out, lse1, sum_q, k, v, sum_k, sum_v in views:
                shape = (-1, q.shape[1], -1, -1)
                k, v, lse = k.expand(shape), v.expand(shape), lse1.squeeze(-1)
                parts = kernel(grad, q, k, v, out, lse, 0.0, piece.causal, attn_mask=mask, scale=ctx.rule.scale)
                for total, part in zip((sum_q, sum_k, sum_v), parts, strict=True):
                    if total.shape != part.shape:  # all queries of a group reach its one key head
                        part = part.sum(1, keepdim=True)
                    if piece.own and not banded:
                        total.copy_(part)
                    else:
                        total.add_(part)
        return *sums, None, None


def _mask(piece: Piece, rule: Rule, q_THE: Tensor) -> Tensor | None:
    """What a piece's kernel adds to the products: minus infinity where the window hides a key."""
    if piece.band is None:
        return None
    seen_RK = _band(piece.query_length, piece.key_length, piece.band, rule.window, q_THE.device)
    return torch.zeros_like(seen_RK, dtype=q_THE.dtype).masked_fill_(~seen_RK, float("-inf"))


def _attend_generic(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, rule: Rule = Rule()) -> Tensor:  # noqa: B008
    """The same with public operations on any device: each span with its parent's keys before its own."""
    parts = []
    for span in layout.spans:
        own = slice(span.start, span.start + span.length)
        keys = [own]
        if span.parent >= 0:
            parent = layout.spans[span.parent]
            keys.insert(0, slice(parent.start, parent.start + parent.length))
        k_1GKE, v_1GKE = (torch.cat([x[key] for key in keys]).transpose(0, 1)[None] for x in (k_TGE, v_TGE))
        parts.append(_attend_span(q_THE[own], k_1GKE, v_1GKE, rule))
    return torch.cat(parts)


def _attend_span(q_RHE: Tensor, k_1GKE: Tensor, v_1GKE: Tensor, rule: Rule) -> Tensor:
    """The last R of K consecutive tokens over all K -> [R, H, E]; in blocks where scores are formed or a window is felt."""
    R, before = len(q_RHE), k_1GKE.shape[2] - len(q_RHE)
    window = rule.window if rule.window is not None and rule.window < before + R else None
    rows = R if window is None and rule.cap is None else WINDOW_ROWS[1]
    parts = []
    for first in range(0, R, rows):
        last = min(R, first + rows)
        low = 0 if window is None else max(0, before + first - window + 1)
        k, v = k_1GKE[:, :, low : before + last], v_1GKE[:, :, low : before + last]
        offset = before + first - low
        mask = _band(last - first, k.shape[2], offset, window, k.device) if offset or window or rule.cap else None
        part = _weigh(q_RHE[first:last].transpose(0, 1)[None], k, v, mask, rule)
        parts.append(part[0].transpose(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weigh(q_BHRE: Tensor, k_BGKE: Tensor, v_BGKE: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Softmax attention [B, H, R, E] under a mask [R, K] or [B, 1, 1, K], True where seen; without one it is causal."""
    H, G = q_BHRE.shape[1], k_BGKE.shape[1]
    if rule.cap is None:
        return scaled_dot_product_attention(
            q_BHRE, k_BGKE, v_BGKE, attn_mask=mask, is_causal=mask is None, scale=rule.scale, enable_gqa=H != G
        )
    assert mask is not None
    q_BGXRE = q_BHRE.unflatten(1, (G, -1)) * (rule.scale or q_BHRE.shape[-1] ** -0.5)
    products = (q_BGXRE @ k_BGKE[:, :, None].transpose(-1, -2)).float()
    seen = mask if mask.dim() == 2 else mask.unsqueeze(2)  # per query and key, or also per sequence
    products = ((products / rule.cap).tanh() * rule.cap).masked_fill(~seen, float("-inf"))
    return (products.softmax(-1).to(v_BGKE.dtype) @ v_BGKE[:, :, None]).flatten(1, 2)


def _attend_cached(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, cache: Cache, layer: int, rule: Rule
) -> Tensor:
    """Sequences with one new token together, each of the others alone."""
    assert layout.slots_T is not None and layout.tables_SN is not None
    cache.write(layer, layout.slots_T, k_TGE, v_TGE)
    out_THE = torch.empty_like(q_THE)
    H, E = q_THE.shape[1:]
    G, size = k_TGE.shape[1], cache.block_size
    if len(layout.steps_B):
        low, seen_B11L = layout.seen_in_cache(rule.window, size)
        tables_BN = layout.tables_SN[layout.step_spans, low // size : low // size + seen_B11L.shape[3] // size]
        k_BGLE, v_BGLE = cache.read(layer, tables_BN, q_THE.dtype)
        # the H / G queries of one key head stand in for a query length: no expansion of keys and values
        q_BGXE = q_THE[layout.steps_B].view(-1, G, H // G, E)
        out_THE[layout.steps_B] = _weigh(q_BGXE, k_BGLE, v_BGLE, seen_B11L, rule).reshape(-1, H, E)
    for number in layout.chunk_spans:
        span, end = layout.spans[number], layout.ends[number]
        own = slice(span.start, span.start + span.length)
        k_1GLE, v_1GLE = cache.read(layer, layout.tables_SN[number : number + 1, : -(-end // size)], q_THE.dtype)
        out_THE[own] = _attend_span(q_THE[own], k_1GLE[:, :, :end], v_1GLE[:, :, :end], rule)
    return out_THE
