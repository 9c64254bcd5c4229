"""A small decoder and a small tokenizer for the tests of this room."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import trueline.serve.runner as runner_module
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.serve.native.compiled import Loaded, load
from trueline.serve.native.decoder import refused
from trueline.tokens.tokenizer import Tokenizer, train_tokenizer

VOCAB = 320


@pytest.fixture(scope="session")
def model() -> Decoder:
    """Loud random weights: next-token distributions that are neither flat nor certain."""
    config = DecoderConfig(
        model_type="qwen3", vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, qk_norm=True, tie_word_embeddings=True, max_position_embeddings=96,
    )  # fmt: skip
    decoder = new_model(config, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.dim() > 1 else 1 + noise * 0.2)
    return decoder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level, with merges enough that words span several tokens."""
    return train_tokenizer(
        ["Return the café's sum. The sum of the values, naïvely — ünïcödé.\n"] * 20, vocab_size=VOCAB
    )


@pytest.fixture(scope="session")
def prompts() -> list[np.ndarray]:
    """Prompts of different lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length) for length in (5, 17, 1, 30, 9, 17, 3)]


@pytest.fixture(params=["native", "torch"])
def native(request: pytest.FixtureRequest, model: Decoder, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Everything holds for the forward in C++ and for the one on torch."""
    if request.param == "native":
        if reason := load().reason:
            pytest.skip(f"no native library: {reason}")
        assert not refused(model)
        return True
    monkeypatch.setattr(runner_module, "load", lambda: Loaded(None, None, "this test wants torch"))
    return False
