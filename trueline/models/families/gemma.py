"""Gemma 2 (2408.00118) and the text models of Gemma 3 (2503.19786).

Norms on both sides of each half, weights stored less 1; every second layer (Gemma 3: five of six) has a window. Gemma 2
caps products and logits; Gemma 3 norms queries and keys instead, and rotates its windowed layers by a theta of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trueline.models.families.family import Family, Raw, layer_types, number, written_layer_types

if TYPE_CHECKING:
    from trueline.models.config import DecoderConfig

KEYS = {
    "hidden_act": "hidden_activation",
    "qkv_bias": "attention_bias",
    "output_bias": "attention_bias",
    "final_logit_softcapping": "final_logit_softcapping",
    "sliding_window": "sliding_window",
}
DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096}
FIXED = {"norm": "rmsnorm_zero_centred", "post_norms": True, "embedding_is_scaled": True}
NAMES = {
    "attention_output_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}


def read(raw: Raw) -> dict[str, Any]:
    """The stream begins at sqrt(D) times the embedding; products are scaled by query_pre_attn_scalar, not by E."""
    return {
        "embedding_multiplier": raw["hidden_size"] ** 0.5,
        "attention_scale": number(raw, "query_pre_attn_scalar", 256) ** -0.5,
        "layer_types": layer_types(raw, every=2),
    }


def read3(raw: Raw) -> dict[str, Any]:
    """Older files give the rhythm and the local theta as keys of their own."""
    local = {"sliding_rope_theta": float(number(raw, "rope_local_base_freq", 10000.0))}
    nested = (raw.get("rope_parameters") or {}).get("sliding_attention")
    types = layer_types(raw, every=int(number(raw, "sliding_window_pattern", 6, least=1)))
    return {**read(raw), "layer_types": types, **({} if nested else local)}


def write(config: DecoderConfig) -> dict[str, Any]:
    """The scale of products as the number it is the root of."""
    scale = config.attention_scale or config.head_dim**-0.5
    return {
        "query_pre_attn_scalar": round(scale**-2),
        "layer_types": written_layer_types(config),
        "sliding_window": config.sliding_window or 4096,  # transformers wants a number even where no layer uses it
    }


GEMMA2 = Family(
    model_type="gemma2",
    prefix="Gemma2",
    keys={**KEYS, "attn_logit_softcapping": "attn_logit_softcapping"},
    defaults={**DEFAULTS, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    fixed=FIXED,
    only={"use_bidirectional_attention": False},
    read=read,
    write=write,
    names=NAMES,
)

GEMMA3 = Family(
    model_type="gemma3_text",
    prefix="Gemma3",
    classifier="Gemma3TextForSequenceClassification",
    keys=KEYS,
    defaults={**DEFAULTS, "rope_theta": 1e6},
    fixed={**FIXED, "qk_norm": True},
    only={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    read=read3,
    write=lambda config: {**write(config), "rope_local_base_freq": config.sliding_rope_theta},
    names=NAMES,
)
