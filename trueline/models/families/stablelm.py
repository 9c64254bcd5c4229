"""StableLM (2402.17834): LayerNorm, a quarter of each head rotated; some models norm each head alone, or are parallel."""

from __future__ import annotations

from trueline.models.families.family import Family

STABLELM = Family(
    model_type="stablelm",
    prefix="StableLm",
    keys={
        "head_dim": "",
        "norm_eps": "layer_norm_eps",
        "qkv_bias": "use_qkv_bias",
        "qk_norm": "qk_layernorm",
        "parallel_block": "use_parallel_residual",
    },
    defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25},
    fixed={"norm": "layernorm", "qk_norm_over": "each", "shared_norm": True},
    partial_rotary=True,
    stacked={"q_norm": "q_layernorm.norms.{}", "k_norm": "k_layernorm.norms.{}"},
)
