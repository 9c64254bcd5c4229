"""A decoder in the listed world: what it cannot say without a first token, and that DPO brings it to pi* with one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trueline.evals.oracle import gibbs, total_variation


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("recipes.oracle_decoder")


def test_a_decoder_s_table_is_its_probabilities(decoder: Any, small: Any) -> None:
    model = decoder.small_decoder(small, 0)
    world = decoder.world_of(model, small)
    assert np.allclose(world.reference_PV, decoder.probs_of(model, small), atol=1e-5)
    assert not np.allclose(world.reference_PV, small.reference_PV, atol=0.05)


def test_without_a_first_token_equal_letters_are_not_counted(decoder: Any, small: Any) -> None:
    """After 1 1 (the prompt) and after 1 1 1 the next token has one distribution; with a 0 in front it has two."""
    gaps = []
    for world in (small, decoder.with_first_token(small)):
        world = replaced_prompts(decoder, world)
        told = decoder.world_of(decoder.small_decoder(world, 0), world)
        states = [told.paths[0][0, told.responses.index(y), place] for y, place in (((1, 0), 0), ((1, 0), 1))]
        first_A, second_A = (told.reference_logits_VA[state] for state in states)
        gaps.append(np.abs(first_A - second_A).max())
    assert gaps[0] < 1e-5 and gaps[1] > 1e-3


def replaced_prompts(decoder: Any, world: Any) -> Any:
    """The same with prompts of two equal letters in place of one."""
    return decoder.replace(world, prompts=tuple((*prompt, prompt[-1]) for prompt in world.prompts))


def test_the_tie_alone_keeps_dpo_from_the_optimum(decoder: Any) -> None:
    world = decoder.make_world("smooth", 0)
    world = decoder.replace(world, reference_logits_VA=np.zeros_like(world.reference_logits_VA))
    best_PV = gibbs(world.reference_PV, world.reward_PV, decoder.BETA)
    assert total_variation(decoder.tied_optimum(world, decoder.BETA), best_PV) > 0.02
    free = decoder.with_first_token(world)
    assert total_variation(decoder.tied_optimum(free, decoder.BETA), best_PV) < 1e-4, "nothing is tied"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_brings_a_decoder_to_the_optimum(decoder: Any, seed: int) -> None:
    world = decoder.make_world("smooth", seed)
    assert decoder.measured(decoder.with_first_token(world))["TV to pi*"] < 0.02
    found = decoder.measured(world)
    assert found["least TV with the tie"] > 0.02
    assert found["TV to pi*"] == pytest.approx(found["least TV with the tie"], abs=0.01)
