"""What is refused, in one clear sentence, and what is not lost on the way to disk and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trueline.models.config import DecoderConfig
from trueline.models.files import fingerprint, load_model, load_scalar_model, new_model, save_model

RAW: dict[str, Any] = dict(
    architectures=["Qwen3ForCausalLM"],
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


@pytest.mark.parametrize(
    "change, says",
    [
        (
            {"architectures": ["BloomForCausalLM"]},
            r"BloomForCausalLM cannot be computed.*LlamaForCausalLM.*Qwen3ForCausalLM",
        ),
        ({"architectures": None, "model_type": "mamba"}, "mamba cannot be computed"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' cannot be computed; these can: silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "'dynamic' cannot be computed.*llama3, yarn|'dynamic' cannot be computed",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs low_freq_factor"),
        ({"vocab_size": None}, "vocab_size missing"),
        ({"num_key_value_heads": 3}, "not a multiple"),
    ],
)
def test_configs_that_cannot_be_computed(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DecoderConfig.from_hf({**RAW, **change})


@pytest.mark.parametrize(
    "raw, windows",
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 32}, (32,) * 4),
        ({"model_type": "mistral", "architectures": None, "sliding_window": None}, (None,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "use_sliding_window": False}, (None,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "use_sliding_window": True}, (None,) * 4),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 32,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            (None, None, None, 32),
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 32}, (32, None, 32, None)),
        ({"architectures": ["Gemma3ForCausalLM"], "sliding_window": 32}, (32,) * 4),
        ({"architectures": ["Gemma3ForCausalLM"], "sliding_window": 8, "sliding_window_pattern": 3}, (8, 8, None, 8)),
        ({"architectures": ["Phi3ForCausalLM"], "sliding_window": 2047}, (2047,) * 4),
    ],
)
def test_windows(raw: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    config = DecoderConfig.from_hf({**RAW, "max_position_embeddings": 64, "num_hidden_layers": 4, **raw})
    assert tuple(config.window(layer) for layer in range(4)) == windows and config.max_length == 64
    assert DecoderConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.mark.parametrize(
    "fields",
    [{}, {"sliding_window": 16}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"eos_token_id": (1, 2)}],
)
def test_config_round_trip(fields: dict[str, Any]) -> None:
    shape = {k: v for k, v in RAW.items() if k != "architectures"}
    config = DecoderConfig(**shape, model_type="qwen3", qk_norm=True, **fields)
    assert DecoderConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_weights_that_do_not_fit(tiny: Any, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    for tensors, says in (
        ({k: v for k, v in good.items() if k != name}, f"lacks {name}"),
        ({**good, "extra": torch.zeros(1)}, "unexpected extra"),
        ({**good, name: torch.zeros(2, 2)}, r"up_proj.weight is \[2, 2\] and should be \[48, 32\]"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=says):
            load_model(tmp_path)


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json is missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickled"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model.safetensors is cut short or no safetensors file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": [')
    with pytest.raises(ValueError, match=r"config.json is not valid JSON \(line 1\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["nobody/of-that-name", "bad--name/x y"])
def test_hub_ids_that_give_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"{name}: no such directory, and the hub did not give a model of that name"):
        load_model(name)


@pytest.mark.skipif(os.name != "posix", reason="permissions are posix's")
def test_saved_files_have_the_usual_permissions(tiny: Any, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    modes = {path.stat().st_mode for path in save_model(tiny(), tmp_path / "model").iterdir()}
    assert modes == {usual.stat().st_mode}


def test_saving_over_the_directory_it_came_from(tiny: Any, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    model = load_model(tmp_path)
    before = fingerprint(model)
    save_model(model, tmp_path)
    assert fingerprint(model) == before == fingerprint(load_model(tmp_path))
    assert load_model(tmp_path, dtype=torch.bfloat16).embed_tokens.weight.dtype == torch.bfloat16


def test_saving_over_another_division_into_shards(tiny: Any, tmp_path: Path) -> None:
    first, second = tiny(), tiny(tie_word_embeddings=False)
    for model, limit in ((first, 20_000), (second, 5 << 30), (first, 20_000)):
        save_model(model, tmp_path, max_shard_bytes=limit)
        assert fingerprint(load_model(tmp_path)) == fingerprint(model)
        assert (tmp_path / "model.safetensors").exists() == (model is second)


def test_new_models(tiny: Any) -> None:
    config = tiny(tie_word_embeddings=False, qkv_bias=True, qk_norm=False).config
    a, b, c = new_model(config, 0), new_model(config, 0), new_model(config, 1)
    assert fingerprint(a) == fingerprint(b) != fingerprint(c)
    assert (
        0.018 < float(a.lm_head.weight.detach().std()) < 0.022
        and float(a.layers[0].self_attn.q_proj.bias.detach().abs().sum()) == 0
    )
    assert all(p.requires_grad for p in a.parameters())


def test_reward_model_from_a_language_model(tiny: Any, tmp_path: Path) -> None:
    save_model(tiny(tie_word_embeddings=False, pad_token_id=None), tmp_path / "lm")
    model = load_scalar_model(tmp_path / "lm", pad_token_id=3)
    assert model.score.weight.shape == (1, 32) and float(model.score.weight.detach().abs().sum()) > 0
    save_model(model, tmp_path / "rm")
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["pad_token_id"] == 3
    assert not [k for k in load_file(tmp_path / "rm" / "model.safetensors") if k.startswith("lm_head")]
    assert fingerprint(load_scalar_model(tmp_path / "rm")) == fingerprint(model)
    with pytest.raises(ValueError, match="use load_scalar_model"):
        load_model(tmp_path / "rm")


def test_a_config_that_names_another_family_is_not_saved(tmp_path: Path) -> None:
    shape = {key: value for key, value in RAW.items() if key != "architectures"}
    model = new_model(DecoderConfig(model_type="qwen3", qk_norm=False, **shape))
    with pytest.raises(ValueError, match=r"self_attn.k_norm.weight is a weight .* qwen3"):
        save_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
