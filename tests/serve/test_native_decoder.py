"""The step in C++ against the decoder on torch: every family it takes, adapters, low-bit weights, 8-bit caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.conftest import FAMILIES, decoder  # noqa: F401 - a fixture
from trueline.models.adapters import attach, set_adapter, wrappers
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.models.layout import Layout
from trueline.models.lora import LoRAConfig
from trueline.models.lowbit import quantize_linears
from trueline.serve.native.compiled import load
from trueline.serve.native.decoder import Chunk, NativeDecoder, refused

Build = Callable[[str], Decoder]
TORCH_ONLY = {
    "gpt2": "LayerNorm", "pythia": "LayerNorm", "stablelm": "LayerNorm", "phi3_window": "positions that are not full rotations",
}  # fmt: skip
"""Some of those that step.cpp leaves to torch, and why."""


@pytest.fixture(autouse=True)
def library() -> Any:
    if reason := load().reason:
        pytest.skip(f"no native library: {reason}")
    return load().handle


def both(model: Decoder, library: Any, dtype: torch.dtype | None = None, block_size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a prompt in three pieces next to another sequence, by C++ and by torch, from caches of their own."""
    generator = np.random.default_rng(0)
    a, b = (generator.integers(3, model.config.vocab_size, size).tolist() for size in (29, 12))
    count = -(-32 // block_size)
    tables = [list(range(count))[::-1], list(range(count, 2 * count))]
    native, caches = NativeDecoder(model, library), [model.new_cache(2 * count, block_size, dtype) for _ in range(2)]
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    plan = [((0, 10), (0, 5)), ((10, 11), (5, 12)), ((11, 29), None)]
    for first, second in plan:
        parts = [Chunk(a[slice(*first)], tables[0], first[0], first[1] - first[0])]
        if second is not None:
            parts.append(Chunk(b[slice(*second)], tables[1], second[0], 1))
        found[0].append(native.step(parts, caches[0]).clone())
        layout = Layout.cached([np.array(p.ids) for p in parts], [p.table for p in parts], [p.start for p in parts], block_size)
        rows = [s.start + s.length - p.wanted + i for s, p in zip(layout.spans, parts, strict=True) for i in range(p.wanted)]
        with torch.no_grad():
            found[1].append(model.head(model(layout, caches[1], torch.tensor(rows))).float())
    return torch.cat(found[0]), torch.cat(found[1])


@pytest.mark.parametrize("variant", FAMILIES)
def test_families(variant: str, decoder: Build, library: Any) -> None:  # noqa: F811
    model = decoder(variant).eval()
    reason = refused(model)
    if variant in TORCH_ONLY:
        assert reason == TORCH_ONLY[variant]
    if reason:
        pytest.skip(f"on torch: {reason}")
    ours, theirs = both(model, library)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_most_families_are_taken(decoder: Build) -> None:  # noqa: F811
    taken = {variant for variant in FAMILIES if not refused(decoder(variant))}
    assert taken >= {"llama3", "qwen2_window", "qwen3", "gemma2", "gemma3_window", "granite", "olmo2", "mistral_window", "phi3"}


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("variant", ["llama3", "gemma3_window"])
def test_block_sizes(variant: str, block_size: int, decoder: Build, library: Any) -> None:  # noqa: F811
    model = decoder(variant).eval()
    ours, theirs = both(model, library, block_size=block_size)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours, both(model, library)[0])


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float16])
def test_caches_of_fewer_bits(dtype: torch.dtype, decoder: Build, library: Any) -> None:  # noqa: F811
    model = decoder("llama3").eval()
    ours, theirs = both(model, library, dtype)
    exact = both(model, library)[0]
    lost = float((theirs - exact).abs().max())
    assert lost > 1e-6 and float((ours - theirs).abs().max()) < 0.3 * lost + 1e-4  # a number on a border may round to either side


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision(dtype: torch.dtype, decoder: Build, library: Any) -> None:  # noqa: F811
    """Its activations are float32: it computes what float32 computes with the rounded weights."""
    model = decoder("llama3").eval().to(dtype)
    ours, _ = both(model, library, torch.float32)
    rounded, _ = both(model.float(), library)
    torch.testing.assert_close(ours, rounded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("code", ["int8", "int4", "int4_asymmetric", "nf4"])
def test_low_bit_weights(code: Any, library: Any) -> None:
    config = DecoderConfig(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8
    )  # fmt: skip
    model = new_model(config, seed=0).eval()
    exact = both(model, library)[0]
    quantize_linears(model, code, 32)
    ours, theirs = both(model, library)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((ours - exact).abs().max()) > 1e-4


def test_adapters(decoder: Build, library: Any) -> None:  # noqa: F811
    """Live: what training does to their matrices counts at once."""
    model = decoder("llama3").eval()
    base, _ = both(model, library)
    attach(model, LoRAConfig(r=5, lora_alpha=10))
    with torch.no_grad():
        for wrapper in wrappers(model).values():
            torch.nn.init.normal_(wrapper.lora_B["default"], std=0.3)
    ours, theirs = both(model, library)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float((ours - base).abs().max()) > 1e-2
    attach(model, LoRAConfig(r=2), "second")
    set_adapter(model, "default", "second")
    assert refused(model).startswith("several adapters at once")
