"""Strange prompts by their features: closed forms, limits, and two sources of real text."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from trueline.evals.ood import auroc, fit

DATA = Path(os.environ.get("TRUELINE_DATA", ""))


def test_the_distance_by_hand() -> None:
    """Two features of variance 1 and correlation 0.8, shrunk to 0.4: for v = (1, -1) S^-1 gives 2 / (1 - 0.4), the diagonal 2."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(200_000, 2)) @ np.linalg.cholesky([[1, 0.8], [0.8, 1]]).T
    found = fit(draws, shrinkage=0.5)
    point = found.mean_D + np.array([[1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(found.mahalanobis(point), [2 / 0.6, 2 / 1.4, 0], atol=0.03)
    np.testing.assert_allclose(found.score(point), [2 / 0.6 - 2, 2 / 1.4 - 2, 0], atol=0.03)


def test_what_goes_together_differently_is_flagged() -> None:
    """Every single feature is distributed alike; only how they go together differs. More features than prompts."""
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(100, 100)) * np.linspace(0, 3, 100)
    known, new = rng.normal(size=(80, 100)) @ mix, rng.normal(size=(200, 100)) @ mix
    strange = np.stack([rng.permutation(column) for column in new.T], 1)
    reference = fit(known, shrinkage=0.2)
    assert auroc(reference.score(new), reference.score(strange)) > 0.95
    threshold = reference.threshold(new, 0.1)
    assert (reference.score(new) > threshold).mean() == pytest.approx(0.1, abs=0.01)
    assert (reference.score(strange) > threshold).mean() > 0.7
    assert reference.score(known).mean() < reference.score(new).mean()  # what was fitted looks too familiar


def test_auroc() -> None:
    assert auroc([0, 1], [2, 3]) == 1 and auroc([2, 3], [0, 1]) == 0 and auroc([1, 1], [1]) == 0.5
    assert auroc([0, 1, 2], [1]) == 0.5 and auroc([0, 1, 2], [1.5, 3]) == pytest.approx((2 / 3 + 1) / 2)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two prompts"):
        fit(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="same features"):
        fit(np.ones((4, 3)))
    with pytest.raises(ValueError, match="shrinkage"):
        fit(np.eye(3), shrinkage=1.0)
    with pytest.raises(ValueError, match="3 features"):
        fit(np.eye(3)).score(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="both kinds"):
        auroc([], [1.0])


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "preference").is_dir(), reason="TRUELINE_DATA names no folder with preference/")
def test_prompts_of_another_source_are_flagged_by_a_models_features() -> None:
    """The shipped model's features: red-team dialogues against a dialogue model's known kind, grade-school mathematics."""
    from trueline.models.files import load_model
    from trueline.models.scorer import prompt_features
    from trueline.quickstart.base_model import base_model_dir
    from trueline.tokens import load_tokenizer

    model, tokenizer = load_model(base_model_dir()), load_tokenizer(str(base_model_dir()))

    def features(path: str, column: str, number: int) -> np.ndarray:
        with gzip.open(DATA / path, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)[column] for _, line in zip(range(number), lines, strict=False)]
        return prompt_features(model, [tokenizer.encode(text)[:32] for text in texts])

    known = features("preference/hh_harmless_base_test.jsonl.gz", "chosen", 90)
    other = features("gsm8k/test.jsonl.gz", "question", 30)
    reference = fit(known[:60])
    assert auroc(reference.score(known[60:]), reference.score(other)) > 0.9
