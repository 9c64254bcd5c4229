"""Granite 3 (IBM, 2024): Llama with four factors, of the embedding, the products, each half's output and the logits."""

from __future__ import annotations

from trueline.models.families.family import Family

GRANITE = Family(
    model_type="granite",
    prefix="Granite",
    keys={
        "qkv_bias": "attention_bias",
        "output_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "embedding_multiplier": "embedding_multiplier",
        "attention_scale": "attention_multiplier",
        "residual_multiplier": "residual_multiplier",
        "logits_scaling": "logits_scaling",
    },
    defaults={"attention_scale": 1.0},
)
