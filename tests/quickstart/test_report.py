"""The report says what the results say, opens offline, and admits a draw or a loss."""

from __future__ import annotations

import copy
import re

import pytest

from trueline.quickstart.methods import BEST, ENTRANTS
from trueline.quickstart.report import headline, page
from trueline.study.verdict import START


def model(score: float, **more: object) -> dict[str, object]:
    spread = {"mean": 0.5, "interval": [0.4, 0.6]}
    return {
        "judge": {"mean": score, "interval": [score - 0.1, score + 0.1]}, "grounding": 0.5, "grounding_other": 0.02, 
        "recall": 0.1,
        "recall_difference": {"mean": 0.05, "interval": [0.02, 0.08]}, "words": 8.0,
        "wins_against_sft": spread, "wins_against_human": spread,
    } | more  # fmt: skip


def interval(estimate: float, half: float = 0.2) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "se": half / 2}


def study() -> dict[str, object]:
    """Results of a comparison in which every method gains and none is told apart from another."""
    names = [START, BEST, *(entrant.title for entrant in ENTRANTS)]
    arms, points = [], []
    for place, name in enumerate(names):
        gain = 0.5 if place else 0.0
        main = {
            "arm": name, "label": name, "step": 0 if place < 2 else 32, "main": True, "kl": interval(0.3 * place),
            "reward": interval(5 + gain), "gain": interval(gain), "gain_sd": interval(gain / 2),
            "learned_gain_sd": interval(gain / 2) if place else None,
            "tokens": interval(17.0), "finished": 1.0,
        }  # fmt: skip
        points.append(main)
        spent = dict.fromkeys(("trained", "critic", "reference", "sampled", "scored", "reward_model", "total"), 1000.0 * place)
        arms.append({
            "name": name, "verb": name, "main": main, "cost": spent | {"per_answer": {"draws": 8 if name == BEST else 1, "tokens": 17.0,
            "scored": 0.0}}, "trials": [], "learning_rate": 1e-4, "updates": 32 if place > 1 else 0, "how": "", "models": [],
        })  # fmt: skip
    return {
        "seeds": 1, "judge": {"name": "pep257", "learned": False, "compares": False},
        "budget": "32 updates", "answered": 300, "comparisons": 900, "arms": arms, "points": points,
        "undominated": [f"{START}@0"],
        "settings": {"seeds": [0], "samples": 1, "temperature": 0.8, "max_new_tokens": 48, "per_device_train_batch_size": 16},
        "equal_kl": {"kl": 0.3, "reward": {}},
        "matrix": [[None if a == b else interval(0.5) for b in names] for a in names],
        "differences": [{"a": START, "b": name, "direct": False, "difference": interval(-0.5)} for name in names[1:]],
        "calibration": [
            {"name": "reward model, seed 0", "accuracy": interval(0.58, 0.04), "pairs": 300, "null_ece": 0.02,
             "reliability": {"ece": 0.03, "bins": [{"confidence": 0.6, "accuracy": 0.62, "count": 90}]}}
        ],
        "verdict": {"headline": "Choose <DPO>.", "because": ["It gains."], "choose": "DPO", "tied": [], "beware": ["One seed."]},
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, object]:
    gain = {"mean": 0.8, "interval": [0.5, 1.1]}
    trained = {entrant.folder: model(5.8, gain_over_sft=gain) for entrant in ENTRANTS}
    return {
        "seed": 0,
        "num_test": 300,
        "notes": ["18 minutes planned"],
        "models": {"human": model(7.1), "sft": model(5.0), "best-of-n": model(5.5, gain_over_sft=gain)} | trained,
        "study": study(),
        "study_seconds": {entrant.title: {"policy": 60.0, "reward_model": 30.0} for entrant in ENTRANTS},
        "examples": [
            {"signature": "f(<script>)", "package": "p", "prompt": "name: f",
             "summaries": {"human": ["Do <b>it</b>.", 5.0], "dpo": ["Do it.", 6.0]}}
        ],
        "gaming": [{"attempt": "generic", "text": "Return the value.", "score": 1.3}],
        "stages": [{"name": "SFT", "detail": "10 steps", "seconds": 12.0}],
        "curves": {"sft": {"metric": "loss", "steps": [5, 10], "values": [3.0, 2.5]}},
        "settings": {"minutes": 18.0},
        "next_commands": ["trueline generate --model x"],
    }  # fmt: skip


def test_page_is_self_contained_and_escaped(results):
    text = page(results)
    assert text.count("<svg") == 7
    assert "Choose &lt;DPO&gt;." in text and all(text.count(entrant.title) > 5 for entrant in ENTRANTS)
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
