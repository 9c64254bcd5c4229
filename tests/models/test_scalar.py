"""Reward models of one score or of C categories: what they give, what is stored, what transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.attention import Layout
from trueline.models.files import load_scalar_model, save_model
from trueline.models.scorer import RewardScorer
from trueline.records import Row

UTILITIES = (-2.0, -0.5, 0.5, 3.0)


@pytest.fixture
def categories(tiny: Any, loud: Any, tmp_path: Path) -> Any:
    """A loud model of four categories, started from a language model."""
    save_model(tiny(), tmp_path / "lm")
    model = load_scalar_model(tmp_path / "lm", labels=4)
    loud(model)
    model.utilities = UTILITIES
    return model


def rows_of(ids: list[np.ndarray]) -> list[Row]:
    return [Row(ids=(x,), scored=(np.arange(len(x)) > 0,)) for x in ids]


def test_the_score_is_the_expected_utility(categories: Any, sequences: Any) -> None:
    ids = sequences(1, [9, 17, 4])
    scorer = RewardScorer(categories)
    shares_SC = np.concatenate(scorer.shares(rows_of(ids)))
    assert shares_SC.shape == (3, 4) and np.allclose(shares_SC.sum(1), 1, atol=1e-6) and shares_SC.std() > 0.05
    np.testing.assert_allclose(np.concatenate(scorer.score(rows_of(ids))), shares_SC @ UTILITIES, atol=1e-5)
    categories.reward_shift = 0.75
    shifted = RewardScorer(categories)
    np.testing.assert_allclose(np.concatenate(shifted.score(rows_of(ids))), shares_SC @ UTILITIES - 0.75, atol=1e-5)
    assert shifted.fingerprint != scorer.fingerprint  # caches of scores are keyed by it


@pytest.mark.parametrize("variant", ["llama2", "qwen3", "gpt2", "gemma2"])
def test_categories_equal_transformers_both_ways(
    variant: str, families: Any, small: Any, loud: Any, sequences: Any, tmp_path: Path
) -> None:
    """transformers' own classifier of four labels, given utilities, and ours read by transformers, shift and all."""
    import transformers

    name, fields = families[variant]
    config = getattr(transformers, f"{name}Config")(**{**small, **fields, "num_labels": 4})
    reference = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    loud(reference)
    reference.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    with pytest.raises(ValueError, match=r"4 labels is a reward model where `utilities` says"):
        load_scalar_model(tmp_path / "theirs")
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(raw | {"utilities": UTILITIES, "reward_shift": 0.25}), encoding="utf-8")
    ids = [x % 58 + 3 for x in sequences(1, [9, 17, 4])]
    padded = torch.zeros(3, 17, dtype=torch.long)
    for row, x in zip(padded, ids, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    with torch.no_grad():
        expected_SC = reference(padded, attention_mask=(padded != 0).long()).logits
        ours = load_scalar_model(tmp_path / "theirs")
        torch.testing.assert_close(ours.logits(Layout.packed(ids)), expected_SC, atol=1e-4, rtol=0)
        worth_S = expected_SC.softmax(1) @ torch.tensor(UTILITIES) - 0.25
        torch.testing.assert_close(ours(Layout.packed(ids)), worth_S, atol=1e-4, rtol=0)
        save_model(ours, tmp_path / "ours")
        again = load_scalar_model(tmp_path / "ours")
        assert (again.labels, again.utilities, again.reward_shift) == (4, UTILITIES, 0.25)
        back, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"] and back.config.num_labels == 4
        found_SC = back.eval()(padded, attention_mask=(padded != 0).long()).logits
        torch.testing.assert_close(found_SC, expected_SC, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"utilities": [0, 1, 2]}, "4 labels"), ({"utilities": [0, 2, 1, 3]}, "that do not fall"),
     ({"utilities": [0, 1, "2", 3]}, "finite numbers"), ({"reward_shift": None}, "finite numbers"),
     ({"reward_shift": "x"}, "finite numbers")],
)  # fmt: skip
def test_a_damaged_head_is_named(categories: Any, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = save_model(categories, tmp_path / "rm") / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(raw | changed), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_scalar_model(tmp_path / "rm")


def test_a_classifier_of_other_labels_is_refused(categories: Any, tmp_path: Path) -> None:
    save_model(categories, tmp_path / "rm")
    with pytest.raises(ValueError, match="a classifier of 4 labels, and 1 are wanted: start from a language model"):
        load_scalar_model(tmp_path / "rm", labels=1)
