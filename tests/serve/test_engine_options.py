"""What requests may ask for beyond plain sampling: beams, drafts, penalties, constraints."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueline.models.decoder import Decoder
from trueline.records import Sample, Sampling
from trueline.serve.beams import BeamSearch
from trueline.serve.engine import Engine
from trueline.serve.request import Constraint, Event, Options
from trueline.serve.runner import Runner
from trueline.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("native")
Prompts = list[np.ndarray]


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.busy:
        events.extend(engine.step())
    return events


def ended(events: list[Event], request: int) -> list[Sample]:
    """Samples of a request by response."""
    found = {e.response: e.sample for e in events if e.request == request and e.sample is not None}
    return [found[number] for number in range(len(found))]


def full_forward_search(model: Decoder, prompt: np.ndarray, width: int, limit: int, stop: set[int]) -> BeamSearch:
    """The same search with every beam computed from its first token."""
    search, beams = BeamSearch(width, stop, limit), [prompt.tolist()]
    while not search.done:
        with torch.no_grad():
            rows = torch.stack([model.logits(torch.tensor(ids))[-1].log_softmax(0) for ids in beams])
        beams = [[*beams[row], token] for row, token in search.step(rows)]
    return search


def test_beams_equal_a_search_without_cache(model: Decoder, prompts: Prompts) -> None:
    """Two searches and a plain request at once, in blocks of 4 tokens, with a cache that preempts, and roomy."""
    stop = {7, 11}
    for engine in (Engine(model), Engine(model, block_size=4, cache_tokens=192, swap_tokens=64)):
        sampling = Sampling(max_new_tokens=10, n=3, stop_ids=tuple(stop))
        asked = [engine.submit(prompts[i], sampling, Options(beams=4)) for i in range(2)]
        plain = engine.submit(prompts[2], Sampling(max_new_tokens=30, seed=3))
        events = drain(engine)
        for number, i in zip(asked, range(2), strict=True):
            expected = full_forward_search(model, prompts[i], 4, 10, stop).hypotheses[:3]
            found = ended(events, number)
            assert [sample.ids.tolist() for sample in found] == [list(h.ids) for h in expected]
            for sample, hypothesis in zip(found, expected, strict=True):
                np.testing.assert_allclose(sample.logps, hypothesis.logps, atol=1e-5)
        (alone,) = Engine(model).sample([prompts[2]], Sampling(max_new_tokens=30, seed=3))[0]
        assert ended(events, plain)[0].ids.tolist() == alone.ids.tolist()
        assert engine.statistics().blocks_used == 0


def test_beams_that_are_cancelled_leave_nothing(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model)
    request = engine.submit(prompts[0], Sampling(max_new_tokens=20, n=2), Options(beams=5))
    engine.step(), engine.step()
    assert engine.cancel(request)
    assert [sample.finish_reason for sample in ended(drain(engine), request)] == ["cancelled"] * 2
    assert engine.statistics().blocks_used == 0 and not engine.busy
    with pytest.raises(ValueError, match="do not fit a batch of 4"):
        Engine(model, max_batch=4).submit(prompts[0], Sampling(), Options(beams=5))


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_drafts_change_nothing_but_the_number_of_forwards(
    model: Decoder, prompts: Prompts, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that repeats itself: the same tokens and log-probs, with penalties too, in fewer steps."""
    steps: list[int] = []
    run = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, chunks: steps.append(len(chunks)) or run(self, chunks))
    prompt = np.tile(prompts[0][:5], 5)
    forwards = {}
    for shifts in ({}, {"repetition_penalty": 1.1, "frequency_penalty": 0.2}):
        sampling = Sampling(max_new_tokens=48, n=1 if temperature == 0 else 3, temperature=temperature, seed=2, **shifts)
        found = {}
        for lookup in (0, 6):
            steps.clear()
            engine = Engine(model, block_size=4)
            request = engine.submit(prompt, sampling, Options(lookup=lookup))
            found[lookup] = ended(drain(engine), request)
            forwards[lookup] = len(steps)
            assert engine.statistics().blocks_used == 0
        for plain, drafted in zip(found[0], found[6], strict=True):
            assert plain.ids.tolist() == drafted.ids.tolist()
            np.testing.assert_allclose(plain.logps, drafted.logps, atol=1e-5)
        if temperature == 0 and not shifts:
            assert forwards[6] < 0.7 * forwards[0], forwards


def test_penalties_of_the_engine_are_those_of_the_formula(model: Decoder, prompts: Prompts) -> None:
    sampling = Sampling(max_new_tokens=25, temperature=0, repetition_penalty=1.3, presence_penalty=0.4, logit_bias=((5, 2.0),))
    (sample,) = Engine(model).sample([prompts[1]], sampling)[0]
    ids = prompts[1].tolist()
    for place, token in enumerate(sample.ids.tolist()):
        with torch.no_grad():
            logits_V = model.logits(torch.tensor(ids))[-1]
        own = float(logits_V.log_softmax(0)[token])
        logits_V[5] += 2.0
        seen = torch.tensor(sorted(set(ids)))
        logits_V[seen] = torch.where(logits_V[seen] < 0, logits_V[seen] * 1.3, logits_V[seen] / 1.3)
        logits_V[torch.tensor(sorted(set(sample.ids[:place].tolist())), dtype=torch.long)] -= 0.4
        assert token == int(logits_V.argmax()) and sample.logps[place] == pytest.approx(own, abs=1e-5)
        ids.append(token)


def test_constraints_hold_with_drafts_and_neighbours(model: Decoder, tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    engine = Engine(model, tokenizer)
    prompt = tokenizer.encode("Return the")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    sampling = Sampling(max_new_tokens=80, n=3, seed=1)
    digits = engine.submit(prompt, sampling, Options(constraint=Constraint("regex", "[0-9]{3}-[a-f]{2}"), lookup=4))
    free = engine.submit(prompt, replace(sampling, n=1))
    records = engine.submit(prompt, sampling, Options(constraint=Constraint("json_schema", json.dumps(schema))))
    events = drain(engine)
    for sample in ended(events, digits):
        assert re.fullmatch("[0-9]{3}-[a-f]{2}", engine.text(sample)), engine.text(sample)
    for sample in ended(events, records):
        if sample.finish_reason == "stop":  # white space may go on for long
            assert set(json.loads(engine.text(sample))) == {"ok"}
    (alone,) = Engine(model, tokenizer).sample([prompt], replace(sampling, n=1))[0]
    assert ended(events, free)[0].ids.tolist() == alone.ids.tolist()


def test_unknown_adapters_are_named(model: Decoder) -> None:
    with pytest.raises(ValueError, match="there is no adapter 'x' to answer: this engine has none"):
        Engine(model).submit([1], Sampling(), Options(adapter="x"))


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_responses_are_their_own(model: Decoder, prompts: Prompts, data: st.DataObject) -> None:
    """Random requests, cancellations, batches, budgets, blocks and caches: everybody gets what they get alone."""
    draw = data.draw
    engine = Engine(
        model, max_batch=draw(st.integers(3, 8)), max_tokens_per_step=draw(st.integers(8, 64)),
        block_size=draw(st.sampled_from([1, 3, 4, 16])), cache_tokens=draw(st.sampled_from([None, 256, 400])),
        swap_tokens=draw(st.sampled_from([0, 128])),
    )  # fmt: skip
    asked: dict[int, tuple[int, Sampling]] = {}
    cancelled: set[int] = set()
    events: list[Event] = []
    for number in range(draw(st.integers(2, 7))):
        i = draw(st.integers(0, 4))
        sampling = Sampling(max_new_tokens=draw(st.integers(1, 20)), n=draw(st.integers(1, 3)), seed=number)
        options = Options(
            lookup=draw(st.sampled_from([0, 3])), priority=draw(st.integers(0, 1)), client=draw(st.sampled_from(["", "a"]))
        )
        asked[engine.submit(prompts[i], sampling, options)] = (i, sampling)
        for _ in range(draw(st.integers(0, 4))):
            events.extend(engine.step())
        if draw(st.integers(0, 5)) == 0:
            cancelled.add(target := draw(st.sampled_from(sorted(asked))))
            engine.cancel(target)
    events.extend(drain(engine))
    assert engine.statistics()[:3] == (0, 0, 0)
    for request, (i, sampling) in asked.items():
        found = ended(events, request)
        assert len(found) == sampling.n
        if request not in cancelled:
            (alone,) = Engine(model).sample([prompts[i]], sampling)
            assert [s.ids.tolist() for s in found] == [s.ids.tolist() for s in alone]
