"""Keys and values of every layer in blocks of a fixed size, addressed by tables: the paged cache (2309.06180).

    sequence a, table (7, 2)   block 7 | k v of tokens 0..15 |   block 2 | k v of tokens 16.. |
    sequence b, table (7, 5)   shares block 7, its own tokens 16.. lie in block 5

The engine owns the bookkeeping (serve/blocks.py): which block is whose, and how many tokens it holds. It passes tables in with
`Layout.cached(ids, tables, starts)`; then `decoder(layout, cache)` writes the new keys and values in place and attends to
positions 0..own of each table. What lies beyond is never looked at, so freeing a block needs no work.

With 8 bits a number is stored as a whole number of 127ths of the largest of its token and head, and every read sees the
rounded one: what a response gets does not depend on how its prompt was cut into chunks.

Legend: N blocks, S tokens of a block, G key-value heads, E width of a head, T new tokens, B sequences, L positions.
Left out: cells that no window reaches any more stay allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZE = 16
"""Tokens of a block, as in the paper: larger ones waste more, smaller ones make longer tables."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers."""

    keys: tuple[Tensor, ...]
    """Per layer [N, G, E, S]: the products of a query with many positions run side by side."""
    values: tuple[Tensor, ...]
    """Per layer [N, G, S, E]."""
    key_scales: tuple[Tensor, ...] = ()
    """8 bits only: per layer float32 [N, G, S], what a whole number is multiplied with."""
    value_scales: tuple[Tensor, ...] = ()

    @staticmethod
    def new(
        num_layers: int, num_blocks: int, kv_heads: int, head_dim: int,
        *, block_size: int = BLOCK_SIZE, dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> Cache:  # fmt: skip
        """Empty blocks. `dtype` torch.int8 stores 8 bits and a scale."""

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> tuple[Tensor, ...]:  # 0 times what was never written is 0
            return tuple(torch.zeros(num_blocks, kv_heads, *shape, dtype=dtype, device=device) for _ in range(num_layers))

        scales = [zeros(block_size, dtype=torch.float32) for _ in range(2)] if dtype == torch.int8 else []
        return Cache(zeros(head_dim, block_size), zeros(block_size, head_dim), *scales)

    @property
    def num_blocks(self) -> int:
        return self.keys[0].shape[0]

    @property
    def block_size(self) -> int:
        return self.keys[0].shape[3]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a block holds, each [N, ...]."""
        return (*self.keys, *self.values, *self.key_scales, *self.value_scales)

    @property
    def block_bytes(self) -> int:
        """What one block takes in all layers."""
        return sum(tensor[0].numel() * tensor.element_size() for tensor in self.tensors)

    def write(self, layer: int, slots_T: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> None:
        """Stores new keys and values at `slots_T`: block times S plus place in the block."""
        block_T, place_T = slots_T // self.block_size, slots_T % self.block_size
        if self.key_scales:
            k_TGE = _whole(k_TGE, self.key_scales[layer], block_T, place_T)
            v_TGE = _whole(v_TGE, self.value_scales[layer], block_T, place_T)
        keys, values = self.keys[layer], self.values[layer]
        keys[block_T, :, :, place_T] = k_TGE.to(keys.dtype)
        values[block_T, :, place_T] = v_TGE.to(values.dtype)

    def read(self, layer: int, tables_BN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of these tables, gathered: each [B, G, N S, E]."""
        k_BNGSE, v_BNGSE = self.keys[layer][tables_BN].transpose(3, 4), self.values[layer][tables_BN]
        if self.key_scales:
            k_BNGSE = k_BNGSE.float() * self.key_scales[layer][tables_BN][..., None]
            v_BNGSE = v_BNGSE.float() * self.value_scales[layer][tables_BN][..., None]
        k, v = (x_BNGSE.to(dtype).transpose(1, 2).flatten(2, 3) for x_BNGSE in (k_BNGSE, v_BNGSE))
        return k, v

    def copy(self, pairs: Sequence[tuple[int, int]], source: Cache | None = None) -> None:
        """Whole blocks (from, to), all read before any is written; from `source`, such as a pool on the host, or from this cache."""
        if not pairs:
            return
        read, written = (torch.tensor(column) for column in zip(*pairs, strict=True))
        for mine, theirs in zip(self.tensors, (source or self).tensors, strict=True):
            mine[written.to(mine.device)] = theirs[read.to(theirs.device)].to(mine.device)

    def clear(self) -> None:
        """Zeros everywhere: a NaN that lies behind a mask is still a NaN in a sum."""
        for tensor in self.tensors:
            tensor.zero_()

    def grown(self, num_blocks: int) -> Cache:
        """A cache of more blocks that begins with what this one holds."""
        if num_blocks <= self.num_blocks:
            return self

        def longer(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            grown = tuple(tensor.new_zeros(num_blocks, *tensor.shape[1:]) for tensor in tensors)
            for new, old in zip(grown, tensors, strict=True):
                new[: len(old)] = old
            return grown

        return Cache(longer(self.keys), longer(self.values), longer(self.key_scales), longer(self.value_scales))


def _whole(x_TGE: Tensor, scales_NGS: Tensor, block_T: Tensor, place_T: Tensor) -> Tensor:
    """Whole numbers of 127ths of each head's largest; notes the scales."""
    scale_TG = x_TGE.float().abs().amax(-1) / 127
    scales_NGS[block_T, :, place_T] = scale_TG
    return (x_TGE.float() / scale_TG.clamp_min(1e-30)[..., None]).round()
