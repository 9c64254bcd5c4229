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
from trueline.serve.native.compiled import load
from trueline.serve.native.decoder import Chunk, NativeDecoder, refused


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
        self._natives: dict[str, NativeDecoder | None] = {}
        """Of the adapters that have answered since the weights changed."""
        self._adapter = active_adapters(model)[0] if adapters and active_adapters(model) else ""
        self.why_torch = ""
        """Why the forward runs on torch; empty when it does not."""
        self._seen: tuple[object, ...] = ()
        self.choose()

    def choose(self) -> None:
        """Decides who computes, and looks all weights up."""
        self.why_torch = "it was asked for" if not self._wanted else refused(self.model) or load().reason
        library = load().handle
        self._natives[self._adapter] = None if self.why_torch or library is None else NativeDecoder(self.model, library)

    def changed(self) -> bool:
        """Whether the weights are others than at the last call; then they are looked up again."""
        parameters = list(self.model.parameters())
        active = () if self._adapters else active_adapters(self.model)
        # requests that choose among adapters switch them on and off: that is no change of weights
        marks = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version, b"" if self._adapters else _sample(p)) for p in parameters
        )
        before, self._seen = self._seen, (id(self.model), active, marks)
        if before != self._seen:
            self._natives.clear()
            self.choose()
        return before != self._seen

    def forget(self) -> None:
        """The next `changed` is true, whatever was seen."""
        self._seen = ()

    def replace(self, model: Decoder) -> None:
        """Another model computes from now on."""
        old, self.model = self.model, model
        dtypes = (model.embed_tokens.weight.dtype, old.embed_tokens.weight.dtype)
        if model.config != old.config or model.device != old.device or dtypes[0] != dtypes[1]:
            self.cache, self.host = model.new_cache(self.cache.num_blocks, self._block_size, self._dtype), None
        self._natives.clear()
        self.choose()

    def use(self, adapter: str) -> None:
        """This adapter computes from now on; "" is the base."""
        if self._adapters and adapter != self._adapter:
            set_adapter(self.model, *([adapter] if adapter else []))
            self._adapter = adapter
            if adapter not in self._natives:
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
        native = self._natives[self._adapter]
        if native is not None:
            return native.step(chunks, self.cache)
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


def _sample(parameter: Tensor) -> bytes:
    """A few of its numbers: some optimizers change weights without a word to torch. Weights that nobody trains are not looked at."""
    if not parameter.requires_grad:
        return b""
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // 8)][:8].float().cpu().numpy().tobytes()
