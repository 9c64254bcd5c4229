"""What the simulated cache uses and saves, against closed forms and the expected values of the method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trueline.cli import main
from trueline.serve.simulate import (
    ALPACA,
    RESERVED,
    SHAREGPT,
    Simulation,
    Trace,
    contiguous,
    paged,
    saving,
    utilisation,
)


def lengths(*pairs: tuple[int, int]) -> Trace:
    return Trace(*np.array(pairs).T)


@pytest.mark.parametrize(
    ("size", "expected", "within"), [(1, 1.0, 0.0), (16, 0.983, 0.004), (256, 0.777, 0.05), (RESERVED, 0.22, 0.05)]
)
def test_waste_by_block_size(size: int, expected: float, within: float) -> None:
    """Expected values of an independent simulation; the tolerance is three standard errors of 100 requests."""
    assert utilisation(SHAREGPT, size, 100, seed=1) == pytest.approx(expected, abs=within)


def test_waste_is_half_a_block() -> None:
    """A last block is half empty on average: under 4% of the cache at 16 tokens a block, more where texts are short."""
    assert utilisation(SHAREGPT, 16, 60, seed=0) > 0.96
    assert utilisation(ALPACA, 16, 200, seed=0) == pytest.approx(0.912, abs=0.03)


def test_samples_share_their_prompt() -> None:
    """Two samples of 16 tokens after a prompt of two blocks: 2 of 6 blocks in 15 steps, none in the first, which holds 2."""
    loads = list(Simulation(lengths((32, 16)), 16, 100, 8, n=2).loads())
    assert [(load.named, load.used) for load in loads] == [(2, 2)] + [(6, 4)] * 15
    assert [load.tokens for load in loads] == [32] + [2 * (32 + step) for step in range(1, 16)]


def test_beams_share_what_they_have_in_common() -> None:
    """More than the prompt, less than everything; less when all see the same probabilities, for then few of them die out."""
    apart, alike = (saving(SHAREGPT, 16, 3, 0, beams=4, alike=chance) for chance in (0.0, 1.0))
    assert saving(SHAREGPT, 16, 3, 0, n=4) < alike < apart < 0.75


def test_more_requests_at_once() -> None:
    """Of 7,000 places: three reservations; what each will need at the end; what each needs now."""
    some = lengths(*[(100, 300)] * 40)
    assert contiguous(some, exact=False, places=7000)[:2] == (3, 14 * 300)  # 40 requests, three at a time
    assert contiguous(some, exact=True, places=7000)[:2] == (17, 3 * 300)
    found = paged(some, 16, places=7000)
    assert found.running > 18 and found.steps < 900


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main(["bench", "serve", "--requests", "2", "--seeds", "1", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "paper 96.3%" in said and "requests at once in a cache of 15,700 tokens" in said
    found = json.loads(path.read_text())
    assert found["seeds"] == 1 and len(found["figures"]) == 2 * (8 + 3 + 9) + 9
    assert main(["bench", "serve", "--seeds", "0"]) == 2
    assert "--seeds and --block_size must be at least 1" in capsys.readouterr().err
