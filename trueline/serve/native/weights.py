"""The struct of a linear layer for the native products, whatever its weights are: `weight_of(layer)`.

Addresses are looked up once: after weights were replaced (not merely changed), look them up again. The layer owns the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trueline.models.lowbit import LowBitLinear
from trueline.serve.native.check import KINDS, Weight

DTYPES = {
    torch.float32: KINDS["float32"],
    torch.bfloat16: KINDS["bfloat16"],
    torch.float16: KINDS["float16"],
}


def weight_of(layer: nn.Linear | LowBitLinear, bias_N: Tensor | None = None) -> Weight:
    """`bias_N` stands in for the layer's own, which must be float32; every tensor must be contiguous and on the CPU."""
    N, K = layer.out_features, layer.in_features
    if isinstance(layer, LowBitLinear):
        kind = KINDS[layer.code.removesuffix("_asymmetric")]
        data, scales, zeros, group = layer.codes, layer.scales, layer.zeros, layer.group
    else:
        kind, data, scales, zeros, group = DTYPES[layer.weight.dtype], layer.weight, None, None, 0
    bias = layer.bias if bias_N is None else bias_N
    assert bias is None or bias.dtype == torch.float32
    return Weight(_address(data), _address(scales), _address(zeros), _address(bias), N, K, kind, group)


def _address(tensor: Tensor | None) -> int | None:
    assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    return None if tensor is None else tensor.data_ptr()
