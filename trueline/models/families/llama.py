"""Llama (2302.13971, 2407.21783), Yi and SmolLM; Mistral (2310.06825), which adds a sliding window in every layer."""

from __future__ import annotations

from trueline.models.families.family import Family

LLAMA = Family(
    model_type="llama",
    prefix="Llama",
    also=("YiForCausalLM", "YiForSequenceClassification"),
    keys={"qkv_bias": "attention_bias", "output_bias": "attention_bias", "mlp_bias": "mlp_bias"},
)

MISTRAL = Family(
    model_type="mistral",
    prefix="Mistral",
    keys={"sliding_window": "sliding_window"},
)
