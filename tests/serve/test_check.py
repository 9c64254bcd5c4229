"""Every sampling run says how far the sampler is from the training forward, and complains when that is no rounding."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from trueline.models.decoder import Decoder
from trueline.records import Sampling
from trueline.serve.check import LIMIT, Agreement, compare
from trueline.serve.engine import Engine
from trueline.serve.runner import Runner

Prompts = list[np.ndarray]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_first_samples_are_checked(model: Decoder, prompts: Prompts, temperature: float) -> None:
    engine = Engine(model)
    assert engine.agreement is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = engine.sample(prompts, Sampling(max_new_tokens=12, temperature=temperature, n=2 if temperature else 1))
    assert engine.agreement is not None and engine.agreement.holds
    print(engine.agreement)
    assert 0 < engine.agreement.difference < 1e-5
    assert engine.agreement.tokens == sum(len(group[0].ids) for group in drawn)
    assert str(engine.agreement).startswith("sampler vs trainer log-probs: max difference ")
    assert str(engine.agreement).endswith(f" over {engine.agreement.tokens} tokens")


def test_once_for_each_model(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model)
    engine.sample(prompts, Sampling(max_new_tokens=4))
    first = engine.agreement
    engine.sample(prompts, Sampling(max_new_tokens=4, seed=1))
    assert engine.agreement is first
    engine.load(model, "the same in training, a step later")
    assert engine.agreement is first
    engine.load(copy.deepcopy(model), "another")
    assert engine.agreement is None
    engine.sample([], Sampling(max_new_tokens=4))
    assert engine.agreement is None  # nothing was drawn


def test_a_cache_that_lies_is_found(model: Decoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the sampler alone are off by one part in fifty."""
    whole = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, chunks: whole(self, chunks) * 1.02)
    engine = Engine(model)
    with pytest.warns(UserWarning, match="sampler vs trainer log-probs: above 0.001 the two do not compute the same model"):
        engine.sample(prompts, Sampling(max_new_tokens=8))
    assert engine.agreement is not None and engine.agreement.difference > LIMIT
    assert "off-policy" in str(engine.agreement)


def test_the_largest_of_all_tokens_counts(model: Decoder, prompts: Prompts) -> None:
    ((sample,), *_) = Engine(model).sample(prompts[:1], Sampling(max_new_tokens=8))
    wrong = sample.logps.copy()
    wrong[-1] += 0.25
    with torch.inference_mode():
        assert compare(model, [replace(sample, logps=wrong)]).difference == pytest.approx(0.25, abs=1e-5)
        assert not compare(model, [replace(sample, logps=sample.logps * np.nan)]).holds
        many = compare(model, [sample] * 1000)
    assert many.tokens == 512 // len(sample.ids) * len(sample.ids) and many.holds


def test_not_a_number_does_not_hold() -> None:
    assert not Agreement(float("nan"), 1).holds and Agreement(LIMIT, 1).holds


def test_a_model_in_training_changes_its_mode_once(model: Decoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []

    def noted(mode: bool = True) -> nn.Module:
        modes.append(mode)
        return nn.Module.train(model, mode)

    monkeypatch.setattr(model, "train", noted)
    model.train()
    Engine(model).sample(prompts, Sampling(max_new_tokens=4))
    assert modes == [True, False, True, False, True] and model.training  # drawing, then the check
