"""The probe that chooses who computes float32 products."""

from __future__ import annotations

import pytest
import torch

from trueline.models import products as room
from trueline.models.products import bf16_speedup, choose, products


def test_the_choice_is_as_exact_as_float32_and_undone_afterwards() -> None:
    before = torch.get_float32_matmul_precision()
    chosen = choose()
    assert torch.get_float32_matmul_precision() == before
    a, b = torch.randn(300, 700), torch.randn(700, 200)
    with products(chosen.backend):
        found = a @ b
    exact = a.double() @ b.double()
    assert float((found - exact).abs().max() / exact.abs().max()) < 2e-6
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    "error, seconds, expected",
    [(9e-7, 0.5, "onednn"), (3e-3, 0.1, "default"), (9e-7, 0.9, "default"), (float("nan"), 0.1, "default")],
)
def test_neither_speed_nor_exactness_decides_alone(monkeypatch, error, seconds, expected) -> None:
    monkeypatch.setattr(room, "_error", lambda a, b: error)
    monkeypatch.setattr(room, "_seconds", lambda run: seconds if torch.get_float32_matmul_precision() == "medium" else 1.0)
    monkeypatch.setattr(room.torch, "equal", lambda a, b: False)
    assert choose().backend == expected


def test_a_flag_without_effect_is_not_set(monkeypatch) -> None:
    monkeypatch.setattr(room.torch, "equal", lambda a, b: True)
    monkeypatch.setattr(room, "_seconds", lambda run: pytest.fail("nothing to time"))
    assert choose().backend == "default"


def test_bf16_speedup_is_a_ratio_of_times(monkeypatch) -> None:
    times = iter([4.0, 2.0, 3.0, 8.0, 5.0, 4.0])
    monkeypatch.setattr(room, "_seconds", lambda run: next(times))
    assert bf16_speedup() == 0.5
