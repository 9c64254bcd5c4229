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
    """Per layer [N, S, G, E]."""
    values: tuple[Tensor, ...]
    key_scales: tuple[Tensor, ...] = ()
    """8 bits only: per layer float32 [N, S, G], what a whole number is multiplied with."""
    value_scales: tuple[Tensor, ...] = ()

    @staticmethod
    def new(
        num_layers: int, num_blocks: int, kv_heads: int, head_dim: int,
        *, block_size: int = BLOCK_SIZE, dtype: torch.dtype = torch.float32, device: str = "cpu",
    ) -> Cache:  # fmt: skip
        """Empty blocks. `dtype` torch.int8 stores 8 bits and a scale."""
        shape = (num_blocks, block_size, kv_heads, head_dim)

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:  # 0 times what was never written is 0
            return tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers))

        scales = (zeros(shape[:-1], torch.float32), zeros(shape[:-1], torch.float32)) if dtype == torch.int8 else ((), ())
        return Cache(zeros(shape, dtype), zeros(shape, dtype), *scales)

    @property
    def num_blocks(self) -> int:
        return self.keys[0].shape[0]

    @property
    def block_size(self) -> int:
        return self.keys[0].shape[1]

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
        for stored, scales, new_TGE in (
            (self.keys, self.key_scales, k_TGE), (self.values, self.value_scales, v_TGE),
        ):  # fmt: skip
            if scales:
                scale_TG = new_TGE.float().abs().amax(-1) / 127
                scales[layer].flatten(0, 1)[slots_T] = scale_TG
                new_TGE = (new_TGE.float() / scale_TG.clamp_min(1e-30)[..., None]).round()
            stored[layer].flatten(0, 1)[slots_T] = new_TGE.to(stored[layer].dtype)

    def read(self, layer: int, tables_BN: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of these tables, gathered: each [B, G, N S, E]."""

        def gathered(stored: tuple[Tensor, ...], scales: tuple[Tensor, ...]) -> Tensor:
            found_BLGE = stored[layer][tables_BN].flatten(1, 2)
            if scales:
                found_BLGE = found_BLGE.float() * scales[layer][tables_BN].flatten(1, 2)[..., None]
            return found_BLGE.to(dtype).transpose(1, 2)

        return gathered(self.keys, self.key_scales), gathered(self.values, self.value_scales)

    def copy(self, pairs: Sequence[tuple[int, int]], source: Cache | None = None) -> None:
        """Whole blocks (from, to), all read before any is written; from `source`, such as a pool on the host, or from this cache."""
        if not pairs:
            return
        read, written = (torch.tensor(column) for column in zip(*pairs, strict=True))
        for mine, theirs in zip(self.tensors, (source or self).tensors, strict=True):
            mine[written.to(mine.device)] = theirs[read.to(theirs.device)].to(mine.device)

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
