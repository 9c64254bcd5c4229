"""GPT-NeoX (2204.06745) and Pythia (2304.01373): attention and MLP side by side, a quarter of each head rotated."""

from __future__ import annotations

from trueline.models.families.family import QKV, Family, Fused

GPT_NEOX = Family(
    model_type="gpt_neox",
    prefix="GPTNeoX",
    keys={
        "num_key_value_heads": "",
        "head_dim": "",
        "norm_eps": "layer_norm_eps",
        "parallel_block": "use_parallel_residual",
        "qkv_bias": "attention_bias",
        "output_bias": "attention_bias",
    },
    defaults={
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "parallel_block": True,
        "qkv_bias": True,
        "output_bias": True,
        "partial_rotary_factor": 0.25,
    },
    fixed={"norm": "layernorm", "gated_mlp": False, "mlp_bias": True},
    partial_rotary=True,
    rope_keys=("rotary_emb_base", "rotary_pct"),
    base="gpt_neox",
    names={
        "embed_tokens": "embed_in",
        "norm": "final_layer_norm",
        "self_attn": "attention",
        "o_proj": "dense",
        "up_proj": "dense_h_to_4h",
        "down_proj": "dense_4h_to_h",
    },
    fused=(Fused(QKV, "query_key_value", per_head=True),),
    old_names=((r"^embed_out\.", "lm_head."),),
    ignored=r"|\.attention\.(masked_)?bias$",
)
