"""What of our decoders llama.cpp computes: one of its programs per family, and what that program reads.

    target_of(config) -> Target, or a ValueError that names what llama.cpp would compute otherwise

llama.cpp ignores what it does not know, so a file that it loads may still be another model: the list here is what its sources
compute (src/models/*.cpp; tests/models/test_gguf.py compares both), and everything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trueline.models.config import DecoderConfig
from trueline.models.families import named

QKV = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
TANH_GELU = "gelu_new", "gelu_fast", "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What llama.cpp's program for a family reads and computes."""

    arch: str
    interleaved: bool = False
    """It rotates pairs (2i, 2i + 1) of a head, not (i, i + E / 2)."""
    acts: Sequence[str] = ("silu",)
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Its tensor -> our layers that it holds, one below the other."""
    own_head: bool = False
    """It wants an output matrix even where the embedding serves as one."""
    tied_only: bool = False
    needs_biases: bool = False
    """It wants biases of all projections: zeros where there are none."""
    output_bias: bool = False
    mlp_bias: bool = False
    free_head_dim: bool = False
    """A head's width may be another than hidden_size / heads."""
    windows: int = 0
    """Every so many layers one sees everything, the others a sliding window, unless the file says otherwise; 0: no windows."""
    caps: bool = False
    """It caps products and logits, always."""
    scalings: Sequence[str] = ("linear", "yarn")
    factors: bool = False
    """It reads Granite's four factors."""
    large: int = 0
    """Of a model with so many layers it scales products by 1 / sqrt(D / H) instead of 1 / sqrt(E)."""


LLAMA = Target(
    arch="llama", interleaved=True, output_bias=True, mlp_bias=True, free_head_dim=True, scalings=("linear", "yarn", "llama3", "longrope")
)
TARGETS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Target(arch="qwen2"),
    "qwen3": Target(arch="qwen3", free_head_dim=True),
    "gemma2": Target(
        arch="gemma2", acts=TANH_GELU, tied_only=True, free_head_dim=True, windows=2, caps=True, scalings=("linear",), large=46
    ),
    "gemma3_text": Target(arch="gemma3", acts=TANH_GELU, free_head_dim=True, windows=6, scalings=("linear",), large=62),
    "gpt2": Target(arch="gpt2", acts=TANH_GELU, fused={"attn_qkv": QKV}, needs_biases=True, output_bias=True, mlp_bias=True),
    "gpt_neox": Target(
        arch="gptneox", acts=(*TANH_GELU, "gelu"), fused={"attn_qkv": QKV}, own_head=True, needs_biases=True, output_bias=True,
        mlp_bias=True,
    ),
    "phi3": Target(
        arch="phi3", fused={"attn_qkv": QKV, "ffn_up": ("mlp.gate_proj", "mlp.up_proj")}, scalings=("linear", "yarn", "longrope")
    ),
    "olmo2": Target(arch="olmo2", own_head=True),
    "granite": Target(
        arch="granite", interleaved=True, output_bias=True, mlp_bias=True, free_head_dim=True, factors=True,
        scalings=("linear", "yarn", "llama3"),
    ),
    "stablelm": Target(arch="stablelm", own_head=True),
}  # fmt: skip
"""model_type -> llama.cpp's program."""


def target_of(config: DecoderConfig) -> Target:
    """llama.cpp's program for the model, or a sentence about what it does not compute."""
    family = named(config.model_type)
    target = TARGETS.get(config.model_type)
    who = family.architecture("tokens")
    if target is None:
        known = ", ".join(named(name).architecture("tokens") for name in TARGETS)
        raise ValueError(f"{who} cannot be written as GGUF; these can: {known}.")
    D, heads, scaling = config.hidden_size, config.num_attention_heads, config.rope_scaling.get("rope_type", "")
    own = {"embedding_multiplier": D**0.5 if config.embedding_is_scaled else 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}
    odd = [key for key, usual in own.items() if not target.factors and not math.isclose(getattr(config, key), usual, rel_tol=1e-6)]
    capped = config.attn_logit_softcapping is not None, config.final_logit_softcapping is not None
    problems = (
        (config.hidden_act not in target.acts, f"hidden_act = {config.hidden_act!r}"),
        (config.output_bias and not target.output_bias, "a bias of the attention's output (attention_bias)"),
        (config.mlp_bias and not target.mlp_bias, "mlp_bias"),
        (not target.free_head_dim and config.head_dim * heads != D, f"head_dim = {config.head_dim} with {heads} heads of {D} numbers"),
        (target.tied_only and not config.tie_word_embeddings, "an output head of its own (tie_word_embeddings = false)"),
        (target.caps and not all(capped), "attn_logit_softcapping or final_logit_softcapping = null"),
        (not target.caps and capped[0], "attn_logit_softcapping"),
        (target.arch not in ("gemma2", "gemma3") and capped[1], "final_logit_softcapping"),
        (bool(scaling) and scaling not in target.scalings, f"RoPE scaling {scaling!r}"),
        (
            scaling == "yarn" and (config.rope_scaling.get("beta_fast") or 32, config.rope_scaling.get("beta_slow") or 1) != (32, 1),
            "YaRN with another beta_fast than 32 or beta_slow than 1",
        ),
        (scaling == "yarn" and not config.rope_scaling.get("truncate", True), "YaRN with truncate = false"),
        (config.sliding_rope_theta is not None and target.arch != "gemma3", "a theta of its own in layers with a window"),
        (
            target.arch == "gemma3" and config.sliding_rope_theta is None and bool(scaling) and config.sliding_window is not None,
            f"RoPE scaling {scaling!r} in layers with a window",
        ),
        (bool(odd), ", ".join(odd)),
    )
    for wrong, what in problems:
        if wrong:
            raise ValueError(f"llama.cpp does not compute {what} of {who}: this model cannot be written as GGUF.")
    return target


def context_of(config: DecoderConfig, target: Target) -> int:
    """Longest sequence that llama.cpp computes as we do: where it has no windows, no longer than the window."""
    if config.sliding_window is None or target.windows:
        return config.max_length
    return min(config.max_length, config.sliding_window)
