"""`trueline data` on rows whose verdict is a number: nothing is guessed, and what the error says to type works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Three rows with verdicts 0, 1 and 2."""
    rows = [{"prompt": f"Question {n}?", "response_a": "yes", "response_b": "no", "label": n} for n in range(3)]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_get_their_meaning_by_verdict(trueline: Any, judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    code, _, said = trueline("data", "convert", judged, out)
    assert code == 2 and "trueline data convert --verdict 0=first (or second, or tie)" in said and not out.exists()
    code, said, _ = trueline("data", "convert", judged, out, "--verdict", "0=tie", "1=first", "2=second")
    assert code == 0, said
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    sides = [tuple(row[side][0]["content"] for side in ("chosen", "rejected")) for row in pairs]
    assert sides == [("yes", "no"), ("no", "yes")]  # TRL has no ties
    code, said, _ = trueline("data", "inspect", judged, "--model", "none", "--verdict", "0=tie", "1=first", "2=second")
    assert code == 0 and "3" in said


@pytest.mark.parametrize("word", ["1first", "1=better", "=first"])
def test_a_meaning_that_is_none_is_refused(trueline: Any, judged: Path, tmp_path: Path, word: str) -> None:
    code, _, said = trueline("data", "convert", judged, tmp_path / "out.jsonl", "--verdict", word)
    assert code == 2 and f"--verdict '{word}': write value=first" in said
