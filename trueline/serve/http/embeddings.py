"""Texts to vectors: the mean of the hidden states behind the final norm over a text's tokens, scaled to length 1.

A language model was not trained for this; it serves to compare texts roughly (dot products are cosines). Inputs are computed in the
engine's thread, at most `SLICE` tokens between two steps of the engine, so that those who wait for tokens go on.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from trueline.models.adapters import active_adapters, set_adapter
from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.serve.http.worker import Worker

SLICE = 2048
"""Tokens of one forward, unless a single input is longer."""


def embed(model: Decoder, adapter: str, prompts: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [N, D] of N inputs, in one forward; "" is the base model."""
    names = (adapter,) if adapter else ()
    if active_adapters(model) != names:  # the engine looks for itself before each step
        set_adapter(model, *names)
    with torch.inference_mode():
        layout = Layout.packed(list(prompts)).to(model.device)
        hidden_TD = model(layout).float()
        means_ND = torch.stack([part_LD.mean(0) for part_LD in hidden_TD.split([len(prompt) for prompt in prompts])])
        return torch.nn.functional.normalize(means_ND, dim=1).cpu().numpy()


def slices(prompts: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Neighbours that together fit into one forward."""
    some: list[np.ndarray] = []
    for prompt in prompts:
        if some and sum(map(len, some)) + len(prompt) > SLICE:
            yield some
            some = []
        some.append(prompt)
    if some:
        yield some


async def embeddings(prompts: Sequence[np.ndarray], adapter: str, worker: Worker) -> np.ndarray:
    """float32 [N, D], a slice between any two steps."""
    parts = [partial(embed, worker.engine.model, adapter, some) for some in slices(prompts)]
    return np.concatenate([await worker.call(part) for part in parts])


def written(vector_D: np.ndarray, form: str) -> list[float] | str:
    """As numbers, or as base64 of little-endian float32."""
    if form == "base64":
        return base64.b64encode(vector_D.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector_D]
