"""Prompt lookup: what is proposed, and that a response is the same token for token."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.records import Sampling
from trueline.serve.lookup import LONGEST, SHORTEST, Lookup, agreed
from trueline.serve.noise import noise_key, uniforms
from trueline.serve.penalties import Tally
from trueline.serve.sampling import Change, Knobs, draw


def searched(tokens: list[int], size: int) -> list[int]:
    """The proposal by search: the latest earlier occurrence of the longest tail, continued round and round."""
    for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[-length:]:
                period = len(tokens) - length - start
                return [tokens[start + length + place % period] for place in range(size)]
    return []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_proposals_are_what_followed_last(prompt: list[int], ids: list[int]) -> None:
    lookup = Lookup(np.array(prompt, dtype=np.int32), ids)
    assert lookup.propose(2) == searched(prompt + ids, 2) and lookup.propose(0) == []
    lookup.judge(2, 2)
    assert lookup.propose(9) == searched(prompt + ids, 4)


def test_drafts_grow_with_success_and_shrink_with_failure() -> None:
    lookup = Lookup([1, 2, 3] * 20)
    sizes = []
    for agreement in (2, 4, 8, 3, 0, 1):
        draft = lookup.propose(100)
        sizes.append(len(draft))
        lookup.judge(len(draft), agreement)
    assert sizes == [2, 4, 8, 16, 4, 1] and len(lookup.propose(100)) == 2
    assert len(lookup.propose(1)) == 1
    lookup.judge(0, 0)  # nothing was proposed: nothing is learnt
    assert len(lookup.propose(100)) == 2


def test_agreement() -> None:
    assert [agreed([1, 2], drawn) for drawn in ([1, 2, 3], [1, 3, 3], [2, 2, 2])] == [2, 1, 0]
    assert agreed([], [5]) == 0


V = 12


def logits_after(context: list[int]) -> torch.Tensor:
    """A model that is sure of some continuations and not of others."""
    rng = np.random.default_rng(context[-2:])
    return torch.from_numpy((rng.normal(size=V) * 6).astype(np.float32))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(temperature=0.5, top_p=0.9),
        Sampling(repetition_penalty=1.1, frequency_penalty=0.1, temperature=0.7),
    ],
)
def test_the_response_is_the_same_in_fewer_forwards(sampling: Sampling) -> None:
    prompt = np.array([1, 2, 3, 1, 2], dtype=np.int32)
    key = np.array([noise_key(5, prompt, 0, 0)], dtype=np.uint64)
    responses, forwards = [], []
    for most in (0, 8):
        ids: list[int] = []
        lookup, tally = Lookup(prompt), Tally.of(sampling, prompt)
        steps = 0
        while len(ids) < 120:
            draft = lookup.propose(most)
            places = range(len(draft) + 1)
            logits = torch.stack([logits_after([*prompt.tolist(), *ids, *draft[:place]]) for place in places])
            noise = uniforms(key.repeat(len(places)), len(ids) + np.arange(len(places)))
            changes = [Change(place, tally.after(draft[:place])) for place in places] if tally else []
            drawn = draw(logits, Knobs.of([sampling] * len(places), V, torch.device("cpu")), noise, changes)[0].tolist()
            right = agreed(draft, drawn)
            lookup.judge(len(draft), right)
            for token in drawn[: right + 1]:
                ids.append(token)
                lookup.accept(token)
                if tally is not None:
                    tally.accept(token)
            steps += 1
        responses.append(ids[:120])
        forwards.append(steps)
    assert responses[0] == responses[1]
    assert forwards[0] == 120 and forwards[1] < (110 if sampling.shifts else 90)


def test_it_needs_no_torch() -> None:
    code = "import sys, trueline.serve.lookup, trueline.serve.penalties, trueline.serve.constraints; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
