"""The engine against the training forward, and against itself in other company."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import trueline.serve.drawing as drawing_module
from trueline.models.adapters import attach, set_adapter, wrappers
from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.models.lora import LoRAConfig
from trueline.records import TEXT, Message, Sample, Sampling
from trueline.serve.engine import Engine
from trueline.serve.request import Event, Options
from trueline.serve.runner import Runner
from trueline.serve.waiting import Full
from trueline.tokens.tokenizer import Tokenizer

Prompts = list[np.ndarray]


pytestmark = pytest.mark.usefixtures("native")


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
        together = run(Engine(model, max_batch=max_batch, max_tokens_per_step=20), order)
        for i in everyone:
            for one, other in zip(alone[i], together[i], strict=True):
                assert np.array_equal(one.ids, other.ids)
                assert np.abs(one.logps - other.logps).max() < 1e-5


def test_logits_of_a_row_do_not_depend_on_the_batch(
    model: Decoder, prompts: Prompts, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In C++ not by one bit: alone, in a batch, in chunks of 7, from a cached prefix, in blocks of 4, after a preemption."""
    seen: list[torch.Tensor] = []
    draw = drawing_module.draw

    def spy(logits_BV: torch.Tensor, *rest: Any) -> Any:
        seen.append(logits_BV[:1].clone())
        return draw(logits_BV, *rest)

    monkeypatch.setattr(drawing_module, "draw", spy)
    sampling = Sampling(max_new_tokens=10)

    def logits(engine: Engine, others: Prompts = []) -> torch.Tensor:  # noqa: B006 - not changed
        seen.clear()
        engine.sample([prompts[3], *others], sampling)  # the longest prompt is the first row
        return torch.cat(seen[-10:] if not others else seen[:10])

    alone = logits(Engine(model))
    twice = Engine(model, max_tokens_per_step=64)
    logits(twice)
    compared = {
        "in a batch": logits(Engine(model), prompts[:3]),
        "in chunks": logits(Engine(model, max_batch=1, max_tokens_per_step=7)),
        "small blocks": logits(Engine(model, block_size=4)),
        "large blocks": logits(Engine(model, block_size=256)),
        "cached prefix": logits(twice),
    }
    assert twice.statistics().hit_tokens >= len(prompts[3]) // 16 * 16 > 0
    for name, other in compared.items():
        apart = float((alone - other).abs().max())
        assert apart == 0 if native else apart < 1e-5, name


@pytest.mark.parametrize("swap_tokens", [0, 4096])
def test_preemption_changes_nothing(model: Decoder, prompts: Prompts, swap_tokens: int) -> None:
    """A cache too small for all: responses lose their blocks, and get the same tokens."""
    sampling = Sampling(max_new_tokens=40, n=2, seed=3)
    roomy = Engine(model).sample(prompts, sampling)
    small = Engine(model, block_size=4, cache_tokens=160, swap_tokens=swap_tokens)
    for ours, theirs in zip(small.sample(prompts, sampling), roomy, strict=True):
        assert [s.ids.tolist() for s in ours] == [s.ids.tolist() for s in theirs]
        assert max(np.abs(a.logps - b.logps).max() for a, b in zip(ours, theirs, strict=True)) < 1e-5
    found = small.statistics()
    assert found.preemptions > 0 and found.blocks_used == 0 and found.blocks_total <= 40


def test_a_full_queue_takes_all_of_a_request_or_nothing(model: Decoder) -> None:
    """40 responses of 30 tokens in a cache of 128: several parts, which wait for one another; the second request does not fit."""
    engine = Engine(model, cache_tokens=128, max_waiting=12)
    sampling = Sampling(max_new_tokens=30, n=40)
    first = engine.submit([1, 2, 3], sampling)
    waiting = engine.statistics().waiting
    assert 6 < waiting <= 12
    with pytest.raises(Full, match="the queue is full"):
        engine.submit([1, 2, 3], sampling)
    assert engine.statistics().waiting == waiting
    ends = [event for event in drain(engine) if event.sample]
    assert len(ends) == 40 and {event.request for event in ends} == {first}


def test_batch_invariance_is_promised_or_refused(model: Decoder, native: bool) -> None:
    if native:
        assert Engine(model, batch_invariant=True).backend == "C++"
        return
    assert Engine(model).backend == "torch (this test wants torch)"
    with pytest.raises(ValueError, match="this model runs on torch: this test wants torch"):
        Engine(model, batch_invariant=True)


def test_a_request_larger_than_the_cache_is_refused(model: Decoder) -> None:
    engine = Engine(model, cache_tokens=64)
    with pytest.raises(ValueError, match="give the engine a larger cache"):
        engine.submit([1, 2, 3], Sampling(max_new_tokens=100))
    assert not engine.busy


def test_changed_weights_forget_what_was_computed(model: Decoder, prompts: Prompts) -> None:
    """Changed in place and without a word, as an optimizer does it."""
    model = copy.deepcopy(model)
    engine, sampling = Engine(model), Sampling(max_new_tokens=6, temperature=0)
    engine.sample(prompts[3:4], sampling)
    asked = engine.statistics().hit_tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    (again,) = engine.sample(prompts[3:4], sampling)[0]
    (fresh,) = Engine(model).sample(prompts[3:4], sampling)[0]
    assert engine.statistics().hit_tokens == asked and again.ids.tolist() == fresh.ids.tolist()
    assert np.abs(again.logps - fresh.logps).max() < 1e-6


@pytest.mark.parametrize("limit", [2048, 5])
def test_logps_of_the_prompt(model: Decoder, prompts: Prompts, limit: int) -> None:
    engine = Engine(model, max_batch=4, max_tokens_per_step=limit)
    engine.sample(prompts[3:4], Sampling(max_new_tokens=2))  # its prefix is known, and is computed again for its scores
    engine.submit(prompts[3], Sampling(max_new_tokens=2, n=3), Options(prompt_logps=True, top_logps=4))
    first, *events = drain(engine)
    assert first.token is None and first.prompt is not None and all(e.prompt is None for e in events)
    ids = torch.from_numpy(prompts[3]).long()
    expected_PV = model.logits(ids).detach().log_softmax(1)
    np.testing.assert_allclose(first.prompt.logps, expected_PV[:-1].gather(1, ids[1:, None])[:, 0], atol=1e-5)
    assert len(first.prompt.tops) == len(ids) - 1
    for row, top in zip(expected_PV, first.prompt.tops, strict=False):
        assert [token for token, _ in top] == row.topk(4).indices.tolist()
    for event in events:
        assert len(event.top) == 4 and event.top[0][1] >= event.logp
        assert dict(event.top).get(event.token, event.logp) == pytest.approx(event.logp, abs=1e-5)


def test_adapters_answer_side_by_side(model: Decoder, prompts: Prompts) -> None:
    """Each request gets what the model with its adapter alone would give, from one base."""
    model = copy.deepcopy(model)
    sampling = Sampling(max_new_tokens=8, temperature=0)
    base = Engine(model).sample(prompts[:2], sampling)
    for number, name in enumerate(("a", "b")):
        attach(model, LoRAConfig(r=4), name, seed=number)
        for wrapper in wrappers(model).values():
            torch.nn.init.normal_(wrapper.lora_B[name], std=0.5)
    alone = {"": base}
    for name in ("a", "b"):
        set_adapter(model, name)
        alone[name] = Engine(model).sample(prompts[:2], sampling)
    engine = Engine(model, adapters=("a", "b"))
    owner = {
        engine.submit(prompts[i], sampling, Options(adapter=name)): (name, i) for i in range(2) for name in ("", "a", "b")
    }
    found = {owner[e.request]: e.sample for e in drain(engine) if e.sample}
    for (name, i), sample in found.items():
        assert sample is not None and sample.ids.tolist() == alone[name][i][0].ids.tolist(), name
    assert len({tuple(sample.ids.tolist()) for (_, i), sample in found.items() if i == 0 and sample}) == 3
    for name in ("a", "", "b", "a"):  # from one idle engine: each finds its own prefix again
        hits = engine.statistics().hit_tokens
        request = engine.submit(prompts[1], sampling, Options(adapter=name))
        (again,) = [e.sample for e in drain(engine) if e.sample and e.request == request]
        assert again.ids.tolist() == alone[name][1][0].ids.tolist() and engine.statistics().hit_tokens > hits, name


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
    run = Runner.run
    monkeypatch.setattr(Runner, "run", lambda self, chunks: sizes.append(sum(len(c.ids) for c in chunks)) or run(self, chunks))
    Engine(model).sample(prompts[:4], Sampling(max_new_tokens=3, n=4))
    assert sizes == [sum(len(p) for p in prompts[:4]), 16, 16]


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
    sampling = Sampling(max_new_tokens=80, seed=5)
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
