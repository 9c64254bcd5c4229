"""GGUF files: what is in them, what is refused, and that llama.cpp computes what we do (where llama-cpp-python is installed)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, rotate
from trueline.models.files import new_model
from trueline.models.gguf import write_gguf
from trueline.models.gguf_targets import TARGETS

gguf = pytest.importorskip("gguf")
Make = Callable[[str], Decoder]
REFUSED = {
    "qwen3_bias": "a bias of the attention's output",
    "gemma2_bias": "a bias of the attention's output",
    "gemma2_long_window": "final_logit_softcapping = null",
    "gpt2_variant": "hidden_act = 'relu'",
    "olmo2_mha": "a bias of the attention's output",
}
"""Variants that llama.cpp would compute otherwise, and what the sentence says."""
LONGROPE = {"short_factor": [1.0, 1.1, 1.5, 2.0], "long_factor": [4.0, 5.0, 6.0, 7.0], "rope_type": "longrope"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata, and tensors in float32."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return {name: found.contents() for name, found in reader.fields.items()}, tensors


@pytest.fixture
def llama(tmp_path: Path) -> Callable[[Decoder], Callable[[list[int]], Tensor]]:
    """llama(model) -> its forward in llama.cpp, ids -> logits [L, V]."""
    library = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: nothing to compare with")

    def load(model: Decoder) -> Callable[[list[int]], Tensor]:
        path = write_gguf(model, tmp_path / "model.gguf", kind="f32").path
        loaded = library.Llama(
            str(path), n_ctx=256, n_batch=64, n_threads=1, n_threads_batch=1, logits_all=True, type_k=0, type_v=0, verbose=False
        )

        def logits(ids: list[int]) -> Tensor:
            loaded.reset()
            loaded.eval(ids)
            return torch.from_numpy(loaded.scores[: len(ids)].copy())

        return logits

    return load


def test_all_families_have_a_target(families: dict[str, Any]) -> None:
    from trueline.models.families import FAMILIES

    assert {family.model_type for family in FAMILIES} == TARGETS.keys()


def test_every_family_is_written_or_refused(family: str, decoder: Make, tmp_path: Path) -> None:
    model, path = decoder(family), tmp_path / "model.gguf"
    if family in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[family]):
            write_gguf(model, path)
        assert not list(tmp_path.iterdir())
        return
    write_gguf(model, path, kind="f32", name="tiny")
    fields, tensors = read(path)
    c, arch = model.config, fields["general.architecture"]
    assert fields["general.name"] == "tiny" and fields["tokenizer.ggml.model"] == "none"
    assert fields[f"{arch}.block_count"] == c.num_hidden_layers and fields[f"{arch}.vocab_size"] == c.vocab_size
    assert fields[f"{arch}.attention.key_length"] == c.head_dim
    assert np.array_equal(tensors["token_embd.weight"], model.embed_tokens.weight.detach().numpy())
    assert np.allclose(tensors["output_norm.weight"], model.norm.scale.detach().numpy(), rtol=1e-7)
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], model.layers[1].mlp.down_proj.weight.detach().numpy())
    numbers = sum(p.numel() for p in model.parameters())
    extra = sum(v.size for k, v in tensors.items() if k.startswith("rope_"))
    extra += c.vocab_size * c.hidden_size if c.tie_word_embeddings and "output.weight" in tensors else 0
    if family == "gpt_neox":  # has no biases of the attention, which llama.cpp wants: zeros
        extra += sum(v.size for k, v in tensors.items() if k.endswith(("attn_qkv.bias", "attn_output.bias")) and not v.any())
    assert sum(v.size for v in tensors.values()) == numbers + extra


def test_rows_of_q_and_k_follow_pairs(decoder: Make, tmp_path: Path) -> None:
    """Rotating neighbours of the written rows is rotating halves of ours: equal products of queries and keys."""
    model = decoder("llama3")
    _, tensors = read(write_gguf(model, tmp_path / "model.gguf", kind="f32").path)
    attention, E = model.layers[0].self_attn, model.config.head_dim
    x_TD = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    angles_TR = torch.arange(5.0)[:, None] * torch.rand(E // 2, generator=torch.Generator().manual_seed(1))
    turn = angles_TR.cos(), angles_TR.sin()

    def pairs(x_THE: Tensor) -> Tensor:
        even, odd, cos, sin = x_THE[..., ::2], x_THE[..., 1::2], turn[0][:, None], turn[1][:, None]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(2)

    q, k = (p(x_TD).unflatten(1, (-1, E))[:, :2] for p in (attention.q_proj, attention.k_proj))
    stored = [x_TD @ torch.tensor(tensors[f"blk.0.attn_{name}.weight"]).T for name in "qk"]
    theirs = [pairs(x.unflatten(1, (-1, E))[:, :2]) for x in stored]
    ours = [rotate(x, turn) for x in (q, k)]
    products = [torch.einsum("thd,shd->hts", *pair) for pair in (ours, theirs)]
    assert torch.allclose(*products, atol=1e-5)
    assert not torch.allclose(pairs(q), ours[0])


def test_what_goes_into_q(decoder: Make, tmp_path: Path) -> None:
    """Gemma's query_pre_attn_scalar = 20 is no key of the file: 1 / sqrt(20) instead of 1 / sqrt(8) is in the weights."""
    ratio = (8 / 20) ** 0.5
    model = decoder("gemma2")
    _, tensors = read(write_gguf(model, tmp_path / "2.gguf", kind="f32").path)
    assert np.allclose(tensors["blk.0.attn_q.weight"], model.layers[0].self_attn.q_proj.weight.detach() * ratio)
    model = decoder("gemma3")
    _, tensors = read(write_gguf(model, tmp_path / "3.gguf", kind="f32").path)
    assert np.allclose(tensors["blk.0.attn_q_norm.weight"], (1 + model.layers[0].self_attn.q_norm.weight.detach()) * ratio)


def test_windows(decoder: Make, tmp_path: Path) -> None:
    """Gemma's are written; where llama.cpp has none, the context ends where the window begins to hide something."""
    fields, _ = read(write_gguf(decoder("gemma3"), tmp_path / "3.gguf").path)
    assert fields["gemma3.attention.sliding_window"] == 6 and fields["gemma3.rope.freq_base_swa"] == 1e4
    assert fields["gemma3.attention.sliding_window_pattern"] == [True, False]
    fields, _ = read(write_gguf(decoder("gemma2"), tmp_path / "2.gguf").path)
    assert "gemma2.attention.sliding_window_pattern" not in fields  # every second one is its own rhythm
    written = write_gguf(decoder("mistral_window"), tmp_path / "m.gguf")
    assert written.context == read(written.path)[0]["llama.context_length"] == 7


@pytest.mark.parametrize(("kind", "bits", "error"), [("f16", 16, 5e-4), ("bf16", 16, 4e-3), ("q8_0", 8.5, 5e-3), ("q4_0", 4.5, 0.13)])
def test_kinds(kind: str, bits: float, error: float, tiny: Any, tmp_path: Path) -> None:
    """Error as a share of the largest number of 32; vectors are exact, and rows that are no multiple of 32 are f16."""
    model = tiny(model_type="qwen3", hidden_size=64, intermediate_size=96, num_attention_heads=4)
    written = write_gguf(model, tmp_path / "model.gguf", kind=kind)  # type: ignore[arg-type]
    reader = gguf.GGUFReader(written.path)
    stored = {t.name: t for t in reader.tensors}
    up = stored["blk.0.ffn_up.weight"]
    assert up.tensor_type.name == kind.upper() and up.n_bytes * 8 == bits * 96 * 64
    assert stored["token_embd.weight"].tensor_type.name == ("Q8_0" if kind == "q4_0" else kind.upper())
    assert stored["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    ours = model.layers[0].mlp.up_proj.weight.detach().numpy()
    off = np.abs(gguf.quants.dequantize(up.data, up.tensor_type) - ours).reshape(-1, 32)
    assert 0 < (off.max(1) / np.abs(ours).reshape(-1, 32).max(1)).max() < error
    assert written.kept == ()
    odd = tiny(model_type="qwen3", hidden_size=36, num_attention_heads=4)
    kept = write_gguf(odd, tmp_path / "odd.gguf", kind=kind).kept  # type: ignore[arg-type]
    assert ("token_embd.weight" in kept) == kind.startswith("q")


def test_numbers_beyond_f16(tiny: Any, tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"ffn_up.*beyond those of f16"):
        write_gguf(model, tmp_path / "model.gguf", kind="f16")
    assert not list(tmp_path.iterdir())
    write_gguf(model, tmp_path / "model.gguf", kind="bf16")


def test_a_missing_extra_is_named(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'trueline\[gguf\]'"):
        write_gguf(tiny(), tmp_path / "model.gguf")


def variant(family: str, decoder: Make) -> Decoder:
    """A variant as llama.cpp can run it: it rounds contexts up to 256, beyond LongRoPE's old context of 64."""
    model = decoder(family)
    if family == "phi3_longrope":
        scaling = {**LONGROPE, "original_max_position_embeddings": 256, "attention_factor": 1.2}
        model.config = replace(model.config, rope_scaling=scaling, max_position_embeddings=1024)
    return model


def test_llama_cpp_computes_the_same(family: str, decoder: Make, llama: Any) -> None:
    """Logits at every place, and greedy ids from a prompt whose best two logits are apart at every step.

    llama.cpp reads GELU from a table in half precision.
    """
    if family in REFUSED:
        return
    model = variant(family, decoder)
    hidden = model.config.sliding_window is not None and not TARGETS[model.config.model_type].windows
    forward, length = llama(model), min(20, model.config.sliding_window or 20) if hidden else 20
    within = 1e-4 if model.config.hidden_act == "silu" else 1e-2
    rng, clear = np.random.default_rng(0), False
    while not clear:  # the first prompt without near-ties
        ids, clear = rng.integers(4, 61, 3).tolist(), True
        while len(ids) < length:
            best = model.logits(torch.tensor(ids))[-1].detach().topk(2)
            clear = clear and float(best.values[0] - best.values[1]) > 2 * within
            ids.append(int(best.indices[0]))
    ours, theirs = model.logits(torch.tensor(ids)).detach(), forward(ids)
    assert float((ours - theirs).abs().max()) < within
    assert theirs[2:-1].argmax(1).tolist() == ids[3:]


def test_llama_cpp_computes_a_yarn_factor(llama: Any, loud: Callable[..., None]) -> None:
    """YaRN with an attention_factor of its own, in the family that reads tensors of factors for Llama 3."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.3}
    config = DecoderConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, rope_scaling=scaling,
    )  # fmt: skip
    model = new_model(config)
    loud(model)
    ids = list(range(4, 44))
    assert torch.allclose(llama(model)(ids), model.logits(torch.tensor(ids)).detach(), atol=1e-4)
