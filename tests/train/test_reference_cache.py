"""Reference log-probs are computed once, found again, and never wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trueline.models.decoder import Decoder
from trueline.models.scorer import PolicyScorer
from trueline.objectives.dpo import DPO
from trueline.records import Row
from trueline.run import read_lines
from trueline.train import reference_cache as module
from trueline.train import train
from trueline.train.reference_cache import CachedScorer

Rows = Callable[..., list[Row]]


class Counting:
    """A scorer that says how often it was asked."""

    def __init__(self, fingerprint: str = "a"):
        self.fingerprint, self.asked = fingerprint, 0

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        self.asked += len(rows)
        return [np.array([ids.sum() for ids in row.ids], dtype=np.float32) for row in rows]


def test_what_is_known_is_not_computed_again(tmp_path: Path, pair_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 4)
    rows = pair_rows(10)
    first = Counting()
    scores = CachedScorer(first, "a", tmp_path).score([*rows, rows[0]])
    assert first.asked == 10
    second = Counting()
    again = CachedScorer(second, "a", tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(again.score(rows), scores, strict=False)) and second.asked == 0
    changed = replace(rows[3], scored=(rows[3].scored[0], rows[3].scored[1] & (np.arange(len(rows[3].ids[1])) > 8)))
    again.score([*rows[:3], changed])
    assert second.asked == 1  # another mask is another row
    other = Counting("b")
    CachedScorer(other, "b", tmp_path).score(rows)
    assert other.asked == 10  # another model


def test_a_damaged_shard_is_computed_anew(tmp_path: Path, pair_rows: Rows) -> None:
    rows = pair_rows(5)
    CachedScorer(Counting(), "a", tmp_path).fill(rows)
    (shard,) = (tmp_path / "a").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:50])
    scorer = Counting()
    CachedScorer(scorer, "a", tmp_path).fill(rows)
    assert scorer.asked == 5


def test_dpo_runs_share_it(tmp_path: Path, decoder: Callable[..., Decoder], pair_rows: Rows) -> None:
    rows = pair_rows(20)
    expected = PolicyScorer(decoder()).score(rows)
    for number, beta in enumerate((0.1, 0.5)):
        out = train(
            DPO(beta=beta),
            decoder(),
            rows,
            out=tmp_path / str(number),
            max_steps=3,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=0,
        )
        (said,) = (
            row["event"] for row in read_lines(out / "events.jsonl") if row["event"].startswith("reference log-probs")
        )
        assert said.startswith(f"reference log-probs: {20 if number == 0 else 0} rows computed")
        first = read_lines(out / "metrics.jsonl")[0]
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-5) and abs(first["rewards/margins"]) < 1e-4
        assert read_lines(out / "metrics.jsonl")[-1]["rewards/margins"] > 0
    cached = CachedScorer(None, PolicyScorer(decoder()).fingerprint, tmp_path / ".reference")
    for a, b in zip(cached.score(rows), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
