"""Qwen2 (2407.10671): biases of q, k and v. Qwen3 (2505.09388): a norm of each head's queries and keys instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trueline.models.families.family import Family, Raw, number, written_layer_types

if TYPE_CHECKING:
    from trueline.models.config import DecoderConfig


def read(raw: Raw) -> dict[str, Any]:
    """A window only where use_sliding_window says so: from layer max_window_layers on, or as layer_types says."""
    if not raw.get("use_sliding_window", False):
        return {"sliding_window": None}
    first = number(raw, "max_window_layers", 28, least=0)
    types = ("full_attention" if i < first else "sliding_attention" for i in range(raw["num_hidden_layers"]))
    return {"sliding_window": raw.get("sliding_window"), "layer_types": tuple(raw.get("layer_types") or types)}


def write(config: DecoderConfig) -> dict[str, Any]:
    """Both ways of saying which layers have the window."""
    raw: dict[str, Any] = {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
    }
    if config.sliding_window is not None:
        types = written_layer_types(config)
        raw |= {"max_window_layers": types.count("full_attention"), "layer_types": types}
    return raw


QWEN2 = Family(model_type="qwen2", prefix="Qwen2", fixed={"qkv_bias": True}, read=read, write=write)

QWEN3 = Family(
    model_type="qwen3",
    prefix="Qwen3",
    keys={"qkv_bias": "attention_bias", "output_bias": "attention_bias"},
    defaults={"head_dim": 128},
    fixed={"qk_norm": True},
    read=read,
    write=write,
)
