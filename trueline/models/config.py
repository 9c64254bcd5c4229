"""What a decoder looks like, read from a Hugging Face config.json and written back.

    DecoderConfig.from_hf(json.load(...)) -> DecoderConfig -> .to_hf() -> json

The fields are the parts that decoders are made of; which family has which, and under what keys, is families/. An
architecture, an activation or a RoPE scaling that the decoder cannot compute is refused by name.

Left out: mixtures of experts, ALiBi, encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trueline.models.families import family_of, named, read_config, write_config


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One decoder. Field names are Hugging Face's where one family has them; what a family fixes is spelled out.

    The defaults are a Llama's.
    """

    model_type: str = "llama"
    """The family written into config.json: llama, qwen3, gemma2, gpt2, ... (families/)."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    # the block
    norm: str = "rmsnorm"
    """rmsnorm, rmsnorm_zero_centred (the weight is stored less 1: Gemma) or layernorm (with a bias)."""
    norm_eps: float = 1e-6
    pre_norms: bool = True
    """A norm before each half of a layer."""
    post_norms: bool = False
    """A norm behind each half of a layer, before it is added to the stream (Gemma; OLMo-2 has only these)."""
    parallel_block: bool = False
    """The MLP reads what the attention reads, and both are added at once (GPT-NeoX)."""
    shared_norm: bool = False
    """In a parallel block both halves read the same norm (StableLM)."""
    hidden_act: str = "silu"
    gated_mlp: bool = True
    """down(act(gate(x)) up(x)); False: down(act(up(x)))."""
    mlp_bias: bool = False

    # the attention
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias of the attention's output projection."""
    qk_norm: bool = False
    """A norm of queries and keys before they are rotated."""
    qk_norm_over: str = "head"
    """head (one weight for all heads: Qwen3), width (all heads at once: OLMo-2) or each (a weight per head: StableLM)."""
    attention_scale: float | None = None
    """Factor of the products of queries and keys; None is 1 / sqrt(head_dim)."""
    attn_logit_softcapping: float | None = None
    """Soft cap of these products (Gemma 2)."""
    sliding_window: int | None = None
    """A query sees itself and the sliding_window - 1 tokens before it, in the layers that layer_types names."""
    layer_types: tuple[str, ...] = ()
    """sliding_attention or full_attention per layer; empty: all sliding if there is a window."""

    # positions
    learned_positions: bool = False
    """A learned vector per position instead of rotations (GPT-2)."""
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """Empty, or the keys of Hugging Face's rope_parameters with `rope_type` linear, llama3, yarn or longrope."""
    partial_rotary_factor: float = 1.0
    """Share of a head's width that is rotated; the rest carries no position."""
    sliding_rope_theta: float | None = None
    """Theta of the layers with a window, which then have no scaling (Gemma 3); None: that of all layers."""

    # scales of the stream
    embedding_multiplier: float = 1.0
    embedding_is_scaled: bool = False
    """The multiplier belongs to the embedding (Gemma), so that noise on the embedding is not multiplied (Granite: it is)."""
    residual_multiplier: float = 1.0
    """Factor of what each half adds to the stream."""
    logits_scaling: float = 1.0
    """Divisor of the logits."""
    final_logit_softcapping: float | None = None

    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def max_length(self) -> int:
        """Longest sequence that the model computes as its authors meant it (LongRoPE: with its short factors)."""
        if self.rope_scaling.get("rope_type") == "longrope":
            return min(self.max_position_embeddings, self.rope_scaling["original_max_position_embeddings"])
        return self.max_position_embeddings

    @property
    def rotary_dim(self) -> int:
        """How many of a head's numbers are rotated."""
        return 0 if self.learned_positions else int(self.head_dim * self.partial_rotary_factor)

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer, or None."""
        sliding = not self.layer_types or self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if sliding else None

    def refuse_tokenizer(self, vocab_size: int) -> None:
        """A tokenizer with more entries than the embedding has rows is another model's. Fewer are usual: embeddings are padded
        to round sizes."""
        if vocab_size > self.vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {vocab_size - 1}, and the model's vocabulary ends at {self.vocab_size - 1}: "
                "use the model's own tokenizer"
            )

    @staticmethod
    def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
        """Reads a config.json; `where` names it in messages."""
        return DecoderConfig(**read_config(family_of(raw, where), raw, where, DecoderConfig.__annotations__))

    def to_hf(self, *, head: str = "tokens", dtype: object = "float32") -> dict[str, Any]:
        """The config.json that transformers reads.

        `head` is "tokens" (causal language model) or "scalar" (one-label classifier), `dtype` the weights' type.
        """
        return write_config(named(self.model_type), self, head, str(dtype).removeprefix("torch."))
