"""The report says what the results say, opens offline, and admits a draw or a loss."""

from __future__ import annotations

import copy
import re

import pytest

from trueline.quickstart.report import headline, page


def model(score: float, **more: object) -> dict[str, object]:
    spread = {"mean": 0.5, "interval": [0.4, 0.6]}
    return {
        "judge": {"mean": score, "interval": [score - 0.1, score + 0.1]}, "grounding": 0.5, "grounding_other": 0.02, 
        "recall": 0.1,
        "recall_difference": {"mean": 0.05, "interval": [0.02, 0.08]}, "words": 8.0,
        "wins_against_sft": spread, "wins_against_human": spread,
    } | more  # fmt: skip


@pytest.fixture
def results() -> dict[str, object]:
    gain = {"mean": 0.8, "interval": [0.5, 1.1]}
    return {
        "seed": 0,
        "num_test": 300,
        "best_of": 8,
        "notes": ["13 minutes planned"],
        "models": {
            "human": model(7.1), "sft": model(5.0, kl={"mean": 0.0, "se": 0.0}), "best-of-n": model(5.5, gain_over_sft=gain),
            "dpo": model(5.8, kl={"mean": 1.2, "se": 0.05}, gain_over_sft=gain),
        },
        "frontier": [
            {"label": "SFT", "model": "sft", "kl": 0.0, "kl_se": 0.0, "score": 4.0, "score_se": 0.1},
            {"label": "DPO", "model": "dpo", "kl": 1.2, "kl_se": 0.05, "score": 5.0, "score_se": 0.1},
        ],
        "reward_model": {
            "accuracy": 0.7, "accuracy_clean": 0.8, "num_pairs": 200, "ece": 0.04,
            "reliability": [{"confidence": 0.6, "accuracy": 0.62, "count": 90}, {"confidence": 0.8, "accuracy": 0.79, "count": 110}],
        },
        "examples": [
            {"signature": "f(<script>)", "package": "p", "prompt": "name: f", 
             "summaries": {"human": ["Do <b>it</b>.", 5.0], "dpo": ["Do it.", 6.0]}}
        ],
        "gaming": [{"attempt": "generic", "text": "Return the value.", "score": 1.3}],
        "stages": [{"name": "SFT", "detail": "10 steps", "seconds": 12.0}],
        "curves": {"sft": {"metric": "loss", "steps": [5, 10], "values": [3.0, 2.5]}},
        "settings": {"minutes": 13.0},
        "next_commands": ["trueline generate --model x"],
    }  # fmt: skip


def test_page_is_self_contained_and_escaped(results):
    text = page(results)
    assert text.count("<svg") == 4
    assert not re.search(r'(src|href)\s*=\s*"(?!#)', text), "something is loaded from elsewhere"
    assert "<script>" not in text and "Do <b>it</b>." not in text
    assert "f(&lt;script&gt;)" in text and "5.80" in text and "120%" not in text


def test_headline_follows_the_interval(results):
    assert "beats SFT" in headline(results)
    draw, loss = copy.deepcopy(results), copy.deepcopy(results)
    draw["models"]["dpo"]["gain_over_sft"] = {"mean": 0.1, "interval": [-0.1, 0.3]}
    loss["models"]["dpo"]["gain_over_sft"] = {"mean": -0.5, "interval": [-0.9, -0.1]}
    assert "cannot be told apart" in headline(draw)
    assert "worse" in headline(loss)
