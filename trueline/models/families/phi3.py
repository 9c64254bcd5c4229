"""Phi-3 (2404.14219) and Phi-4: Llama's block, with q, k, v and with gate, up stored as one matrix each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trueline.models.families.family import QKV, Family, Fused

if TYPE_CHECKING:
    from trueline.models.config import DecoderConfig


def write(config: DecoderConfig) -> dict[str, Any]:
    """The old context is a key of its own too, where there is one."""
    old = config.rope_scaling.get("original_max_position_embeddings")
    return {} if old is None else {"original_max_position_embeddings": old}


PHI3 = Family(
    model_type="phi3",
    prefix="Phi3",
    keys={"sliding_window": "sliding_window"},
    defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096},
    partial_rotary=True,
    write=write,
    fused=(Fused(QKV, "qkv_proj"), Fused(("gate_proj", "up_proj"), "gate_up_proj")),
)
