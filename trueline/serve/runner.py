"""Runs a plan's forward: the blocks, the weights, and who computes them.

    run(chunks) -> logits_NV       in C++ where the model allows it (native/decoder.py), else through the decoder on torch

Both read the live weights. `changed()` says whether they are other ones than at the last call, so that what was computed with
the old ones is forgotten.
Legend: N wanted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trueline.models.adapters import active_adapters, set_adapter
from trueline.models.cache import Cache
from trueline.models.decoder import Decoder
from trueline.models.layout import Layout
from trueline.serve.native.decoder import Chunk, NativeDecoder, refused
from trueline.serve.native.library import load


class Runner:
    """Computes chunks of sequences into one cache."""

    def __init__(
        self, model: Decoder, block_size: int, cache_dtype: torch.dtype | None, adapters: Sequence[str] = (), native: bool = True
    ) -> None:
        """`adapters` are the names that steps choose from; without any the model's own state counts, as in training."""
        self.model, self._block_size, self._dtype, self._wanted = model, block_size, cache_dtype, native
        self._adapters = adapters
        self.cache = model.new_cache(0, block_size, cache_dtype)
        self.host: Cache | None = None
        """Where blocks are swapped to."""
        self._native: NativeDecoder | None = None
        self.why_torch = ""
        """Why the forward runs on torch; empty when it does not."""
        self._seen: tuple[object, ...] = ()
        self.choose()

    def choose(self) -> None:
        """Decides anew who computes: after the weights' tensors or the adapters changed."""
        self.why_torch = "it was asked for" if not self._wanted else refused(self.model) or load().reason
        library = load().library
        self._native = None if self.why_torch or library is None else NativeDecoder(self.model, library)

    def changed(self) -> bool:
        """Whether the weights are others than at the last call; tensors that were replaced are looked up again."""
        parameters = list(self.model.parameters())
        places = tuple(p.data_ptr() for p in parameters)
        versions = tuple(0 if p.is_inference() else p._version for p in parameters)
        before, self._seen = self._seen, (id(self.model), active_adapters(self.model), places, versions)
        if before[:3] != self._seen[:3]:
            self.choose()
        return before != self._seen

    def replace(self, model: Decoder) -> None:
        """Another model computes from now on; the cache is kept where it fits."""
        if model.config != self.model.config or model.device != self.model.device:
            self.cache, self.host = model.new_cache(0, self._block_size, self._dtype), None
        self.model = model

    def use(self, adapter: str) -> None:
        """This adapter computes from now on; "" is the base."""
        if self._adapters and active_adapters(self.model) != ((adapter,) if adapter else ()):
            set_adapter(self.model, *([adapter] if adapter else []))
            self.choose()

    def grow(self, num_blocks: int) -> None:
        """Room for so many blocks. What the cache holds is kept."""
        self.cache = self.cache.grown(num_blocks)

    def move(self, swap_out: Sequence[tuple[int, int]], copies: Sequence[tuple[int, int]], swap_in: Sequence[tuple[int, int]]) -> None:
        """Blocks to the host, from block to block, and back from the host."""
        if swap_out:
            most = 1 + max(target for _, target in swap_out)
            if self.host is None:
                c = self.cache
                self.host = Cache.new(
                    len(c.keys), most, *c.keys[0].shape[1:3], block_size=self._block_size, dtype=c.keys[0].dtype, device="cpu"
                )
            self.host = self.host.grown(most)
            self.host.copy(swap_out, self.cache)
        self.cache.copy(copies)
        self.cache.copy(swap_in, self.host)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Float32 [N, V], the wanted rows of all chunks in order; valid until the next call."""
        if self._native is not None:
            return self._native.step(chunks, self.cache)
        layout = Layout.cached(
            [np.asarray(chunk.ids) for chunk in chunks], [chunk.table for chunk in chunks], [chunk.start for chunk in chunks],
            self._block_size, self.model.device,
        )  # fmt: skip
        wanted: list[int] = []
        for span, chunk in zip(layout.spans, chunks, strict=True):
            end = span.start + span.length
            wanted.extend(range(end - chunk.wanted, end))
        hidden_ND = self.model(layout, self.cache, torch.tensor(wanted, dtype=torch.long, device=self.model.device))
        return self.model.head(hidden_ND).float()
