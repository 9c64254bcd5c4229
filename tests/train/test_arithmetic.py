"""The choice of a product backend is made once per run and kept; bfloat16 that does not pay is said."""

from __future__ import annotations

import json

import pytest
import torch

from trueline.models.products import Choice
from trueline.run import Run
from trueline.train import arithmetic as room
from trueline.train.arithmetic import arithmetic
from trueline.train.config import TrainConfig
from trueline.train.ranks import Ranks


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run", {}) as opened:
        yield opened


def test_the_first_choice_is_kept(run, monkeypatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(room, "choose", lambda: Choice("onednn", 1.9, 9e-7))
    with arithmetic(run, TrainConfig(), Ranks()):
        assert torch.get_float32_matmul_precision() == "medium"
    monkeypatch.setattr(room, "choose", lambda: pytest.fail("a run that goes on does not choose again"))
    with arithmetic(run, TrainConfig(), Ranks()):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    events = [json.loads(line)["event"] for line in (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events == ["float32 products by oneDNN (oneDNN: 1.90 times as fast here, error 9e-07)"]


def test_a_machine_that_rounds_does_not_follow(run, monkeypatch):
    """A run that began where oneDNN is exact goes on where it rounds: a warning, and the default."""
    (run.folder / "products.json").write_text('{"backend": "onednn", "speedup": 2.0, "error": 9e-07}', encoding="utf-8")
    monkeypatch.setattr(room, "onednn_error", lambda: 3e-3)
    with arithmetic(run, TrainConfig(), Ranks()):
        assert torch.get_float32_matmul_precision() == "highest"
    assert "does not repeat the bits" in (run.folder / "events.jsonl").read_text(encoding="utf-8")


def test_a_damaged_choice_is_one_sentence(run):
    (run.folder / "products.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"products\.json"), arithmetic(run, TrainConfig(), Ranks()):
        pass


def test_the_default_needs_no_word(run, monkeypatch):
    monkeypatch.setattr(room, "choose", lambda: Choice("default", 1.0, 0.0))
    with arithmetic(run, TrainConfig(), Ranks()):
        assert torch.get_float32_matmul_precision() == "highest"
    assert not (run.folder / "events.jsonl").exists()


@pytest.mark.parametrize("speedup, words", [(0.01, "take 100 times as long"), (2.0, None)])
def test_bf16_that_does_not_pay_is_said(run, monkeypatch, speedup, words):
    monkeypatch.setattr(room, "bf16_speedup", lambda: speedup)
    with arithmetic(run, TrainConfig(bf16=True), Ranks()):
        pass
    path = run.folder / "events.jsonl"
    assert words in path.read_text(encoding="utf-8") if words else not path.exists()


def test_elsewhere_nothing_is_probed(run, monkeypatch):
    monkeypatch.setattr(room, "choose", lambda: pytest.fail("not on a CPU"))
    with arithmetic(run, TrainConfig(device="cuda"), Ranks()):
        pass
