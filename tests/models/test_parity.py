"""Every family against transformers: weights saved there and loaded here, and the reverse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.files import load_model, load_scalar_model, save_model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

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


@pytest.fixture
def theirs(loud: Callable[..., None]) -> Callable[..., Any]:
    """theirs(name, config fields) -> a small transformers model with loud weights."""
    import transformers

    def make(name: str, fields: dict[str, Any], kind: str = "ForCausalLM") -> Any:
        own = {"GPT2ForCausalLM": "GPT2LMHeadModel", "Gemma3TextForCausalLM": "Gemma3ForCausalLM"}
        given = {
            **(SMALL if name != "GPT2" else {k: SMALL[k] for k in SMALL if k.endswith(("_token_id", "b_size"))}),
            **fields,
        }
        config = getattr(transformers, name + "Config")(**given, attn_implementation="eager")
        model = getattr(transformers, own.get(name + kind, name + kind))(config).eval()
        loud(model)
        return model

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_both_ways(family: str, tmp_path: Path, theirs: Any, sequences: Any) -> None:
    from transformers import AutoModelForCausalLM

    reference = theirs(*FAMILIES[family])
    reference.save_pretrained(tmp_path / "theirs")
    ids = torch.from_numpy(sequences(0, [40])[0]).long()
    with torch.no_grad():
        expected = reference(ids[None]).logits[0]
        ours = load_model(tmp_path / "theirs")
        torch.testing.assert_close(ours.logits(ids), expected, atol=1e-4, rtol=0)
        save_model(ours, tmp_path / "ours", max_shard_bytes=20_000)
        assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
        back, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert back.config.eos_token_id == reference.config.eos_token_id
        torch.testing.assert_close(back.eval()(ids[None]).logits[0], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(load_model(tmp_path / "ours").logits(ids), ours.logits(ids), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_scores_equal_transformers_both_ways(name: str, tmp_path: Path, theirs: Any, sequences: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    reference = theirs(name, {"num_labels": 1}, "ForSequenceClassification")
    reference.save_pretrained(tmp_path / "theirs")
    ids = [x % 58 + 3 for x in sequences(1, [9, 17, 4])]
    padded = torch.zeros(3, 17, dtype=torch.long)
    for row, x in zip(padded, ids, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    with torch.no_grad():
        expected = reference(padded, attention_mask=(padded != 0).long()).logits[:, 0]
        ours = load_scalar_model(tmp_path / "theirs")
        torch.testing.assert_close(ours(Layout.packed(ids)), expected, atol=1e-4, rtol=0)
        save_model(ours, tmp_path / "ours")
        back, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and back.config.num_labels == 1
        torch.testing.assert_close(
            back.eval()(padded, attention_mask=(padded != 0).long()).logits[:, 0], expected, atol=1e-4, rtol=0
        )


def test_config_keys_of_older_transformers(tmp_path: Path, theirs: Any, sequences: Any) -> None:
    reference = theirs("Llama", {"rope_parameters": LLAMA3})
    reference.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    scaling = raw.pop("rope_parameters")
    raw |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ids = torch.from_numpy(sequences(0, [40])[0]).long()
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path).logits(ids), reference(ids[None]).logits[0], atol=1e-4, rtol=0)


def test_gradients_equal_transformers(tmp_path: Path, theirs: Any, sequences: Any) -> None:
    from trueline.models.head import token_logps

    reference = theirs("Qwen3", {"head_dim": 8, "tie_word_embeddings": True})
    reference.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    x = sequences(2, [30])[0]
    layout = Layout.packed([x])
    token_logps(ours(layout), ours.head_weight, layout).logps_N.sum().backward()
    ids = torch.from_numpy(x).long()[None]
    logps = reference(ids).logits[0, :-1].log_softmax(-1)
    logps[np.arange(29), ids[0, 1:]].sum().backward()
    for name, parameter in ours.named_parameters():
        expected = reference.get_parameter("model." + name).grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
