"""Linear layers whose weights have 8 or 4 bits: rounded to nearest by groups of inputs, and multiplied in panels.

    quantize_linears(model, "nf4", group=64)      in place: the layers' linears, and a head of its own in 8 bits
    LowBitLinear                                  codes and scales as buffers; a forward that never holds the whole matrix

A group is `group` inputs of one output, s its scale, a its largest absolute weight:

    int8              s = a / 127              q = round(w / s) in -127..127                        w = q s
    int4              s = a / 8                q = round(w / s) in -8..7, stored as q + 8           w = (q - 8) s
    int4_asymmetric   s = (max - min) / 15     z = round(-min / s), q = round(w / s) + z in 0..15   w = (q - z) s    max >= 0 >= min
    nf4               s = a                    the nearest of NF4 to w / s                          w = NF4[q] s

NF4 are quantiles of the normal distribution (QLoRA, 2305.14314, section 3 and appendix E). The native products
(serve/native/products.cpp) read the same buffers. Gradients reach x, not the weights.

Left out: calibration (GPTQ, AWQ), scales of 8 bits (double quantisation), files of such models (save the original).

Legend: T tokens, N outputs, K inputs, G groups of a row, U units of 32 inputs.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from trueline.models.lora import LoRALinear

Code = Literal["int8", "int4", "int4_asymmetric", "nf4"]
UNIT = 32
"""Inputs whose 4-bit codes share 16 bytes: input i in the low half of a byte, input i + 16 in the high one."""
PANEL_FLOATS = 1 << 18
"""Weights that the forward unpacks at a time."""

# fmt: off
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


class LowBit(NamedTuple):
    """A quantised matrix."""

    codes: Tensor
    """int8 [N, K], or uint8 [N, K / 2]: two codes a byte."""
    scales: Tensor
    """float32 [N, G]."""
    zeros: Tensor | None
    """float32 [N, G], whole numbers; None: the code needs none."""


def quantize(w_NK: Tensor, code: Code, group: int) -> LowBit:
    """Rounds a matrix to nearest. ValueError when its rows do not divide into groups, or it is not finite."""
    K = w_NK.shape[1]
    if code not in get_args(Code):
        raise ValueError(f"there is no code {code!r}: choose one of {', '.join(get_args(Code))}")
    if group < UNIT or group % UNIT or K % group:
        fitting = [size for size in (32, 64, 128, 256) if K % size == 0]
        instead = f"choose {' or '.join(map(str, fitting))}" if fitting else f"rows of {K} cannot be quantised"
        raise ValueError(f"rows of {K} weights do not divide into groups of {group} (a multiple of {UNIT}): {instead}")
    if not torch.isfinite(w_NK).all():
        raise ValueError("a weight is infinite or not a number: it cannot be quantised")
    w_NGg = w_NK.detach().float().unflatten(1, (-1, group))
    absmax_NG1 = w_NGg.abs().amax(-1, keepdim=True)
    zeros_NG1 = None
    if code == "int4_asymmetric":
        low_NG1, high_NG1 = w_NGg.amin(-1, keepdim=True).clamp(max=0), w_NGg.amax(-1, keepdim=True).clamp(min=0)
        scales_NG1 = (high_NG1 - low_NG1) / 15
        safe_NG1 = _nowhere_zero(scales_NG1)
        zeros_NG1 = (-low_NG1 / safe_NG1).round().clamp(0, 15)
        q_NGg = ((w_NGg / safe_NG1).round() + zeros_NG1).clamp(0, 15)
    else:
        scales_NG1 = absmax_NG1 / {"int8": 127, "int4": 8, "nf4": 1}[code]
        share_NGg = w_NGg / _nowhere_zero(scales_NG1)
        if code == "nf4":
            levels = torch.tensor(NF4, device=w_NK.device)
            q_NGg = torch.bucketize(share_NGg, (levels[1:] + levels[:-1]) / 2)
        else:
            q_NGg = share_NGg.round().clamp(-127, 127) if code == "int8" else share_NGg.round().clamp(-8, 7) + 8
    q_NK = q_NGg.flatten(1)
    codes = q_NK.to(torch.int8) if code == "int8" else _packed(q_NK.to(torch.uint8))
    return LowBit(codes, scales_NG1.squeeze(-1), None if zeros_NG1 is None else zeros_NG1.squeeze(-1))


def _nowhere_zero(x: Tensor) -> Tensor:
    """A group of zeros has the scale 0, and its codes are those of 0."""
    return torch.where(x > 0, x, torch.ones_like(x))


def _packed(q_NK: Tensor) -> Tensor:
    low_NU16, high_NU16 = q_NK.unflatten(1, (-1, 2, UNIT // 2)).unbind(2)
    return (low_NU16 | high_NU16 << 4).flatten(1)


def dequantize(low: LowBit, code: Code, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [N, K] that the codes stand for."""
    if code == "int8":
        q_NK = low.codes.float()
    else:
        codes_NU16 = low.codes.unflatten(1, (-1, UNIT // 2))
        index_NK = torch.stack((codes_NU16 & 15, codes_NU16 >> 4), 2).flatten(1)
        levels = torch.tensor(NF4, device=index_NK.device)
        q_NK = levels[index_NK.int()] if code == "nf4" else index_NK.float()
    q_NGg = q_NK.unflatten(1, (low.scales.shape[1], -1))
    if code == "int4":
        q_NGg = q_NGg - 8
    elif low.zeros is not None:
        q_NGg = q_NGg - low.zeros[..., None]
    return (q_NGg * low.scales[..., None]).flatten(1).to(dtype)


class LowBitLinear(nn.Module):
    """y = x W' + bias with W in few bits."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, code: Code, group: int) -> None:
        """Of a linear layer, whose weight is not kept."""
        super().__init__()
        self.code, self.group = code, group
        self.out_features, self.in_features = linear.weight.shape
        for name, tensor in quantize(linear.weight, code, group)._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def part(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows first..last of the matrix."""
        zeros = None if self.zeros is None else self.zeros[first:last]
        return dequantize(LowBit(self.codes[first:last], self.scales[first:last], zeros), self.code, dtype)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, unpacked: what an output head is read as where log-probs are computed."""
        return self.part(0, self.out_features, torch.float32)

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        return _Panels.apply(x, self)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.code}, group={self.group}"

    def panels(self) -> list[tuple[int, int]]:
        """Rows that are unpacked together."""
        rows = max(1, PANEL_FLOATS // self.in_features)
        return [(first, min(self.out_features, first + rows)) for first in range(0, self.out_features, rows)]


class _Panels(torch.autograd.Function):
    """Unpacks again in the backward pass: nothing of the matrix is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LowBitLinear) -> Tensor:
        ctx.layer = layer
        out = x.new_empty(*x.shape[:-1], layer.out_features)
        for first, last in layer.panels():
            bias = None if layer.bias is None else layer.bias[first:last].to(x.dtype)
            out[..., first:last] = linear(x, layer.part(first, last, x.dtype), bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        total = grad.new_zeros(*grad.shape[:-1], layer.in_features)
        for first, last in layer.panels():
            total += grad[..., first:last] @ layer.part(first, last, grad.dtype)
        return total, None


def quantize_linears(model: nn.Module, code: Code, group: int = 64) -> nn.Module:
    """Every linear layer of a decoder's (or a scorer's) layers, in place, and an output head of its own in 8 bits whatever the code;
    embedding and norms stay. Adapters: merge them first."""
    found = [(name, module) for name, module in model.named_modules() if ".layers." in f".{name}"]
    adapted = [name for name, module in found if isinstance(module, LoRALinear)]
    if adapted:
        raise ValueError(f"{adapted[0]} has an adapter: merge the adapters, then quantise")
    for name, module in found:
        if type(module) is nn.Linear:
            try:
                low = LowBitLinear(module, code, group)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, low)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] == "lm_head" and type(module) is nn.Linear:
            model.set_submodule(name, LowBitLinear(module, "int8", group))
    return model
