"""Which backend computes float32 matrix products on this processor: torch's default, or oneDNN where a probe finds it exact and faster.

    with products(choose().backend): ...            the choice holds inside, and is undone

`set_float32_matmul_precision("medium")` hands a CPU's products to oneDNN. With AVX-512 that can be twice as fast as the
default and just as exact; on chips with bfloat16 tiles the same flag rounds to bfloat16. So neither the flag nor the
processor's name decides, but a probe: the error against float64, then the time. The two differ in the last bits, so a run
that goes on must keep the choice that it began with.

Left out: products in bfloat16 (`bf16_speedup` only says whether they pay), other devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LARGEST_ERROR = 2e-6
"""Of the largest entry: float32 summed in another order stays below, a product rounded to bfloat16 is at 1e-3."""

LEAST_SPEEDUP = 1.2


@dataclass(frozen=True)
class Choice:
    """What computes products, and why."""

    backend: Literal["default", "onednn"]
    speedup: float
    """Of oneDNN over the default, in time."""
    error: float
    """oneDNN's largest difference from float64, as a share of the largest entry."""

    def __str__(self) -> str:
        name = {"default": "torch's default", "onednn": "oneDNN"}[self.backend]
        return f"float32 products by {name} (oneDNN: {self.speedup:.2f} times as fast here, error {self.error:.0e})"


@contextmanager
def products(backend: Literal["default", "onednn"]) -> Iterator[None]:
    """Float32 products on the CPU by this backend."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if backend == "onednn" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose() -> Choice:
    """Probe both, a tenth of a second: oneDNN only where it is as exact as float32 is, and clearly faster."""
    error = onednn_error()
    if error is None:  # the flag changes nothing on this processor
        return Choice("default", 1.0, 0.0)
    x_TD, w_FD = _random(384, 512), _random(1024, 512)
    seconds = {"default": float("inf"), "onednn": float("inf")}
    for _ in range(8):
        for backend in ("default", "onednn"):
            with products(backend):
                seconds[backend] = min(seconds[backend], _seconds(lambda: x_TD @ w_FD.T))
    speedup = seconds["default"] / seconds["onednn"]
    fit = error <= LARGEST_ERROR and speedup >= LEAST_SPEEDUP
    return Choice("onednn" if fit else "default", speedup, error)


def onednn_error() -> float | None:
    """oneDNN's largest error, as a share of the largest entry; None where it computes the very bits of the default."""
    x_TD, w_FD = _random(384, 512), _random(1024, 512)
    forms = [(x_TD, w_FD.T), (x_TD.T, x_TD), (w_FD, x_TD.T)]  # forward, gradient of a weight, of an input
    with products("default"):
        plain = [a @ b for a, b in forms]
    with products("onednn"):
        if all(torch.equal(a @ b, product) for (a, b), product in zip(forms, plain, strict=True)):
            return None
        return max(_error(a, b) for a, b in forms)


def bf16_speedup() -> float:
    """How many times as fast a bfloat16 product is as a float32 one on this CPU; far below 1 where it is emulated."""
    a, b = _random(256, 256), _random(256, 256)
    low = a.bfloat16(), b.bfloat16()
    return min(_seconds(lambda: a @ b) for _ in range(3)) / min(_seconds(lambda: low[0] @ low[1]) for _ in range(3))


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


def _error(a: Tensor, b: Tensor) -> float:
    exact = a.double() @ b.double()
    return float((a @ b - exact).abs().max() / exact.abs().max())


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
