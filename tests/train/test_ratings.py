"""KTO from a file of labels to a model, and from a file of pairs; what it says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trueline.objectives.kto import KTO
from trueline.run import read_lines
from trueline.train import plan, train
from trueline.train.forecast import forecast

OPTIONS = {
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "max_length": 64,
}


def written(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_labels_and_pairs_train_however_a_step_is_cut(files: Path) -> None:
    """The reference scores own and foreign responses before the first step; the loss starts at 1/2."""
    rows = [{"prompt": f"the cat {n}", "completion": f" sat on {n % 3}", "label": n % 2 == 0} for n in range(8)]
    labels = written(files, rows)
    first = train(KTO(), files / "model", labels, out=files / "whole", eval_share=0.3, **OPTIONS)
    cut = train(KTO(), files / "model", labels, out=files / "cut", eval_share=0.3,
                **(OPTIONS | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}))  # fmt: skip
    one, other = (read_lines(folder / "metrics.jsonl") for folder in (first, cut))
    assert one[0]["loss"] == pytest.approx(0.5, abs=1e-5) and one[0]["kl"] == pytest.approx(0, abs=1e-5)
    for a, b in zip(one, other, strict=True):
        assert {k: v for k, v in a.items() if "/" in k or k in ("loss", "kl")} == pytest.approx(
            {k: v for k, v in b.items() if "/" in k or k in ("loss", "kl")}, rel=1e-3, abs=1e-5
        )
    assert {"eval_loss", "eval_kl"} <= one[-1].keys()
    said = [line["event"] for line in read_lines(first / "events.jsonl")]
    assert any("one to another prompt" in line for line in said)
    numbers = plan(KTO(), files / "model", files / "pairs.jsonl", max_length=64).numbers
    assert numbers["rows"] == 120  # 60 pairs are 120 ratings
    foretold = forecast(KTO(), str(files / "model"), str(labels), **OPTIONS)
    assert foretold.seconds is not None and foretold.peak > 0


def test_ratings_without_labels_are_refused(files: Path) -> None:
    scores = written(files, [{"prompt": f"the cat {n}", "completion": " sat", "score": 0.5} for n in range(4)])
    with pytest.raises(ValueError, match="has no label: kto needs true"):
        train(KTO(), files / "model", scores, out=files / "run", **OPTIONS)
    same = written(files, [{"prompt": "the cat", "completion": f" sat {n}", "label": True} for n in range(4)])
    with pytest.raises(ValueError, match="all 4 rows have the same prompt"):
        train(KTO(), files / "model", same, out=files / "run", **OPTIONS)
