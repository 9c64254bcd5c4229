"""Small models and sequences for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model


def make_loud(model: torch.nn.Module, seed: int = 0) -> None:
    """Random values everywhere, norms and biases included, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.15 if parameter.dim() > 1 else 1 + noise * 0.2)


@pytest.fixture(scope="session")  # property tests, too, can take it: every call makes a new model
def tiny() -> Any:
    """tiny(**fields) -> a small decoder with loud weights."""

    def make(**fields: Any) -> Decoder:
        config = dict(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            qk_norm=True,
            tie_word_embeddings=True,
        )
        model = new_model(DecoderConfig(**{**config, **fields}), seed=1)
        make_loud(model)
        return model

    return make


@pytest.fixture
def loud() -> Callable[..., None]:
    """loud(model): random values everywhere."""
    return make_loud


@pytest.fixture
def sequences() -> Callable[..., list[np.ndarray]]:
    """sequences(seed, lengths) -> random token ids below 61."""

    def make(seed: int, lengths: list[int]) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [rng.integers(0, 61, n).astype(np.int32) for n in lengths]

    return make
