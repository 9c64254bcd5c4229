"""Does a compiled library compute what it should? Each kind against float64 and against itself one row at a time.

    python -m trueline.serve.native.check LIBRARY      exit code 0, or a sentence and exit code 1

Left out: speed.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

# fmt: off
NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302, 0.2461123,
       0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
# fmt: on

KINDS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4, "nf4": 5}
"""`enum Kind` of products.hpp."""


class Weight(ctypes.Structure):
    """`struct Weight` of products.hpp: addresses of arrays that somebody else keeps alive."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_int32),
    )


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Types of the functions of products.cpp."""
    size = ctypes.c_int64
    library.trueline_product.argtypes = (
        ctypes.POINTER(Weight), ctypes.c_void_p, size, size, ctypes.c_void_p, size, size, size, ctypes.c_int32,
    )  # fmt: skip
    library.trueline_product.restype = None
    library.trueline_vector_bytes.argtypes = ()
    library.trueline_vector_bytes.restype = ctypes.c_int32
    return library


def check(library: Any) -> str:
    """A sentence about the first kind that is wrong; empty when none is."""
    rng = np.random.default_rng(0)
    for name, kind in KINDS.items():
        T, N = 6, 11  # no multiple of any tile
        K, group = (75, 0) if kind < KINDS["int8"] else (96, 32)
        x_TK = rng.standard_normal((T, K), dtype=np.float32)
        bias_N = rng.standard_normal(N, dtype=np.float32)
        if group:
            scales_NG = rng.random((N, K // group), dtype=np.float32)
            stored, w_NK = _coded(name, rng, scales_NG)
        else:
            scales_NG = np.zeros(1, np.float32)
            stored, w_NK = _stored(name, rng.standard_normal((N, K), dtype=np.float32))
        weight = Weight(stored.ctypes.data, scales_NG.ctypes.data, None, bias_N.ctypes.data, N, K, kind, group)
        y_TN = np.zeros((T, N), np.float32)
        library.trueline_product(weight, x_TK.ctypes.data, K, T, y_TN.ctypes.data, N, 0, N, 0)
        exact_TN = x_TK.astype(np.float64) @ w_NK.astype(np.float64).T + bias_N
        if not np.abs(y_TN - exact_TN).max() < 1e-5 * np.abs(exact_TN).max():
            return f"products of {name} are wrong"
        alone_N = np.zeros(N, np.float32)
        library.trueline_product(weight, x_TK[2].ctypes.data, K, 1, alone_N.ctypes.data, N, 0, N, 0)
        if (alone_N != y_TN[2]).any():
            return f"products of {name} depend on the number of rows"
    return ""


def _stored(name: str, w_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights in a kind's own form, and the values that they have there."""
    if name == "float16":
        half = w_NK.astype(np.float16)
        return half, half.astype(np.float32)
    if name == "bfloat16":
        high = (w_NK.view(np.uint32) >> 16).astype(np.uint16)
        return high, (high.astype(np.uint32) << 16).view(np.float32)
    return w_NK, w_NK


def _coded(name: str, rng: np.random.Generator, scales_NG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Any codes in groups of 32 inputs, and the values that they stand for."""
    N, G = scales_NG.shape
    if name == "int8":
        whole_NGg = rng.integers(-127, 128, (N, G, 32)).astype(np.int8)
        return whole_NGg, (whole_NGg * scales_NG[..., None]).reshape(N, -1)
    bytes_NGb = rng.integers(0, 256, (N, G, 16)).astype(np.uint8)
    codes_NGg = np.concatenate((bytes_NGb & 15, bytes_NGb >> 4), -1)
    levels = np.array(NF4 if name == "nf4" else range(-8, 8), np.float32)
    return bytes_NGb, (levels[codes_NGg] * scales_NG[..., None]).reshape(N, -1)


def main() -> int:
    """Check the library that is named."""
    wrong = check(declare(ctypes.CDLL(sys.argv[1])))
    if wrong:
        print(wrong, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
