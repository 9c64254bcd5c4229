"""Adapters on disk as PEFT lays them out: adapter_config.json and adapter_model.safetensors.

    save_adapter(model, dir)            PEFT reads it: PeftModel.from_pretrained(base, dir)
    load_adapter(model, dir)            one that PEFT or we wrote, onto a model that is here
    load_adapted(dir)                   the base model that the file names, with the adapter on it

The layers are those whose matrices the file holds; ranks are checked against the config, since a wrong one would only
rescale. What an adapter does beyond W + s B A (DoRA, biases, embeddings, ...) is refused by name. Beside PEFT's two files
we write base.json, the fingerprint of the base's weights; loading checks it.

Left out: folders with several adapters; base models whose files store matrices in other pieces than the decoder's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trueline.models.adapters import Adaptable, adapters_of, add, base_fingerprint, linears, wrappers
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.families import named
from trueline.models.files import load_model, load_scalar_model, read_config, save_tensors
from trueline.models.header import FLOATS, read_header
from trueline.models.lora import HeadCopies, LoRAConfig, LoRALinear
from trueline.store import ADAPTER_CONFIG, adapter_base, local_folder, write_atomic

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FINGERPRINT = "base.json"
COMPUTED = {"r": int, "lora_alpha": float, "lora_dropout": float, "use_rslora": bool, "rank_pattern": int, "alpha_pattern": float}
"""Keys of adapter_config.json that are fields of LoRAConfig, and what their value is (of a pattern: its values)."""
HARMLESS = (
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "auto_mapping",
        "inference_mode",
    ),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("init_lora_weights", "eva_config", "qalora_group_size", "megatron_core", "ensure_weight_tying"),
)
"""Keys that do not change what stored matrices compute; any other key must be unset."""
MODEST_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base's weights alone."""


def save_adapter(
    model: Adaptable, folder: str | Path, name: str = "default", *, base: str = "", fingerprint: str = ""
) -> Path:
    """Write one adapter of a model. `base` names the base model, by default the folder that the model came from.

    A folder is written as an absolute path: PEFT reads a relative one from wherever it is started.
    """
    folder, decoder = Path(folder), refuse_fused(model)
    if name not in adapters_of(model):
        raise ValueError(f"the model has no adapter {name!r}: it has {', '.join(adapters_of(model)) or 'none'}")
    folder.mkdir(parents=True, exist_ok=True)
    config, base = adapters_of(model)[name], base or decoder.source
    tensors = adapter_tensors(model, name)
    layers = sorted({key.removeprefix(PREFIX).partition(".lora_")[0] for key in tensors if ".lora_" in key})
    about = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if isinstance(model, ScalarModel) else "CAUSAL_LM",
        "base_model_name_or_path": str(Path(base).resolve()) if Path(base).is_dir() and base else base,
        "revision": None,
        "inference_mode": True,
        "auto_mapping": None,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": layers,
        "modules_to_save": list(config.modules_to_save) or None,
        "use_rslora": config.use_rslora,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_dora": False,
    }
    part = folder / f".{TENSORS}.part"
    save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
    os.replace(part, folder / TENSORS)
    write_atomic(folder / FINGERPRINT, json.dumps({"sha256": fingerprint or base_fingerprint(model)}) + "\n")
    write_atomic(folder / ADAPTER_CONFIG, json.dumps(about, indent=2) + "\n")
    return folder


def adapter_tensors(model: Adaptable, name: str) -> dict[str, Tensor]:
    """The parameters of one adapter by their stored names."""
    places = {place: stored for stored, place in linears(model).items()}
    found: dict[str, Tensor] = {}
    for place, wrapper in wrappers(model).items():
        stored = PREFIX + places[place]
        if isinstance(wrapper, LoRALinear) and name in wrapper.scales:
            found[f"{stored}.lora_A.weight"] = wrapper.lora_A[name]
            found[f"{stored}.lora_B.weight"] = wrapper.lora_B[name]
        elif isinstance(wrapper, HeadCopies) and name in wrapper.copies:
            found[f"{stored}.weight"] = wrapper.copies[name].get_parameter("weight")
    return found


def load_adapted(
    folder: Path, head: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **of_scalar: Any
) -> Adaptable:
    """The base model that an adapter folder names, with the adapter on it; `head` is "tokens" or "scalar"."""
    base = adapter_base(folder)
    source = local_folder(base, where=f"{folder / ADAPTER_CONFIG} names the base model ")
    model: Adaptable
    if head == "tokens":
        model = load_model(source, dtype=dtype, device=device)
    else:
        model = load_scalar_model(source, dtype=dtype, device=device, **of_scalar)
    if (
        head == "scalar"
        and not read_config(source)[1]
        and "score" not in (_config(folder).get("modules_to_save") or ())
    ):
        raise ValueError(
            f"{folder}: neither the adapter nor its base model {base} holds a score: it is no reward model"
        )
    load_adapter(model, folder, any_base=dtype != torch.float32)  # rounded weights have another fingerprint
    return model


def load_adapter(model: Adaptable, folder: str | Path, name: str = "default", *, any_base: bool = False) -> str:
    """Put a stored adapter on a model and make it the active one; how its base was checked, in words.

    Refused (ValueError): other weights than those it was trained on, unless `any_base`; layers that the model does not
    have; shapes and ranks that do not fit; anything beyond W + s B A.
    """
    folder = Path(folder)
    refuse_fused(model)
    config, shapes = _lora_config(_config(folder), folder), _shapes(folder / TENSORS)
    layers = linears(model)
    held = sorted({key.removeprefix(PREFIX).partition(".lora_")[0] for key in shapes if ".lora_" in key})
    wanted = {
        f"{PREFIX}{layer}.weight": tuple(_weight(model, layers, layer, folder)) for layer in config.modules_to_save
    }
    for layer in held:
        out, into = _weight(model, layers, layer, folder)
        rank, _ = config.rank_and_scale(layer)
        wanted[f"{PREFIX}{layer}.lora_A.weight"], wanted[f"{PREFIX}{layer}.lora_B.weight"] = (rank, into), (out, rank)
    for problem, keys in (("lacks", wanted.keys() - shapes.keys()), ("holds", shapes.keys() - wanted.keys())):
        if keys:
            raise ValueError(
                f"{folder / TENSORS} {problem} {min(keys)}: it does not fit its {ADAPTER_CONFIG} on this model"
            )
    wrong = [
        f"{key} is {list(shapes[key])}, not {list(shape)}" for key, shape in wanted.items() if shapes[key] != shape
    ]
    if wrong:
        raise ValueError(f"{folder}: {wrong[0]}: made for another base model, or with another r than it says")
    if not held:
        raise ValueError(f"{folder / TENSORS} holds no adapter")
    given = _config(folder, FINGERPRINT).get("sha256") if (folder / FINGERPRINT).is_file() else None
    if given and not any_base and given != base_fingerprint(model):
        raise ValueError(
            f"{folder} was trained on other weights than this base model has (sha256 {str(given)[:12]}): name the right model in "
            f"its {ADAPTER_CONFIG}, or delete its {FINGERPRINT} to use it all the same"
        )
    add(model, replace(config, target_modules=tuple(held)), held, name)
    fill_adapter(model, folder, name)
    return "the fingerprint of its weights" if given and not any_base else "the shapes of its weights only"


@torch.no_grad()
def fill_adapter(model: Adaptable, folder: Path, name: str = "default") -> None:
    """The stored values of an adapter into one that the model has."""
    with safe_open(str(folder / TENSORS), framework="pt") as file:
        for key, parameter in adapter_tensors(model, name).items():
            parameter.copy_(file.get_tensor(key))


def refuse_fused(model: Adaptable) -> Decoder:
    """The decoder; a ValueError for one of a family whose adapters have no file that both sides read."""
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    family = named(decoder.config.model_type)
    if family.fused or family.transposed:
        raise ValueError(
            f"{family.model_type} models store q, k and v as one matrix, which PEFT adapts as one and the decoder as three: "
            "train all weights (lora_r = 0)"
        )
    return decoder


def _weight(model: nn.Module, layers: Mapping[str, str], layer: str, folder: Path) -> torch.Size:
    if layer not in layers:
        raise ValueError(f"{folder / TENSORS} adapts {layer}, and this base model has no such linear layer")
    module = model.get_submodule(layers[layer])
    weight = module.base.weight if isinstance(module, LoRALinear | HeadCopies) else module.weight
    assert isinstance(weight, Tensor)
    return weight.shape


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        pickled = " (adapter_model.bin can run code: save it again as safetensors)" if path.with_suffix(".bin").exists() else ""
        raise ValueError(f"{path} is missing{pickled}")
    stored = read_header(path)
    for key, one in stored.items():
        if one.dtype not in FLOATS:
            raise ValueError(f"{path}: {key} is stored as {one.dtype}, and adapters are read as {', '.join(FLOATS)} only")
    return {key: one.shape for key, one in stored.items()}


def _config(folder: Path, name: str = ADAPTER_CONFIG) -> dict[str, Any]:
    path = folder / name
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is not valid JSON: fetch or write it again") from None


def _is(value: Any, kind: type) -> bool:
    """Whether JSON gave that kind: whole numbers count as numbers, truths do not, nor do NaN and infinity."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _lora_config(raw: Mapping[str, Any], folder: Path) -> LoRAConfig:
    path = folder / ADAPTER_CONFIG
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {raw.get('peft_type')!r}, and only LORA can be computed")
    if raw.get("init_lora_weights") not in MODEST_STARTS:
        raise ValueError(
            f"{path}: init_lora_weights is {raw['init_lora_weights']!r}, which changes the base's weights: "
            "convert the adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    for key, value in raw.items():
        if key not in (*COMPUTED, *HARMLESS) and value not in (None, False, "none", {}, []):
            raise ValueError(f"{path}: {key} = {value!r} cannot be computed, only plain LoRA can")
    for key, kind in COMPUTED.items():
        given = raw.get(key)
        values = given.values() if key.endswith("_pattern") and isinstance(given, dict) else [given]
        if given is not None and not all(_is(value, kind) for value in values):
            raise ValueError(f"{path}: {key} = {given!r} is not what LoRA has there: fetch or write the file again")
    if not isinstance(raw.get("modules_to_save") or [], list):
        raise ValueError(f"{path}: modules_to_save = {raw['modules_to_save']!r} is no list of names")
    saved = tuple(m for m in raw.get("modules_to_save") or () if m != "classifier")  # PEFT names both of its heads
    fields = {key: raw[key] for key in COMPUTED if raw.get(key) is not None}
    try:
        return LoRAConfig(**fields, modules_to_save=saved)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
