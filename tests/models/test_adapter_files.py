"""Adapters on disk: what a folder holds is what is computed, and what cannot be computed is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.test_adapters import Tiny, logits, shake
from trueline.models.adapter_files import load_adapter, save_adapter
from trueline.models.adapters import active_adapters, adapters_of, attach
from trueline.models.files import load_model, save_model
from trueline.models.lora import LoRAConfig
from trueline.train.adapt import adapt
from trueline.train.config import TrainConfig


def change(folder: Path, fields: dict[str, Any]) -> None:
    """Other values in an adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_dropout_on_the_output_head_is_used_and_not_trained(tiny: Tiny, tmp_path: Path) -> None:
    save_model(tiny(tie_word_embeddings=False), tmp_path / "base")
    model = load_model(tmp_path / "base")
    attach(model, LoRAConfig(target_modules=("lm_head", "q_proj"), r=2))
    shake(model)
    folder = save_adapter(model, tmp_path / "adapter")
    change(folder, {"lora_dropout": 0.5})
    loaded = load_model(folder)
    assert adapters_of(loaded)["default"].lora_dropout == 0.5
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(ValueError, match=r"lora_dropout is 0\.5, and cannot be trained with on lm_head"):
        adapt(loaded, TrainConfig(), str(folder))
    with pytest.raises(ValueError, match=r"lora_dropout is 0\.1, and cannot be trained with on lm_head"):
        attach(tiny(tie_word_embeddings=False), LoRAConfig(target_modules=("lm_head",), lora_dropout=0.1))


def test_a_folder_loads_with_the_base_it_names(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    attach(model, LoRAConfig(r=2, target_modules=("o_proj", "mlp.up_proj")), "mine")
    shake(model)
    folder, config = save_adapter(model, tmp_path / "adapter", "mine"), tmp_path / "adapter" / "adapter_config.json"
    about = json.loads(config.read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "base") and about["task_type"] == "CAUSAL_LM"
    assert torch.equal(logits(load_model(folder)), logits(model))
    for named, place in (("../base", tmp_path / "adapter"), ("base", tmp_path)):  # from the adapter; from here
        config.write_text(json.dumps(about | {"base_model_name_or_path": named}))
        monkeypatch.chdir(place if named == "base" else Path(__file__).parent)
        assert torch.equal(logits(load_model(folder)), logits(model))
    config.write_text(json.dumps(about | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(ValueError, match=r"adapter_config.json names the base model ./gone: no such directory"):
        load_model(folder)
    config.write_text(json.dumps(about | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(ValueError, match="is an adapter too: merge that one first"):
        load_model(folder)
    loaded = load_model(tmp_path / "base")
    assert load_adapter(loaded, folder, "other") == "the fingerprint of its weights"
    assert active_adapters(loaded) == ("other",)
    assert load_model(folder.parent / "base", dtype=torch.bfloat16).embed_tokens.weight.dtype == torch.bfloat16


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora = True cannot be computed"),
    "bias": ({"bias": "all"}, "bias = 'all' cannot be computed"),
    "new": ({"some_future_option": {"x": 1}}, "some_future_option = .* cannot be computed"),
    "kind": ({"peft_type": "IA3"}, "peft_type is 'IA3', and only LORA"),
    "start": ({"init_lora_weights": "pissa"}, "'pissa', which changes the base's weights"),
    "embedding": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is embed_tokens"),
    "rank": ({"r": 3}, "or with another r than it says"),
    "rank of one": ({"rank_pattern": {"q_proj": 7}}, "or with another r than it says"),
    "regex": ({"alpha_pattern": {"(": 7}}, "is no regular expression"),
    "group often": ({"rank_pattern": {"(a+)+b": 2}}, r"pattern '\(a\+\)\+b' may take for ever to search"),
    "many stars": ({"alpha_pattern": {".*.*.*.*.*.*x": 2}}, "may take for ever to search"),
    "many choices": ({"rank_pattern": {"(a|a)" * 30 + "b": 2}}, "may take for ever to search"),
    "many optional": ({"rank_pattern": {"a?" * 40 + "a" * 40: 2}}, "may take for ever to search"),
    "many keys": ({"rank_pattern": {f".*.*.*{i}": 2 for i in range(50)}}, "may take for ever to search"),
    "looking ahead": ({"rank_pattern": {"(?=q_proj).*": 2}}, "may take for ever to search"),
    "deep": ({"rank_pattern": {"(" * 5000 + ")" * 5000: 2}}, "is no regular expression"),
    "zero": ({"r": 0}, "r is at least 1"),
    "no base": ({"base_model_name_or_path": None}, "names no base model"),
    "base of numbers": ({"base_model_name_or_path": [5]}, "names no base model"),
    "truth for a rank": ({"r": True}, "r = True is not what LoRA has there"),
    "half a rank": ({"r": 8.5}, "r = 8.5 is not what LoRA has there"),
    "no number": ({"lora_alpha": float("nan")}, "lora_alpha = nan is not what LoRA has there"),
    "text for a truth": ({"use_rslora": "no"}, "use_rslora = 'no' is not what LoRA has there"),
    "list of ranks": ({"rank_pattern": [1]}, r"rank_pattern = \[1\] is not what LoRA has there"),
    "one module": ({"modules_to_save": 5}, "modules_to_save = 5 is no list of names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(name: str, tiny: Tiny, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    attach(model, LoRAConfig(r=2))
    folder = save_adapter(model, tmp_path / "adapter")
    changes, says = REFUSED[name]
    change(folder, changes)
    with pytest.raises(ValueError, match=says):
        load_model(folder)


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        "model.layers.1.self_attn.q_proj",
        "^model.layers.1.self_attn.q_proj",
        r"layers\.1\.mlp\.(up|down)_proj",
        r".*\.(0|1|2|3|4|5|6|7|8|9|10|11)\..*q_proj",
        r".*self_attn.*(q|k|v|o)_proj.*",
        r"layers\.[0-9]+\.self_attn\.[qk]_proj",
        r"model\.layers\.\d{1,2}\.(?:mlp|self_attn)\..*",
        "self_attn.*",
        "gone",
        "proj",
        "layers.?.*",
    ],
)
def test_patterns_are_searched_as_peft_does(key: str) -> None:
    """Real adapters' keys: the same layers match, the first key wins."""
    peft = pytest.importorskip("peft.utils.other")
    config = LoRAConfig(r=8, rank_pattern={key: 2, "up_proj": 3})
    places = [f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1, 11) for x in "qkvo"]
    for name in (*places, *(f"model.layers.{i}.mlp.{x}_proj" for i in (0, 1) for x in ("gate", "up", "down")), "lm_head"):
        theirs = config.rank_pattern.get(peft.get_pattern_key(config.rank_pattern.keys(), name), config.r)
        assert config.rank_and_scale(name)[0] == theirs, name


def test_the_slowest_pattern_that_is_taken_ends(tiny: Tiny) -> None:
    """Two hundred layers, and as many ways as are allowed: under seconds, where the refused ones take years."""
    config = LoRAConfig(rank_pattern={".*.*.*x": 2})
    assert [config.rank_and_scale(f"model.layers.{i}.self_attn.q_proj")[0] for i in range(20)] == [8] * 20


def test_weights_that_are_no_floats_are_refused_by_name(tiny: Tiny, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    attach(model, LoRAConfig(r=2))
    folder = save_adapter(model, tmp_path / "adapter")
    tensors = folder / "adapter_model.safetensors"
    held = load_file(tensors)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    for dtype, said in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")):
        save_file(held | {name: held[name].to(dtype)}, tensors)
        with pytest.raises(ValueError, match=rf"{name} is stored as {said}, and adapters are read as F64, F32, F16, BF16 only"):
            load_model(folder)
    save_file({key: tensor.to(torch.bfloat16) for key, tensor in held.items()}, tensors)
    load_model(folder)


def test_files_that_do_not_fit_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    for name, fields in (("base", {}), ("deep", {"num_hidden_layers": 1}), ("wide", {"intermediate_size": 64})):
        save_model(tiny(**fields), tmp_path / name)
    model = load_model(tmp_path / "base")
    attach(model, LoRAConfig(r=2))
    folder = save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="the model has adapters: merge them first"):
        save_model(model, tmp_path / "whole")
    tensors = folder / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    with pytest.raises(ValueError, match="has no such linear layer"):
        load_adapter(load_model(tmp_path / "deep"), folder)
    with pytest.raises(ValueError, match="made for another base model"):
        load_adapter(load_model(tmp_path / "wide"), folder)
    other = load_model(tmp_path / "base")
    other.layers[0].mlp.up_proj.weight.data[0, 0] += 1  # one weight of all
    with pytest.raises(ValueError, match="trained on other weights than this base model has"):
        load_adapter(other, folder)
    assert load_adapter(other, folder, any_base=True) == "the shapes of its weights only"
    held = load_file(tensors)
    save_file({key: tensor for key, tensor in held.items() if "q_proj.lora_B" not in key}, tensors)
    with pytest.raises(ValueError, match=r"lacks .*q_proj.lora_B"):
        load_model(folder)
    save_file({**held, "base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2)}, tensors)
    with pytest.raises(ValueError, match="embed_tokens"):
        load_model(folder)
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="fetch or write it again"):
        load_model(folder)
    tensors.unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing"):
        load_model(folder)


def test_families_that_fuse_their_projections_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    attach(model, LoRAConfig())
    model.config = dataclasses.replace(model.config, model_type="phi3")
    with pytest.raises(ValueError, match="phi3 models store q, k and v as one matrix"):
        save_adapter(model, tmp_path)
