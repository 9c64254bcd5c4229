"""GPT-2 (Radford et al., 2019): learned positions, LayerNorm, an MLP without a gate; matrices stored [in, out]."""

from __future__ import annotations

from typing import Any

from trueline.models.families.family import QKV, Family, Fused, Raw


def read(raw: Raw) -> dict[str, Any]:
    unscaled = {} if raw.get("scale_attn_weights", True) else {"attention_scale": 1.0}
    return {"intermediate_size": raw.get("n_inner") or 4 * raw["n_embd"], **unscaled}


GPT2 = Family(
    model_type="gpt2",
    prefix="GPT2",
    causal="LMHeadModel",
    keys={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "",
        "head_dim": "",
        "hidden_act": "activation_function",
        "max_position_embeddings": "n_positions",
        "norm_eps": "layer_norm_epsilon",
    },
    defaults={
        "intermediate_size": 0,  # given by read()
        "hidden_act": "gelu_new",
        "max_position_embeddings": 1024,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    fixed={
        "norm": "layernorm",
        "learned_positions": True,
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    only={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    read=read,
    write=lambda config: {"scale_attn_weights": config.attention_scale is None},
    base="transformer",
    names={
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "layers": "h",
        "norm": "ln_f",
        "self_attn": "attn",
        "o_proj": "c_proj",
        "up_proj": "c_fc",
        "down_proj": "c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    },
    fused=(Fused(QKV, "c_attn"),),
    transposed=True,
    old_names=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    ignored=r"|\.attn\.(masked_)?bias$",
)
