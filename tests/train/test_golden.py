"""Fifty steps of every method against those kept in golden.json (`golden.py` says how they were made and how to record anew).

The tolerances. The drift of a step is its difference over the mean size of the golden values. Measured with `golden.py --spread`
on an AVX2 processor: other vector widths of torch (ATEN_CPU_CAPABILITY=default), of oneDNN and of MKL, and weights moved by one
rounding, drift at most 1.4e-6 at a step and 2.3e-7 in the mean. A processor with AVX-512 rounds elsewhere again, as the moved
weights do. So: seventy times the largest, and four hundred times the mean. A learning rate that is one part in a thousand too
large drifts further than that, as the last test shows.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

GOLDEN: Any = runpy.run_path(str(Path(__file__).with_name("golden.py")))
MAXIMUM, MEAN = 1e-4, 1e-4


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, list[float]]]:
    return json.loads(GOLDEN["FILE"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", GOLDEN["METHODS"])
def test_fifty_steps_are_those_kept(method: str, kept: dict[str, dict[str, list[float]]]) -> None:
    before = GOLDEN["FILE"].read_bytes()
    found = GOLDEN["trajectory"](method)
    assert all(len(values) == 50 for values in found.values())
    for name, (largest, mean) in GOLDEN["drift"](found, kept[method]).items():
        print(f"{method} {name}: drift at most {largest:.1e}, in the mean {mean:.1e}")
        assert largest <= MAXIMUM and mean <= MEAN, f"{method} {name}"
    assert GOLDEN["FILE"].read_bytes() == before  # nothing records but the command


def test_a_small_fault_would_be_seen(kept: dict[str, dict[str, list[float]]]) -> None:
    """A learning rate of 1.001e-3 in place of 1e-3."""
    found = GOLDEN["trajectory"]("sft", learning_rate=1.001e-3)
    ((largest, mean), _) = GOLDEN["drift"](found, kept["sft"]).values()
    print(f"learning rate 0.1% higher: drift at most {largest:.1e}, in the mean {mean:.1e}")
    assert largest > MAXIMUM or mean > MEAN


def test_learning_is_visible_in_what_is_kept(kept: dict[str, dict[str, list[float]]]) -> None:
    assert set(kept) == set(GOLDEN["METHODS"])
    for method, values in kept.items():
        assert set(values) == {"loss", "grad_norm"} and values["loss"][-1] < 0.85 * values["loss"][0], method
