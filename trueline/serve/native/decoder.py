"""A Decoder's step in C++: the structs of step.cpp, filled with the addresses of live weights.

    NativeDecoder(model, library).step(chunks, cache) -> logits_NV        as trueline.models computes them, to rounding

Weights are read where they lie, so a model in training needs no refresh; only tensors that moved are looked up again (`bind`).
What one sequence gets does not depend on what else is in the batch, bit for bit: every sum has one order.
Left out: what `refused` names; that runs on torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trueline.models.cache import Cache
from trueline.models.decoder import Decoder, Layer, Norm
from trueline.models.lora import HeadCopies, LoRALinear
from trueline.models.lowbit import LowBitLinear
from trueline.models.rope import rope
from trueline.serve.native.check import Weight
from trueline.serve.native.weights import DTYPES, weight_of

INT8 = 3
"""In a cache; the other kinds that it holds are DTYPES."""
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_new": 2, "gelu_fast": 2, "gelu_pytorch_tanh": 2}
POINTER, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Chunk(NamedTuple):
    """New tokens of one sequence."""

    ids: Sequence[int]
    table: Sequence[int]
    start: int
    """How many tokens of it the cache holds already."""
    wanted: int
    """Logits of the so many last ones are wanted."""


class _Adapter(ctypes.Structure):
    _fields_ = (("a", POINTER), ("b", POINTER), ("scale", FLOAT), ("rank", INT))


class _Linear(ctypes.Structure):
    _fields_ = (("weight", Weight), ("adapter", _Adapter))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, POINTER) for name in (
            "before_attention", "behind_attention", "before_mlp", "behind_mlp", "q_norm", "k_norm",
            "keys", "values", "key_scales", "value_scales", "cos", "sin",
        )),
        ("window", SIZE),
    )  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, SIZE) for name in ("layers", "width", "inner", "heads", "groups", "head_width", "vocabulary", "block_size", "rank")),
        *((name, INT) for name in ("stored", "activation", "centred", "norm_width")),
        *((name, FLOAT) for name in (
            "eps", "scale", "cap", "final_cap", "embedding_multiplier", "residual_multiplier", "logits_divisor",
        )),
        ("embedding", Weight),
        ("head", Weight),
        ("norm", POINTER),
        ("layer", ctypes.POINTER(_Layer)),
    )  # fmt: skip


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, SIZE) for name in ("tokens", "sequences", "wanted")),
        *((name, POINTER) for name in ("ids", "positions", "firsts", "tables", "table_at", "last", "logits")),
    )


def refused(model: Decoder) -> str:
    """Why this model runs on torch; empty when it need not."""
    config = model.config
    weights = [model.embed_tokens.weight, *(p for p in model.parameters() if p.dim() == 2)]
    linears = [module for name, module in model.layers.named_modules() if name.endswith("_proj")]
    for wrong, reason in (
        (model.device.type != "cpu", f"it is on {model.device}"),
        (config.norm == "layernorm", "LayerNorm"),
        (not config.gated_mlp or config.mlp_bias, "an MLP without a gate or with a bias"),
        (config.hidden_act not in ACTIVATIONS, f"activation {config.hidden_act}"),
        (config.parallel_block, "parallel blocks"),
        (config.learned_positions or config.rotary_dim != config.head_dim, "positions that are not full rotations"),
        (config.qk_norm and config.qk_norm_over == "each", "a norm of its own for each head"),
        (config.head_dim % 2 != 0, f"heads {config.head_dim} wide"),
        (any(weight.dtype not in DTYPES for weight in weights), "weights of another type"),
        (not all(map(_known, linears)), "several adapters at once, or in half precision"),
        (not all(weight.is_contiguous() for weight in weights), "weights that are not contiguous"),
        (config.num_attention_heads % config.num_key_value_heads != 0, "heads that do not divide into groups"),
        (not config.tie_word_embeddings and not isinstance(model.lm_head, nn.Linear | HeadCopies | LowBitLinear), "an adapter on the head"),
        (not model.fused, "hooks on its modules"),
    ):
        if wrong:
            return reason
    return ""


def _known(linear: nn.Module) -> bool:
    """Whether step.cpp computes this layer."""
    if isinstance(linear, LoRALinear):
        names = linear.active
        return len(names) <= 1 and all(linear.lora_A[name].dtype == torch.float32 for name in names) and _known(linear.base)
    return type(linear) in (nn.Linear, LowBitLinear)


class NativeDecoder:
    """Steps of one model. One thread owns it."""

    def __init__(self, model: Decoder, library: ctypes.CDLL) -> None:
        assert not refused(model)
        self.model, self._library = model, library
        library.trueline_workspace.argtypes, library.trueline_workspace.restype = (POINTER, SIZE), SIZE
        library.trueline_step.argtypes, library.trueline_step.restype = (POINTER, POINTER, POINTER, INT), None
        self._workspace, self._logits = torch.empty(0), torch.empty(0)
        self._turns: dict[bool, tuple[Tensor, Tensor]] = {}
        self._kept: list[Tensor] = []
        self._rank = 0
        self._cache: Cache | None = None
        self.bind()

    def bind(self) -> None:
        """Looks all weights up again: after they were replaced, not merely changed. Norms of half precision are copied."""
        model, config = self.model, self.model.config
        self._kept, self._rank = [], 0
        self._layers = (_Layer * config.num_hidden_layers)(*(self._layer(layer) for layer in model.layers))
        scale = config.attention_scale
        multiplier = torch.tensor(config.embedding_multiplier, dtype=model.embed_tokens.weight.dtype)  # rounded as the forward does
        self._struct = _Model(
            layers=config.num_hidden_layers, width=config.hidden_size, inner=config.intermediate_size,
            heads=config.num_attention_heads, groups=config.num_key_value_heads, head_width=config.head_dim,
            vocabulary=config.vocab_size, activation=ACTIVATIONS[config.hidden_act],
            centred=config.norm == "rmsnorm_zero_centred", norm_width=config.qk_norm and config.qk_norm_over == "width",
            eps=config.norm_eps, scale=config.head_dim**-0.5 if scale is None else scale,
            cap=config.attn_logit_softcapping or 0.0, final_cap=config.final_logit_softcapping or 0.0,
            embedding_multiplier=float(multiplier), residual_multiplier=config.residual_multiplier,
            logits_divisor=config.logits_scaling, embedding=self._weight(model.embed_tokens.weight),
            head=self._head(), rank=self._rank, norm=self._norm(model.norm), layer=self._layers,
        )  # fmt: skip
        self._cache = None

    def step(self, chunks: Sequence[Chunk], cache: Cache) -> Tensor:
        """Computes all chunks into the cache -> float32 [N, V], valid until the next step; rows in the order of the chunks."""
        if cache is not self._cache:
            self._attach(cache)
        ids: list[int] = []
        tables: list[int] = []
        last: list[int] = []
        starts, firsts, table_at = [], [0], []
        for chunk in chunks:
            ids.extend(chunk.ids)
            table_at.append(len(tables))
            tables.extend(chunk.table)
            starts.append(chunk.start)
            firsts.append(len(ids))
            if chunk.wanted == 1:
                last.append(len(ids) - 1)
            else:
                last.extend(range(len(ids) - chunk.wanted, len(ids)))
        T, N, V = len(ids), len(last), self.model.config.vocab_size
        if len(chunks) == T:
            positions_T = np.array(starts, np.int32)
        else:
            positions_T = np.concatenate(
                [np.arange(start, start + len(chunk.ids), dtype=np.int32) for start, chunk in zip(starts, chunks, strict=True)]
            )
        self._reach(max(chunk.start + len(chunk.ids) for chunk in chunks))
        arrays = [positions_T, *(np.array(values, np.int32) for values in (ids, firsts, tables, table_at, last))]
        positions, tokens, first, table, at, wanted = (array.ctypes.data for array in arrays)
        size = self._library.trueline_workspace(ctypes.byref(self._struct), T)
        if len(self._workspace) < size:
            self._workspace = torch.empty(size)
        if len(self._logits) < N * V:
            self._logits = torch.empty(N * V)
        batch = _Batch(
            tokens=T, sequences=len(chunks), wanted=N, ids=tokens, positions=positions, firsts=first, tables=table,
            table_at=at, last=wanted, logits=self._logits.data_ptr(),
        )  # fmt: skip
        self._library.trueline_step(
            ctypes.byref(self._struct), ctypes.byref(batch), self._workspace.data_ptr(), torch.get_num_threads()
        )
        return self._logits[: N * V].view(N, V)

    def _layer(self, layer: nn.Module) -> _Layer:
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        window = self.model.config.window(attention.layer)
        return _Layer(
            q=self._linear(attention.q_proj), k=self._linear(attention.k_proj), v=self._linear(attention.v_proj),
            o=self._linear(attention.o_proj), gate=self._linear(mlp.gate_proj), up=self._linear(mlp.up_proj),
            down=self._linear(mlp.down_proj), before_attention=self._norm(layer.input_layernorm),
            behind_attention=self._norm(layer.attention_output_norm), before_mlp=self._norm(layer.post_attention_layernorm),
            behind_mlp=self._norm(layer.mlp_output_norm), q_norm=self._norm(attention.q_norm) if attention.qk_norm else None,
            k_norm=self._norm(attention.k_norm) if attention.qk_norm else None, window=window or 0,
        )  # fmt: skip

    def _linear(self, module: nn.Module) -> _Linear:
        adapter = _Adapter()
        if isinstance(module, LoRALinear):
            for name in module.active:
                a_RK, b_NR = (self._kept_as_is(matrices[name]) for matrices in (module.lora_A, module.lora_B))
                adapter = _Adapter(a_RK.data_ptr(), b_NR.data_ptr(), module.scales[name], len(a_RK))
                self._rank = max(self._rank, len(a_RK))
            module = module.base
        assert isinstance(module, nn.Linear | LowBitLinear)
        self._kept.extend(tensor.detach() for tensor in (*module.parameters(), *module.buffers()))  # a replaced one lives until `bind`
        bias_N = None if module.bias is None else self._kept_as_is(module.bias.float())
        weight = weight_of(module, bias_N)
        return _Linear(weight, adapter)

    def _head(self) -> Weight:
        low = None if self.model.config.tie_word_embeddings else self.model.lm_head
        return weight_of(low) if isinstance(low, LowBitLinear) else self._weight(self.model.head_weight)

    def _kept_as_is(self, tensor: Tensor) -> Tensor:
        """In one piece; it lives as long as its address is used."""
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1]

    def _weight(self, tensor: Tensor) -> Weight:
        kept = self._kept_as_is(tensor)
        return Weight(kept.data_ptr(), None, None, None, *kept.shape, DTYPES[kept.dtype], 0)

    def _norm(self, norm: nn.Module) -> int | None:
        return self._float32(norm.weight) if isinstance(norm, Norm) else None

    def _float32(self, tensor: Tensor) -> int:
        return self._kept_as_is(tensor.float()).data_ptr()

    def _attach(self, cache: Cache) -> None:
        """Writes into this cache from now on."""
        self._struct.block_size = cache.block_size
        dtype = cache.keys[0].dtype
        self._struct.stored = INT8 if dtype == torch.int8 else DTYPES[dtype]
        for number, layer in enumerate(self._layers):
            layer.keys, layer.values = cache.keys[number].data_ptr(), cache.values[number].data_ptr()
            if cache.key_scales:
                layer.key_scales, layer.value_scales = cache.key_scales[number].data_ptr(), cache.value_scales[number].data_ptr()
        self._cache = cache
        self._attach_turns()

    def _reach(self, length: int) -> None:
        """Rotations of all positions below `length`."""
        if self._turns and len(self._turns[False][0]) >= length:
            return
        positions_T = torch.arange(max(256, 1 << (length - 1).bit_length()))
        config = self.model.config
        self._turns = {False: rope(config, positions_T)}
        if config.sliding_rope_theta is not None:
            self._turns[True] = rope(config, positions_T, sliding=True)
        self._turns = {sliding: (cos.contiguous(), sin.contiguous()) for sliding, (cos, sin) in self._turns.items()}
        self._attach_turns()

    def _attach_turns(self) -> None:
        if not self._turns:
            return
        for number, layer in enumerate(self._layers):
            sliding = self.model.config.window(number) is not None and True in self._turns
            layer.cos, layer.sin = (turn.data_ptr() for turn in self._turns[sliding])
