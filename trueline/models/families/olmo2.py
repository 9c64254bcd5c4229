"""OLMo 2 (2501.00656): norms only behind each half, and one norm of all queries (all keys) of a token together."""

from __future__ import annotations

from trueline.models.families.family import Family

OLMO2 = Family(
    model_type="olmo2",
    prefix="Olmo2",
    keys={"qkv_bias": "attention_bias", "output_bias": "attention_bias"},
    defaults={"norm_eps": 1e-5},
    fixed={"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_over": "width"},
    names={"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"},
)
