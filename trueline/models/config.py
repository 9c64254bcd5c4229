"""What a decoder looks like, read from a Hugging Face config.json and written back.

    DecoderConfig.from_hf(json.load(...)) -> DecoderConfig -> .to_hf() -> json

Both key styles are read: `rope_theta` with `rope_scaling`, and `rope_parameters`. An architecture, an activation or a
RoPE scaling that the decoder cannot compute is refused by name. A sliding window is kept as a limit of the length
(a sequence not longer than the window never feels it); the decoder refuses longer ones.

Left out: mixtures of experts, ALiBi, partial rotary embeddings, windows that are felt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One decoder. Field names are Hugging Face's; what a family fixes (QK-norm, biases) is spelled out."""

    model_type: str = "qwen3"
    """llama, mistral, qwen2 or qwen3: the family written into config.json."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    """Bias of the attention's output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    """Empty, or the keys of Hugging Face's rope_parameters with `rope_type` linear, llama3 or yarn."""
    sliding_window: int | None = None
    """Longest sequence that full attention computes exactly, or None."""
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def max_length(self) -> int:
        """Longest sequence that the model computes as its authors meant it."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @staticmethod
    def from_hf(raw: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
        """Reads a config.json; `where` names it in messages."""
        family = _family(raw, where)
        for key, only in (("hidden_act", "silu"), ("partial_rotary_factor", 1.0), ("quantization_config", None)):
            if raw.get(key, only) != only:
                raise ValueError(f"{where}: {key} = {raw[key]!r} cannot be computed; only {only!r} can.")
        missing = [
            k
            for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            if raw.get(k) is None
        ]
        if missing:
            raise ValueError(f"{where}: {', '.join(missing)} missing; is it the config.json of a language model?")
        heads = raw["num_attention_heads"]
        kv_heads = raw.get("num_key_value_heads") or heads
        if heads % kv_heads:
            raise ValueError(
                f"{where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}."
            )
        theta, scaling = _rope(raw, where)
        bias = bool(raw.get("attention_bias", False)) and family != "mistral"
        eos = raw.get("eos_token_id")
        default_head_dim = 128 if family == "qwen3" else raw["hidden_size"] // heads
        return DecoderConfig(
            model_type=family,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=raw.get("head_dim") or default_head_dim,
            max_position_embeddings=raw.get("max_position_embeddings") or 2048,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bias,
            output_bias=family != "qwen2" and bias,
            mlp_bias=bool(raw.get("mlp_bias", False)) and family == "llama",
            qk_norm=family == "qwen3",
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=_window(raw, family),
            initializer_range=raw.get("initializer_range", 0.02),
            bos_token_id=raw.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=raw.get("pad_token_id"),
        )

    def to_hf(self, *, head: str = "tokens", dtype: object = "float32") -> dict[str, Any]:
        """The config.json that transformers reads.

        `head` is "tokens" (causal language model) or "scalar" (one-label classifier), `dtype` the weights' type.
        """
        prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[self.model_type]
        raw: dict[str, Any] = {
            "architectures": [prefix + ("ForCausalLM" if head == "tokens" else "ForSequenceClassification")],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_dropout": 0.0,
            "use_cache": True,
            # both key styles: readers before and after transformers 5
            "rope_theta": self.rope_theta,
            "rope_scaling": dict(self.rope_scaling) or None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta, **self.rope_scaling},
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id) if isinstance(self.eos_token_id, tuple) else self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": str(dtype).removeprefix("torch."),
            "torch_dtype": str(dtype).removeprefix("torch."),
        }
        if self.model_type in ("llama", "qwen3"):
            raw["attention_bias"] = self.qkv_bias
        if self.model_type == "llama":
            raw["mlp_bias"] = self.mlp_bias
        if self.model_type == "mistral":
            raw["sliding_window"] = self.sliding_window
        if self.model_type in ("qwen2", "qwen3"):
            raw |= {"use_sliding_window": self.sliding_window is not None, "sliding_window": self.sliding_window}
            if self.sliding_window is not None:
                raw["max_window_layers"] = 0
        if head == "scalar":
            raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return raw


def _family(raw: Mapping[str, Any], where: str) -> str:
    families = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "Yi": "Yi"}
    known = {
        f"{name}{head}": family
        for family, name in families.items()
        for head in ("ForCausalLM", "ForSequenceClassification")
    }
    given = (raw.get("architectures") or [None])[0]
    family = known.get(given) if given else next((f for f in families if f == raw.get("model_type")), None)
    if family is None:
        name = given or raw.get("model_type") or "an unnamed architecture"
        raise ValueError(f"{where}: {name} cannot be computed; these can: {', '.join(known)}.")
    return "llama" if family == "Yi" else family


def _window(raw: Mapping[str, Any], family: str) -> int | None:
    window = raw.get("sliding_window")
    used = family == "mistral" or (family in ("qwen2", "qwen3") and raw.get("use_sliding_window", False))
    layers = raw.get("layer_types")
    if layers and "sliding_attention" not in layers and family != "mistral":
        used = False
    return window if used else None


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    given = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    theta = given.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
    if given.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor below 1 cannot be computed.")
    needs = {
        "default": (),
        "linear": ("factor",),
        "yarn": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if kind not in needs:
        raise ValueError(f"{where}: RoPE scaling {kind!r} cannot be computed; these can: {', '.join(needs)}.")
    missing = [k for k in needs[kind] if given.get(k) is None]
    if missing:
        raise ValueError(f"{where}: RoPE scaling {kind!r} needs {', '.join(missing)}.")
    if kind == "default":
        return float(theta), {}
    if kind == "yarn" and not given.get("original_max_position_embeddings"):
        given["original_max_position_embeddings"] = raw.get("max_position_embeddings") or 2048
    return float(theta), {"rope_type": kind, **given}
