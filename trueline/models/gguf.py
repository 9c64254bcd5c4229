"""A decoder as one GGUF file that llama.cpp loads (format: docs/gguf.md of the ggml repository).

    write_gguf(model, "model.gguf", kind="q8_0", tokenizer=gguf_tokenizer(...))      the metadata of tokens/gguf.py

llama.cpp has one program per family, and a file holds what that program reads: gguf_targets.py says what it
computes, and a model with anything else is refused by name.
What is rewritten on the way keeps the function: rows of q and k where llama.cpp rotates pairs (2i, 2i + 1) instead of halves,
norm weights that are stored less 1, a scale of attention products that it does not know (it goes into q), joined matrices.

Left out: reading GGUF, adapters (merge them first), k-quants and importance matrices (llama-quantize makes them of an f16 file).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.gguf_targets import Target, context_of, target_of
from trueline.models.lora import LoRALinear
from trueline.models.rope import frequencies

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "attention_output_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp_output_norm": "post_ffw_norm",
}
ROOT = {"embed_tokens": "token_embd", "embed_positions": "position_embd", "norm": "output_norm", "lm_head": "output"}
EXACT = "embed_positions", "norm"
"""Parts of names of matrices that are never rounded; vectors are not either."""
BLOCK = 32
"""Numbers of a row that share a scale in q8_0 and q4_0."""


@dataclass(frozen=True)
class Written:
    """What a file holds."""

    path: Path
    tensors: int
    bytes: int
    context: int
    """Longest sequence for which llama.cpp computes what Trueline does."""
    kept: tuple[str, ...] = ()
    """Matrices in f16, since their rows are no multiple of 32."""


def write_gguf(
    model: Decoder, path: str | Path, *, kind: Kind = "f16", tokenizer: Mapping[str, Any] | None = None, name: str = ""
) -> Written:
    """Writes the model; without `tokenizer` (keys and values of its metadata) the file maps ids to ids only.

    `kind` is how matrices are stored: f32, f16, bf16, q8_0 (8.5 bits per weight) or q4_0 (4.5; embedding and head q8_0). Norms and
    biases are always f32. Raises ValueError where llama.cpp has no program that computes this model.
    """
    gguf, path, config = _library(), Path(path), model.config
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError(f"{path}: the model has adapters: merge them first (trueline merge)")
    target = target_of(config)
    plan, kept = [], []
    for stored, parts in _entries(model, target):
        rows = _shape(model, config, parts)
        wanted = _kind(kind, parts, rows)
        kept += [stored] if kind.startswith("q") and wanted == "f16" else []
        plan.append((stored, parts, rows, wanted))
    writer = gguf.GGUFWriter(path, target.arch)
    for key, value in {**_metadata(config, target, name or Path(model.source).name or "trueline"), **(tokenizer or NO_TEXT)}.items():
        _add(gguf, writer, key, value)
    writer.add_key_value("general.file_type", gguf.LlamaFileType[FILE_TYPES[kind]].value, gguf.GGUFValueType.UINT32)
    writer.add_key_value("general.quantization_version", gguf.GGML_QUANT_VERSION, gguf.GGUFValueType.UINT32)
    for stored, _, rows, wanted in plan:
        of = gguf.GGMLQuantizationType[wanted.upper()]
        block, size = gguf.GGML_QUANT_SIZES[of]
        byte_shape = (*rows[:-1], rows[-1] // block * size)
        raw = wanted not in ("f32", "f16")
        dtype = np.dtype(np.uint8 if raw else np.float16 if wanted == "f16" else np.float32)
        writer.add_tensor_info(stored, byte_shape if raw else rows, dtype, math.prod(byte_shape), of if raw else None)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for stored, parts, _, wanted in plan:  # one at a time: never a second copy of the model
            writer.write_tensor_data(_packed(gguf, _values(model, target, parts), wanted, stored))
        writer.close()
        os.replace(part, path)
    finally:
        writer.close()
        part.unlink(missing_ok=True)
    return Written(path, len(plan), path.stat().st_size, context_of(config, target), tuple(kept))


FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
NO_TEXT = {"tokenizer.ggml.model": "none"}


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError("writing GGUF needs the package gguf: pip install 'trueline[gguf]'") from None
    return gguf


# ---- tensors


def _entries(model: Decoder, target: Target) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name in the file, and our parameters that make it up. "+NAME" is a parameter that the model lacks: zeros."""
    config, layers = model.config, range(model.config.num_hidden_layers)
    names = {name for name, _ in model.named_parameters()}
    for name in sorted(names, key=lambda name: name.startswith("layers.")):
        if not name.startswith("layers."):
            module, kind = name.rsplit(".", 1)
            yield f"{ROOT[module]}.{kind}", (name,)
    if target.own_head and config.tie_word_embeddings:
        yield "output.weight", ("embed_tokens.weight",)
    if config.rope_scaling.get("rope_type") == "llama3":
        yield "rope_freqs.weight", ("@rope",)
    if config.rope_scaling.get("rope_type") == "longrope":
        yield "rope_factors_short.weight", ("@short_factor",)
        yield "rope_factors_long.weight", ("@long_factor",)
    joined = {part: stored for stored, parts in target.fused.items() for part in parts}
    for layer in layers:
        for module, stored in LAYER.items():
            stored = joined.get(module, stored)
            parts = target.fused.get(stored, (module,))
            if module != parts[0]:
                continue
            for kind in ("weight", "bias"):
                wanted = [f"layers.{layer}.{part}.{kind}" for part in parts]
                linear = module.endswith("_proj")
                if wanted[0] in names:
                    yield f"blk.{layer}.{stored}.{kind}", tuple(wanted)
                elif kind == "bias" and linear and target.needs_biases and wanted[0].replace("bias", "weight") in names:
                    yield f"blk.{layer}.{stored}.{kind}", tuple(f"+{part}" for part in wanted)


def _shape(model: Decoder, config: DecoderConfig, parts: Sequence[str]) -> tuple[int, ...]:
    """Shape of an entry."""
    if parts[0].startswith("@"):
        return (config.rotary_dim // 2,)
    shapes = [_zeros_like(model, part).shape if part.startswith("+") else model.get_parameter(part).shape for part in parts]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _zeros_like(model: Decoder, part: str) -> Tensor:
    """The bias that a layer does not have."""
    return torch.zeros(model.get_parameter(part[1:].replace(".bias", ".weight")).shape[0])


def _values(model: Decoder, target: Target, parts: Sequence[str]) -> np.ndarray:
    """The numbers of an entry, float32, as llama.cpp wants them."""
    config = model.config
    if parts[0] == "@rope":
        whole = frequencies(replace(config, rope_scaling={}))[0] / frequencies(config)[0]
    elif parts[0].startswith("@"):
        whole = torch.tensor(config.rope_scaling.get(parts[0][1:]) or config.rope_scaling["short_factor"], dtype=torch.float32)
    else:
        found = [
            _zeros_like(model, part)
            if part.startswith("+")
            else _rewritten(part, model.get_parameter(part).detach().float().cpu(), config, target)
            for part in parts
        ]
        whole = torch.cat(found) if len(found) > 1 else found[0]
    return whole.contiguous().numpy()


def _rewritten(name: str, tensor: Tensor, config: DecoderConfig, target: Target) -> Tensor:
    """One parameter as llama.cpp's program multiplies with it."""
    module = name.split(".")[-2]
    if config.norm == "rmsnorm_zero_centred" and "norm" in module:
        tensor = tensor + 1
    if target.interleaved and module in ("q_proj", "k_proj"):
        heads = tensor.shape[0] // config.head_dim
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    scale = 1.0 if target.factors else (config.attention_scale or config.head_dim**-0.5) / _llama_scale(config, target)
    if module == ("q_norm" if config.qk_norm else "q_proj") and not math.isclose(scale, 1.0, rel_tol=1e-6):
        tensor = tensor * scale
    return tensor


def _llama_scale(config: DecoderConfig, target: Target) -> float:
    """The factor of products that llama.cpp's program has."""
    if target.large and config.num_hidden_layers == target.large:
        return (config.hidden_size // config.num_attention_heads) ** -0.5
    return config.head_dim**-0.5


def _kind(kind: Kind, parts: Sequence[str], shape: tuple[int, ...]) -> Kind:
    """How an entry is stored."""
    if len(shape) < 2 or any(exact in part.split(".")[-2] for part in parts for exact in EXACT):
        return "f32"
    if kind.startswith("q") and shape[-1] % BLOCK:
        return "f16"
    if kind == "q4_0" and parts[0].startswith(("embed_tokens", "lm_head")):
        return "q8_0"
    return kind


def _packed(gguf: Any, values: np.ndarray, kind: Kind, stored: str) -> np.ndarray:
    """The numbers as they lie in the file."""
    if kind == "f32":
        return values
    if kind == "f16":
        if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise ValueError(f"{stored} has numbers beyond those of f16 (65,504): write --type bf16 or f32.")
        return values.astype(np.float16)
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind.upper()])


# ---- metadata


def _metadata(config: DecoderConfig, target: Target, name: str) -> dict[str, Any]:
    """Keys and values but for the tokenizer's."""
    c, context = config, context_of(config, target)
    found: dict[str, Any] = {
        "context_length": context,
        "vocab_size": c.vocab_size,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_epsilon" if c.norm == "layernorm" else "attention.layer_norm_rms_epsilon": float(c.norm_eps),
    }
    if not c.learned_positions:
        found |= {"rope.dimension_count": c.rotary_dim, "rope.freq_base": float(c.rope_theta), **_scaling(c)}
    if target.arch in ("gptneox", "stablelm"):
        found["use_parallel_residual"] = c.parallel_block
    if target.factors:
        found |= {
            "embedding_scale": float(c.embedding_multiplier),
            "residual_scale": float(c.residual_multiplier),
            "logit_scale": float(c.logits_scaling),
            "attention.scale": float(c.attention_scale or c.head_dim**-0.5),
        }
    if c.attn_logit_softcapping is not None:
        found["attn_logit_softcapping"] = float(c.attn_logit_softcapping)
    if c.final_logit_softcapping is not None:
        found["final_logit_softcapping"] = float(c.final_logit_softcapping)
    if target.windows:
        found |= _windows(c, target, context)
    return {"general.name": name, **{f"{target.arch}.{key}": value for key, value in found.items()}}


def _windows(c: DecoderConfig, target: Target, context: int) -> dict[str, Any]:
    """Which layers have the window; a Gemma 2 always has one in llama.cpp, and one as long as the context hides nothing."""
    sliding = [c.window(layer) is not None for layer in range(c.num_hidden_layers)]
    if not any(sliding):
        return {"attention.sliding_window": context} if target.arch == "gemma2" else {}
    found: dict[str, Any] = {"attention.sliding_window": c.sliding_window}
    if sliding != [bool((layer + 1) % target.windows) for layer in range(c.num_hidden_layers)]:
        found["attention.sliding_window_pattern"] = sliding
    return {**found, "rope.freq_base_swa": float(c.sliding_rope_theta or c.rope_theta)}


def _scaling(c: DecoderConfig) -> dict[str, Any]:
    """RoPE scaling; Llama 3's and LongRoPE's factors are tensors."""
    scaling, kind = c.rope_scaling, c.rope_scaling.get("rope_type", "default")
    attention = frequencies(c)[1]
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if kind == "longrope":
        return {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": int(scaling["original_max_position_embeddings"]),
            "rope.scaling.attn_factor": attention,
        }
    if kind == "yarn":
        factor = float(scaling["factor"])
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": int(scaling["original_max_position_embeddings"]),
            "rope.scaling.attn_factor": attention / (1 + 0.1 * math.log(factor)),  # times what llama.cpp multiplies with anyway
        }
    return {"rope.scaling.type": "none"}


def _add(gguf: Any, writer: Any, key: str, value: Any) -> None:
    """A key with the type that the value has in Python; whole numbers are uint32, lists of them int32."""
    types = gguf.GGUFValueType
    kinds = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING, list: types.ARRAY}
    writer.add_key_value(key, value, kinds[type(value)])
