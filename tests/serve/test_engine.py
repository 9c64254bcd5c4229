"""The engine against the training forward, and against itself in other company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import trueline.serve.engine as engine_module
from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.records import TEXT, Message, Sample, Sampling
from trueline.serve.engine import Engine
from trueline.serve.request import Event
from trueline.tokens.tokenizer import Tokenizer

Prompts = list[np.ndarray]


def training_logps(model: Decoder, sample: Sample, temperature: float) -> np.ndarray:
    """Log-probs of a sample's response by the training forward on the whole sequence."""
    ids = np.concatenate([sample.prompt_ids, sample.ids])
    scored = np.arange(len(ids)) >= len(sample.prompt_ids)
    layout = Layout.packed([ids], [scored])
    with torch.no_grad():
        return model.token_logps(layout, temperature=temperature).logps_N.numpy()


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.busy:
        events.extend(engine.step())
    return events


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12, n=3),
        Sampling(max_new_tokens=12, temperature=0.6, n=2),
        Sampling(max_new_tokens=12, temperature=1.7, top_k=9, top_p=0.9, min_p=0.05),
        Sampling(max_new_tokens=12, temperature=0),
    ],
)
def test_logps_are_those_of_the_training_forward(model: Decoder, prompts: Prompts, sampling: Sampling) -> None:
    for group in Engine(model, max_batch=5).sample(prompts, sampling):
        for sample in group:
            expected = training_logps(model, sample, sampling.temperature or 1.0)
            assert np.abs(sample.logps - expected).max() < 1e-5
            assert sample.logps.dtype == np.float32 and sample.mask.all() and len(sample.mask) == len(sample.ids)


def test_greedy_is_the_argmax_of_the_training_forward(model: Decoder, prompts: Prompts) -> None:
    for (sample,) in Engine(model).sample(prompts, Sampling(max_new_tokens=20, temperature=0)):
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.ids])).long()
        with torch.no_grad():
            best = model.logits(ids).argmax(-1).numpy()
        assert np.array_equal(best[len(sample.prompt_ids) - 1 : -1], sample.ids)


def test_company_changes_nothing(model: Decoder, prompts: Prompts) -> None:
    """Same tokens and log-probs alone, in small batches with refilling and moved slots, and all at once."""
    lengths = [7, 3, 12, 5, 4, 10, 6]

    def run(engine: Engine, order: Sequence[int]) -> dict[int, list[Sample]]:
        owner = {
            engine.submit(prompts[i], Sampling(max_new_tokens=lengths[i], n=2, seed=4, temperature=0.9)): i
            for i in order
        }
        found: dict[int, list[Sample]] = {i: [] for i in order}
        for event in sorted((e for e in drain(engine) if e.sample), key=lambda e: e.response):
            assert event.sample is not None
            found[owner[event.request]].append(event.sample)
        return found

    everyone = list(range(len(prompts)))
    alone: dict[int, list[Sample]] = {}
    for i in everyone:
        alone.update(run(Engine(model, max_batch=1), [i]))
    for max_batch, order in ((3, everyone), (64, everyone), (4, everyone[::-1])):
        together = run(Engine(model, max_batch=max_batch, prefill_tokens=20), order)
        for i in everyone:
            for one, other in zip(alone[i], together[i], strict=True):
                assert np.array_equal(one.ids, other.ids)
                assert np.abs(one.logps - other.logps).max() < 1e-5


def test_logits_of_a_row_do_not_depend_on_the_batch(
    model: Decoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    draw = engine_module.draw

    def spy(logits_BV: torch.Tensor, *rest: Any) -> Any:
        seen.append(logits_BV[:1].clone())
        return draw(logits_BV, *rest)

    monkeypatch.setattr(engine_module, "draw", spy)
    sampling = Sampling(max_new_tokens=10)
    Engine(model).sample(prompts[3:4], sampling)
    alone, seen = torch.cat(seen), []
    Engine(model).sample([prompts[3], *prompts[:3]], sampling)  # the longest prompt runs in slot 0
    together = torch.cat(seen)
    assert len(alone) == 10 and (alone - together).abs().max() < 1e-5


def test_seed_decides(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model)
    sampling = Sampling(max_new_tokens=16, n=2, seed=7)
    first, again = engine.sample(prompts[:2], sampling), engine.sample(prompts[:2][::-1], sampling)[::-1]
    for group, other in zip(first, again, strict=True):
        assert [s.ids.tolist() for s in group] == [s.ids.tolist() for s in other]
        assert group[0].ids.tolist() != group[1].ids.tolist()
    changed = engine.sample(prompts[:2], replace(sampling, seed=8))
    assert changed[0][0].ids.tolist() != first[0][0].ids.tolist()
    twice = engine.sample([prompts[0], prompts[0]], Sampling(max_new_tokens=16, seed=7))
    assert twice[0][0].ids.tolist() != twice[1][0].ids.tolist()
    assert twice[0][0].ids.tolist() == first[0][0].ids.tolist()


def test_a_prompt_is_computed_once_for_its_responses(
    model: Decoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    forward = Decoder.forward
    monkeypatch.setattr(
        Decoder,
        "forward",
        lambda self, layout, *rest, **named: sizes.append(layout.num_tokens) or forward(self, layout, *rest, **named),
    )
    Engine(model).sample(prompts[:4], Sampling(max_new_tokens=3, n=4))
    assert sizes[:3] == [sum(len(p) for p in prompts[:4]), 16, 16]  # what follows is the check against the training forward


def test_more_responses_than_slots(model: Decoder, prompts: Prompts) -> None:
    sampling = Sampling(max_new_tokens=4, n=7)
    narrow, wide = Engine(model, max_batch=3).sample(prompts[:2], sampling), Engine(model).sample(prompts[:2], sampling)
    assert [[s.ids.tolist() for s in g] for g in narrow] == [[s.ids.tolist() for s in g] for g in wide]
    assert [len(g) for g in narrow] == [7, 7]


def test_drawn_tokens_follow_the_distribution(model: Decoder, prompts: Prompts) -> None:
    samples = Engine(model, max_batch=512).sample(prompts[:1], Sampling(max_new_tokens=1, n=4000, temperature=0.5))[0]
    with torch.no_grad():
        probs = torch.softmax(model.logits(torch.from_numpy(prompts[0]))[-1] / 0.5, -1).numpy()
    drawn = np.bincount([s.ids[0] for s in samples], minlength=len(probs)) / len(samples)
    distance = np.abs(drawn - probs).sum() / 2
    expected = np.sqrt(probs * (1 - probs) / len(samples) * 2 / np.pi).sum() / 2  # mean absolute deviation of a share
    assert 0.5 * expected < distance < 1.5 * expected


def test_finish_reasons(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model)
    (greedy,) = engine.sample(prompts[:1], Sampling(max_new_tokens=8, temperature=0))[0]
    assert greedy.finish_reason == "length" and len(greedy.ids) == 8
    end = int(greedy.ids[3])
    first = greedy.ids.tolist().index(end)
    (stopped,) = engine.sample(prompts[:1], Sampling(max_new_tokens=8, temperature=0, stop_ids=(end,)))[0]
    assert stopped.finish_reason == "stop" and stopped.ids.tolist() == greedy.ids[: first + 1].tolist()
    assert stopped.temperature == 0 and stopped.policy == engine.version
    by_default = Engine(model, stop_ids=[end]).sample(prompts[:1], Sampling(max_new_tokens=8, temperature=0))[0][0]
    assert by_default.ids.tolist() == stopped.ids.tolist()


def test_the_context_is_the_limit(model: Decoder) -> None:
    context = model.config.max_length
    (full,) = Engine(model).sample([[1] * (context - 3)], Sampling(max_new_tokens=50))[0]
    assert full.finish_reason == "length" and len(full.ids) == 3
    assert np.abs(full.logps - training_logps(model, full, 1.0)).max() < 1e-5
    with pytest.raises(ValueError, match=f"prompt 1 has {context} tokens, but the model's context holds {context}"):
        Engine(model).sample([[1], [1] * context], Sampling())


def test_the_cache_grows_under_running_requests(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model)
    short = engine.submit(prompts[0], Sampling(max_new_tokens=20))
    events = engine.step() + engine.step()
    engine.submit([3] * 80, Sampling(max_new_tokens=10, n=5))
    events += drain(engine)
    (sample,) = [e.sample for e in events if e.sample and e.request == short]
    (alone,) = Engine(model).sample(prompts[:1], Sampling(max_new_tokens=20))[0]
    assert sample.ids.tolist() == alone.ids.tolist()
    assert np.abs(sample.logps - alone.logps).max() < 1e-5


def test_events_tell_the_story(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model)
    request = engine.submit(prompts[0], Sampling(max_new_tokens=3, n=2))
    events = drain(engine)
    assert [(e.request, e.response) for e in events] == [(request, 0), (request, 1)] * 3
    sample = events[-1].sample
    assert sample is not None and sample.ids.tolist() == [e.token for e in events[1::2]]
    assert engine.step() == [] and not engine.busy


def test_progress_counts_the_ended_responses(model: Decoder, prompts: Prompts) -> None:
    told: list[int] = []
    Engine(model, max_batch=3, progress=told.append).sample(prompts, Sampling(max_new_tokens=6, n=2))
    assert told == sorted(told) and told[-1] == 2 * len(prompts) and len(set(told)) > 2


def test_cancel(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model, max_batch=2)
    sampling = Sampling(max_new_tokens=9)
    stays, goes, waits = (engine.submit(prompts[i], sampling) for i in range(3))
    events = engine.step() + engine.step()
    assert engine.cancel(goes) and engine.cancel(waits) and not engine.cancel(99)
    events += drain(engine)
    ends = {e.request: e.sample for e in events if e.sample}
    assert ends[goes].finish_reason == "cancelled" and len(ends[goes].ids) == 2 == len(ends[goes].logps)
    assert ends[waits].finish_reason == "cancelled" and len(ends[waits].ids) == 0
    alone = Engine(model).sample(prompts[:1], sampling)[0][0]
    assert ends[stays].ids.tolist() == alone.ids.tolist()
    assert not engine.cancel(goes)


def test_load_draws_from_the_live_weights(model: Decoder, prompts: Prompts) -> None:
    live = new_model(model.config, seed=3)
    engine = Engine(model, version="base@0")
    sampling = Sampling(max_new_tokens=5)
    assert engine.sample(prompts[:1], sampling)[0][0].policy == "base@0"
    engine.load(live, "sft@1")
    with torch.no_grad():
        live.embed_tokens.weight.mul_(30)  # a training step after loading
    sample = engine.sample(prompts[:1], sampling)[0][0]
    assert sample.policy == "sft@1"
    assert np.abs(sample.logps - training_logps(live, sample, 1.0)).max() < 1e-5
    engine.submit(prompts[0], sampling)
    with pytest.raises(ValueError, match="requests are running on the old weights"):
        engine.load(model, "x@2")


def test_training_mode_is_left_alone_and_adds_no_noise(model: Decoder, prompts: Prompts) -> None:
    model.neftune_alpha = 100.0
    model.train()
    sample = Engine(model).sample(prompts[:1], Sampling(max_new_tokens=6))[0][0]
    assert model.training
    model.neftune_alpha = 0.0
    assert np.abs(sample.logps - training_logps(model, sample, 1.0)).max() < 1e-5
    model.eval()


def test_an_interrupted_call_leaves_a_clean_engine(
    model: Decoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, max_batch=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        steps = iter([engine.step, engine.step])
        patch.setattr(engine, "step", lambda: next(steps, _interrupt)())
        engine.sample(prompts, Sampling(max_new_tokens=30))
    assert not engine.busy
    again, fresh = (e.sample(prompts[:1], Sampling(max_new_tokens=5)) for e in (engine, Engine(model)))
    assert again[0][0].ids.tolist() == fresh[0][0].ids.tolist()


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_broken_weights_are_named(model: Decoder, prompts: Prompts) -> None:
    broken = new_model(model.config)
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="gives NaN or infinite logits"):
        Engine(broken, version="x@1").sample(prompts[:1], Sampling())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must lie in"),
        ({"top_p": 1.5}, "top_p must lie in"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"min_p": 2.0}, "min_p must lie in"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 2, "temperature": 0}, "greedy responses would all be equal"),
        ({"stop": ("",)}, "stop string is empty"),
        ({"stop": ("x",)}, "stop strings need a tokenizer"),
        ({"stop_ids": (9999,)}, "must be token ids between 0 and"),
    ],
)
def test_bad_sampling_values(model: Decoder, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(model).submit([1, 2], Sampling(**fields))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "is empty"),
        ([[1, 2]], "is empty or not a flat list"),
        ([0, 9999], "token id 9999"),
        ([-1], "token id -1"),
        ([0.5], "float64"),
    ],
)
def test_bad_prompts(model: Decoder, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(model).submit(prompt, Sampling())


def test_stop_strings_end_and_cut_the_text(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, stop_ids=())
    sampling = Sampling(max_new_tokens=40, seed=5)
    prompt = tokenizer.encode("Return the")
    full = engine.sample([prompt], sampling)[0][0]
    text = tokenizer.decode(full.ids)
    place = next(i for i in range(8, len(text) - 3) if "\ufffd" not in text[i : i + 3])
    stop = text[place : place + 3]  # three characters, wherever the tokens' borders lie
    sample = engine.sample([prompt], replace(sampling, stop=("never there", stop)))[0][0]
    assert sample.finish_reason == "stop"
    assert sample.ids.tolist() == full.ids[: len(sample.ids)].tolist()
    assert np.array_equal(sample.logps, full.logps[: len(sample.ids)])
    assert stop in tokenizer.decode(sample.ids)
    assert stop not in tokenizer.decode(sample.ids[:-1])
    shown = tokenizer.decode(sample.ids)
    assert engine.text(sample, ("never there", stop)) == shown[: shown.index(stop)]


def test_generate(model: Decoder, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, stop_ids=())
    one = engine.generate("Return the", max_new_tokens=6, seed=1)
    many = engine.generate(["Return the", (Message(role="user", content="sum"),)], max_new_tokens=6, seed=1, n=2)
    assert len(one) == 1 and len(many) == 4 and many[0] == one[0]
    assert engine.generate((Message(role=TEXT, content="Return the"),), max_new_tokens=6, seed=1) == one
    with pytest.raises(ValueError, match="generate needs a tokenizer"):
        Engine(model).generate("x")
    with pytest.raises(TypeError, match="tempreature"):
        engine.generate("x", tempreature=1.0)
