"""Which token may attend to which, without padding: packed sequences, trees that share a prefix, and steps over a cache.

    packed   | seq 0 | seq 1 | ...                 every sequence alone, back to back
    tree     | prompt | branch 0 | branch 1 | ...  per row; a branch attends to its prompt and to itself
    cached   | new tokens of slot a | of slot b |  each attends to what its cache slot holds, and to itself

A Layout is a flat stream of T tokens cut into spans; a span attends causally to itself and fully to its parent span.
Positions restart with every sequence, and `predicted_by_N` says which output predicts each scored token: nobody shifts by one.

Legend: T tokens, N scored tokens, S sequences, H query heads, G key-value heads, E width of a head, B slots, L length.

Left out: sliding windows, bidirectional and cross attention, and nesting deeper than prefix and branches (a row whose branches
share more among themselves computes that part once per branch; results are the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trueline.records import Row


class Span(NamedTuple):
    """Consecutive tokens of the stream that belong together."""

    start: int
    length: int
    parent: int
    """Index of the span that comes before this one in its sequence, or -1."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """T tokens of S sequences, and what the attention and the heads must know about them."""

    ids_T: Tensor
    positions_T: Tensor
    predicted_by_N: Tensor
    """Flat index of the position whose output predicts the n-th scored token."""
    targets_N: Tensor
    sequence_of_N: Tensor
    """0..S-1. A scored token shared by several sequences appears once for each."""
    last_S: Tensor
    """Flat index of each sequence's last token."""
    lengths_T: Tensor
    """Length of the sequence each token belongs to (of the first one, where several share it)."""
    num_sequences: int
    max_length: int
    """Longest sequence, cached tokens included."""
    spans: tuple[Span, ...]
    slots: tuple[int, ...] | None = None
    """Cached layouts only: the cache slot of each span; the span's first position is its first token's."""
    starts: tuple[int, ...] | None = None
    """Cached layouts only: how many tokens of its slot each span finds already there."""

    @property
    def num_tokens(self) -> int:
        return self.ids_T.shape[0]

    def to(self, device: str | torch.device) -> Layout:
        """The same layout with its tensors on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})

    @staticmethod
    def packed(ids: Sequence[np.ndarray], scored: Sequence[np.ndarray] | None = None) -> Layout:
        """Every sequence alone, back to back. `scored` marks the targets; without it, all tokens but each first one."""
        if scored is None:
            scored = [np.arange(len(x)) > 0 for x in ids]
        starts = np.concatenate(([0], np.cumsum([len(x) for x in ids]))).astype(np.int64)
        spans = tuple(Span(int(start), len(x), -1) for start, x in zip(starts, ids, strict=False))
        paths = [np.arange(span.start, span.start + span.length) for span in spans]
        return _layout(ids, scored, paths, spans)

    @staticmethod
    def tree(rows: Sequence[Row]) -> Layout:
        """Per row its sequences' common prefix once, then what is left of each; row by row, response by response."""
        ids: list[np.ndarray] = []
        scored: list[np.ndarray] = []
        paths: list[np.ndarray] = []
        spans: list[Span] = []
        end = 0

        def add(length: int, parent: int) -> np.ndarray:
            nonlocal end
            spans.append(Span(end, length, parent))
            end += length
            return np.arange(end - length, end)

        for row in rows:
            ids.extend(row.ids)
            scored.extend(row.scored)
            shared = common_prefix(row.ids)
            trunk, parent = np.arange(0), -1
            if shared:
                trunk, parent = add(shared, -1), len(spans) - 1
            for x in row.ids:
                branch = add(len(x) - shared, parent) if len(x) > shared else np.arange(0)
                paths.append(np.concatenate((trunk, branch)))
        return _layout(ids, scored, paths, tuple(spans))

    @staticmethod
    def cached(ids: Sequence[np.ndarray] | Tensor, slots: Sequence[int], starts: Sequence[int], device: str = "cpu") -> Layout:
        """New tokens per cache slot: `ids[i]` follow the `starts[i]` tokens that slot `slots[i]` already holds.

        A decoding step is `ids` = LongTensor [B] (one new token per slot); a prefill is a list of arrays. Nothing is scored:
        take the outputs at `last_S`. Slots must be distinct; consecutive ones (0, 1, 2, ...) are read without a copy.
        """
        starts = tuple(starts)
        if isinstance(ids, Tensor):
            ids_T, lengths = ids, (1,) * len(starts)
            positions_T = torch.tensor(starts, device=device)
        else:
            lengths = tuple(len(x) for x in ids)
            ids_T = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(device)
            positions_T = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).to(device)
        ends = np.cumsum(lengths)
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        longest = max(s + n for s, n in zip(starts, lengths, strict=True))
        return Layout(
            ids_T=ids_T, positions_T=positions_T, predicted_by_N=nothing, targets_N=nothing, sequence_of_N=nothing,
            last_S=torch.from_numpy(ends - 1).to(device), lengths_T=nothing, num_sequences=len(starts), max_length=longest,
            spans=tuple(Span(int(e) - n, n, -1) for e, n in zip(ends, lengths, strict=True)),
            slots=tuple(slots), starts=starts,
        )


def common_prefix(ids: Sequence[np.ndarray]) -> int:
    """How many leading tokens all sequences share. A single sequence shares nothing."""
    if len(ids) < 2:
        return 0
    shared = min(len(x) for x in ids)
    for x in ids[1:]:
        differs = np.flatnonzero(x[:shared] != ids[0][:shared])
        shared = int(differs[0]) if len(differs) else shared
    return shared


def tree_tokens(row: Row) -> int:
    """Positions that `Layout.tree` spends on a row."""
    return row.num_tokens - (len(row.ids) - 1) * common_prefix(row.ids)


def _layout(ids: Sequence[np.ndarray], scored: Sequence[np.ndarray], paths: Sequence[np.ndarray], spans: tuple[Span, ...]) -> Layout:
    """`paths[s]` holds the flat index of every token of sequence s."""
    if not len(ids) or any(len(x) == 0 for x in ids):
        raise ValueError("a layout needs at least one sequence, and no sequence may be empty.")
    if any(len(m) != len(x) or m[0] for m, x in zip(scored, ids, strict=True)):
        raise ValueError("`scored` needs one flag per token, and the first token of a sequence cannot be scored: nothing predicts it.")
    total = max(int(path[-1]) for path in paths) + 1
    ids_T, positions_T, lengths_T = (np.zeros(total, np.int64) for _ in range(3))
    for x, path in zip(reversed(ids), reversed(paths), strict=True):  # reversed: the first of several owners writes last
        ids_T[path], positions_T[path], lengths_T[path] = x, np.arange(len(x)), len(x)
    targets = [np.flatnonzero(m) for m in scored]
    tensor = torch.from_numpy
    return Layout(
        ids_T=tensor(ids_T),
        positions_T=tensor(positions_T),
        predicted_by_N=tensor(np.concatenate([path[t - 1] for path, t in zip(paths, targets, strict=True)])),
        targets_N=tensor(np.concatenate([x[t] for x, t in zip(ids, targets, strict=True)]).astype(np.int64)),
        sequence_of_N=tensor(np.repeat(np.arange(len(ids)), [len(t) for t in targets])),
        last_S=tensor(np.array([path[-1] for path in paths])),
        lengths_T=tensor(lengths_T),
        num_sequences=len(ids),
        max_length=max(len(x) for x in ids),
        spans=spans,
    )


@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer for `num_slots` sequences, contiguous per slot and head, written in place.

    The engine owns the bookkeeping: which slot is whose and how many tokens it holds. It passes both in with
    `Layout.cached(ids, slots, starts)`, then `decoder(layout, cache)` appends the new keys and values and attends to
    positions 0..own of the slot. What lies beyond is never read, so freeing a slot needs no work.
    Keep live slots consecutive (move the last one into a hole with `copy`): then a step reads the cache without copying.
    """

    keys: tuple[Tensor, ...]
    """Per layer [B, G, L, E]."""
    values: tuple[Tensor, ...]

    @staticmethod
    def new(num_layers: int, num_slots: int, max_length: int, kv_heads: int, head_dim: int,
            dtype: torch.dtype = torch.float32, device: str = "cpu") -> Cache:
        shape = (num_slots, kv_heads, max_length, head_dim)
        return Cache(*(tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)) for _ in range(2)))

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


def attend(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, cache: Cache | None = None, layer: int = 0) -> Tensor:
    """Attention within the layout -> [T, H, E]. With a cache, writes k and v into it and attends to the slots."""
    if cache is not None:
        return _attend_cached(q_THE, k_TGE, v_TGE, layout, cache.keys[layer], cache.values[layer])
    out_THE = torch.empty_like(q_THE)
    pieces = []
    groups: dict[tuple[int, int], list[Span]] = {}
    for span in layout.spans:
        prefix = layout.spans[span.parent].length if span.parent >= 0 else 0
        groups.setdefault((span.length, prefix), []).append(span)
    order = []
    for (length, prefix), spans in groups.items():
        own = torch.tensor([[s.start + i for i in range(length)] for s in spans], device=q_THE.device)
        keys = own
        if prefix:
            before = torch.tensor([[layout.spans[s.parent].start + i for i in range(prefix)] for s in spans], device=q_THE.device)
            keys = torch.cat((before, own), 1)
        mask = torch.ones(length, prefix + length, dtype=torch.bool, device=q_THE.device).tril(prefix) if prefix else None
        part = scaled_dot_product_attention(
            q_THE[own].transpose(1, 2), k_TGE[keys].transpose(1, 2), v_TGE[keys].transpose(1, 2),
            attn_mask=mask, is_causal=mask is None, enable_gqa=True,
        )
        pieces.append(part.transpose(1, 2).flatten(0, 1))
        order.append(own.flatten())
    return torch.empty_like(out_THE).index_copy(0, torch.cat(order), torch.cat(pieces))


def _attend_cached(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, layout: Layout, keys_BGLE: Tensor, values_BGLE: Tensor) -> Tensor:
    assert layout.slots is not None and layout.starts is not None
    longest = layout.max_length
    if longest > keys_BGLE.shape[2]:
        raise ValueError(f"a sequence of {longest} tokens does not fit the cache of {keys_BGLE.shape[2]}; make max_length larger.")
    T, H, E = q_THE.shape
    G = k_TGE.shape[1]
    if all(span.length == 1 for span in layout.spans):
        first, count = layout.slots[0], len(layout.slots)
        consecutive = layout.slots == tuple(range(first, first + count))
        slots_B = torch.arange(first, first + count, device=q_THE.device) if consecutive else torch.tensor(layout.slots, device=q_THE.device)
        keys_BGLE[slots_B, :, layout.positions_T] = k_TGE.to(keys_BGLE.dtype)
        values_BGLE[slots_B, :, layout.positions_T] = v_TGE.to(values_BGLE.dtype)
        k_BGLE, v_BGLE = ((c[first : first + count] if consecutive else c[slots_B])[:, :, :longest] for c in (keys_BGLE, values_BGLE))
        mask_BL = torch.arange(longest, device=q_THE.device) <= layout.positions_T[:, None]
        # the H / G queries of one key head stand in for a query length: no expansion of keys and values
        out = scaled_dot_product_attention(q_THE.view(T, G, H // G, E), k_BGLE.to(q_THE.dtype), v_BGLE.to(q_THE.dtype), attn_mask=mask_BL[:, None, None])
        return out.reshape(T, H, E)
    pieces = []
    for span, slot, start in zip(layout.spans, layout.slots, layout.starts, strict=True):
        own, end = slice(span.start, span.start + span.length), start + span.length
        keys_BGLE[slot, :, start:end] = k_TGE[own].transpose(0, 1)
        values_BGLE[slot, :, start:end] = v_TGE[own].transpose(0, 1)
        mask = torch.ones(span.length, end, dtype=torch.bool, device=q_THE.device).tril(start) if start else None
        k_GLE, v_GLE = (c[slot, :, :end].to(q_THE.dtype) for c in (keys_BGLE, values_BGLE))
        part = scaled_dot_product_attention(q_THE[own].transpose(0, 1)[None], k_GLE[None], v_GLE[None],
                                            attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        pieces.append(part[0].transpose(0, 1))
    return torch.cat(pieces)
