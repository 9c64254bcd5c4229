"""What a family of decoders is: the architecture's names, its keys in config.json, and its names in the weight files.

A family is data: which part of the decoder has which value, and what its files call it. A new one is one short file
(docs/stages/architectures.md). No family brings code that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from trueline.models.config import DecoderConfig

Raw = Mapping[str, Any]


class Fused(NamedTuple):
    """Several linear layers of one module that the file stores as one matrix, one below the other."""

    parts: tuple[str, ...]
    stored: str
    per_head: bool = False
    """The rows of one head's parts follow one another, head by head (GPT-NeoX)."""


QKV = "q_proj", "k_proj", "v_proj"


def nothing(*_: Any) -> dict[str, Any]:
    """No further fields, no further keys."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table of architectures."""

    model_type: str
    prefix: str
    """Of the architectures: Llama gives LlamaForCausalLM and LlamaForSequenceClassification."""
    causal: str = "ForCausalLM"
    classifier: str = ""
    """The sequence classifier's architecture, where it is not the prefix with ForSequenceClassification."""
    also: tuple[str, ...] = ()
    """Other names of the language model's architecture that are read."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Field of DecoderConfig -> its key in config.json, beyond BASE_KEYS; "" where the file has no such key."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Field -> its value where the file has no such key, or null."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Field -> the value that it has in every model of the family."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Key of config.json -> the one value (besides null) that can be computed."""
    partial_rotary: bool = False
    """The family knows a share of rotated numbers per head."""
    rope_keys: tuple[str, str] = ("rope_theta", "partial_rotary_factor")
    """Keys of theta and of that share beside rope_parameters."""
    read: Callable[[Raw], dict[str, Any]] = nothing
    """Fields that take more than a key: config.json -> field values."""
    write: Callable[[DecoderConfig], dict[str, Any]] = nothing
    """The reverse: keys beyond those of `keys`, which they override."""
    base: str = "model"
    """Prefix of all stored names but the heads'."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Part of a parameter's dotted name here -> in the file."""
    fused: tuple[Fused, ...] = ()
    stacked: Mapping[str, str] = field(default_factory=dict)
    """Part of a name whose rows are stored one by one -> where, {} being the row (StableLM's norms per head)."""
    transposed: bool = False
    """Matrices of layers are stored [in, out] (GPT-2)."""
    old_names: tuple[tuple[str, str], ...] = ()
    """Regular expression and replacement: names of older files -> today's."""
    ignored: str = ""
    """Regular expression, "|..." : stored tensors that hold no weights, such as masks."""

    def architecture(self, head: str) -> str:
        """The architecture's name; `head` is "tokens" or "scalar"."""
        return (
            self.prefix + self.causal
            if head == "tokens"
            else self.classifier or self.prefix + "ForSequenceClassification"
        )


def number(raw: Raw, key: str, otherwise: float, least: float = 1e-30) -> float:
    """A number of config.json that `read` computes with; `otherwise` where the file has no such key, or null."""
    value = otherwise if raw.get(key) is None else raw[key]
    if type(value) not in (int, float) or not least <= value <= 1e30:
        raise ValueError(f"{key} = {value!r} should be a number {'above 0' if 0 < least < 1 else f'of at least {least}'}")
    return value


def written_layer_types(config: DecoderConfig) -> list[str]:
    """layer_types of a config.json, one entry per layer."""
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def layer_types(raw: Raw, every: int) -> tuple[str, ...]:
    """layer_types as the file has them, or a window in all layers but each `every`-th."""
    layers = range(1, raw["num_hidden_layers"] + 1)
    return tuple(raw.get("layer_types") or ("sliding_attention" if i % every else "full_attention" for i in layers))
