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

SMALL = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1000.0,
    short_factor=[1.0, 1.1, 1.5, 2.0],
    long_factor=[4.0, 5.0, 6.0, 7.0],
    original_max_position_embeddings=64,
)
GEMMA = dict(
    head_dim=8, query_pre_attn_scalar=20, sliding_window=6, final_logit_softcapping=5.0, attn_logit_softcapping=3.0
)
GEMMA3 = dict(head_dim=8, query_pre_attn_scalar=20, sliding_window=6)
GEMMA3_ROPE = {
    "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e6),
    "sliding_attention": dict(rope_type="default", rope_theta=1e4),
}
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)
GRANITE = dict(embedding_multiplier=12.0, attention_multiplier=0.2, residual_multiplier=0.22, logits_scaling=8.0)
HALF = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "eos_token_id": [2, 3]}),
    "llama_bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama_linear": ("Llama", {"rope_parameters": dict(rope_type="linear", rope_theta=10000.0, factor=2.0)}),
    "yi": ("Llama", {"rope_parameters": dict(rope_type="default", rope_theta=5e6), "rms_norm_eps": 1e-5}),
    "smollm": (
        "Llama",
        {"tie_word_embeddings": True, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral_window": ("Mistral", {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2_window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma2_bias": ("Gemma2", {**GEMMA, "attention_bias": True, "layer_types": ["full_attention"] * 2}),
    "gemma2_long_window": ("Gemma2", {**GEMMA, "sliding_window": 64, "final_logit_softcapping": None}),
    "gemma3": (
        "Gemma3Text",
        {**GEMMA3, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": GEMMA3_ROPE},
    ),
    "gemma3_window": ("Gemma3Text", {**GEMMA3, "final_logit_softcapping": 3.0}),
    "gpt2": ("GPT2", GPT2),
    "gpt2_variant": ("GPT2", {**GPT2, "n_inner": 40, "activation_function": "relu", "scale_attn_weights": False}),
    "gpt2_untied": ("GPT2", {**GPT2, "tie_word_embeddings": False}),
    "pythia": ("GPTNeoX", {}),
    "gpt_neox": ("GPTNeoX", {"use_parallel_residual": False, "hidden_act": "gelu_fast", "attention_bias": False}),
    "gpt_neox_all_rotated": (
        "GPTNeoX",
        {"rope_parameters": dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=1.0)},
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3_window": (
        "Phi3",
        {"sliding_window": 9, "rope_parameters": HALF},
    ),
    "phi3_longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "max_position_embeddings": 256, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2_mha": ("Olmo2", {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True}),
    "granite": ("Granite", GRANITE),
    "granite_bias": ("Granite", {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "stablelm": ("StableLm", {}),
    "stablelm_bias": (
        "StableLm",
        {"use_qkv_bias": True, "rope_parameters": HALF},
    ),
    "stablelm_2_12b": ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
}


TYPES = {"Gemma3Text": "gemma3_text", "GPTNeoX": "gpt_neox", "StableLm": "stablelm"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `family` runs for every entry of the table."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def families() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of a variant -> prefix of the family's classes in transformers, and fields of its config."""
    return FAMILIES


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """The fields that all variants share."""
    return SMALL


@pytest.fixture
def decoder() -> Callable[[str], Decoder]:
    """decoder(variant) -> one of that variant, with loud weights; no transformers."""

    def make(variant: str) -> Decoder:
        name, fields = FAMILIES[variant]
        raw = {**SMALL, **fields, "model_type": TYPES.get(name, name.lower())}
        model = new_model(DecoderConfig.from_hf(raw), seed=1)
        make_loud(model)
        return model

    return make


def make_loud(model: torch.nn.Module, seed: int = 0) -> None:
    """Random values everywhere, norms and biases included, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.15 if parameter.dim() > 1 else 1 + noise * 0.2)


@pytest.fixture(scope="session")  # property tests, too, can take it: every call makes a new model
def tiny() -> Any:
    """tiny(**fields) -> a Qwen3 of the shape that all variants have, with loud weights."""

    def make(**fields: Any) -> Decoder:
        config = {**SMALL, "model_type": "qwen3", "qk_norm": True, "head_dim": 8, "tie_word_embeddings": True, **fields}
        model = new_model(DecoderConfig(**config), seed=1)
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
