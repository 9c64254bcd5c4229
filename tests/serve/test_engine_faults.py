"""What went wrong once, or would hurt most: weights that change without a word, steps that fail, requests that want too much."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model
from trueline.records import Sampling
from trueline.serve.engine import Engine
from trueline.serve.native.compiled import load
from trueline.serve.request import Options
from trueline.serve.runner import Runner
from trueline.serve.waiting import Full
from trueline.train.config import OptimConfig
from trueline.train.optim import adamw

pytestmark = pytest.mark.usefixtures("native")
Prompts = list[np.ndarray]
GREEDY = Sampling(max_new_tokens=6, temperature=0)


def agrees(engine: Engine, prompts: Prompts) -> float:
    """How far the engine's log-probs are from the training forward's."""
    engine.agreement = None
    engine.sample(prompts, GREEDY)
    assert engine.agreement is not None
    return engine.agreement.difference


@pytest.mark.parametrize("act", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_gates_of_any_size(act: str, loud: float, prompts: Prompts) -> None:
    """A gate of -200 gives 0, not what is left of an exponent that wrapped round."""
    config = DecoderConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, hidden_act=act,
    )  # fmt: skip
    model = new_model(config, seed=0).eval()
    lowest: list[float] = []
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.gate_proj.weight.normal_(std=loud)  # type: ignore[union-attr,operator]
            layer.mlp.gate_proj.register_forward_hook(lambda m, i, out: lowest.append(float(out.min())))  # type: ignore[union-attr]
    model.fused = False
    model.logits(torch.from_numpy(prompts[3]).long())
    model.fused = True
    assert loud == 1 or min(lowest) < -150
    assert agrees(Engine(model), prompts[:4]) < 1e-5


def test_a_step_of_our_own_optimizer_is_seen(model: Decoder, prompts: Prompts) -> None:
    """Its fused update says nothing to torch by itself; the prefix was known before."""
    model = copy.deepcopy(model).requires_grad_(True)
    engine = Engine(model)
    assert agrees(engine, prompts[3:4]) < 1e-5
    optimizer = adamw(model, OptimConfig(learning_rate=0.05))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert agrees(engine, prompts[3:4]) < 1e-5


@pytest.mark.parametrize("how", ["data", "fused"])
def test_changes_behind_torchs_back_are_seen(model: Decoder, prompts: Prompts, how: str) -> None:
    model = copy.deepcopy(model).requires_grad_(True)
    engine = Engine(model)
    assert agrees(engine, prompts[3:4]) < 1e-5
    if how == "data":
        for parameter in model.parameters():
            parameter.data.mul_(1.2)
    else:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(model.parameters(), lr=0.05, fused=True).step()
    assert agrees(engine, prompts[3:4]) < 1e-5
    engine.load(model, "again")
    engine.sample(prompts[3:4], GREEDY)
    hits = engine.statistics().hit_tokens
    engine.load(model, "and again")  # said: forget
    engine.sample(prompts[3:4], GREEDY)
    assert engine.statistics().hit_tokens == hits


def test_norms_of_half_precision_are_read_again(model: Decoder, prompts: Prompts) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    engine = Engine(half)
    engine.sample(prompts[3:4], GREEDY)
    with torch.no_grad():
        for parameter in half.parameters():
            if parameter.dim() == 1:
                parameter.mul_(1.5)
    (again,), (fresh,) = engine.sample(prompts[3:4], GREEDY)[0], Engine(half).sample(prompts[3:4], GREEDY)[0]
    np.testing.assert_array_equal(again.logps, fresh.logps)


def test_tensors_that_are_replaced_in_mid_work(model: Decoder, prompts: Prompts) -> None:
    """The old memory stays until the engine looks again."""
    model = copy.deepcopy(model)
    engine = Engine(model)
    engine.submit(prompts[0], Sampling(max_new_tokens=20))
    engine.step()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    while engine.busy:
        engine.step()
    assert agrees(engine, prompts[:2]) < 1e-5


def test_another_model_and_another_type(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(copy.deepcopy(model).to(torch.bfloat16))
    engine.sample(prompts, GREEDY)
    engine.load(model, "float32")
    assert agrees(engine, prompts) < 1e-5
    other = new_model(replace(model.config, num_hidden_layers=3, head_dim=8, max_position_embeddings=200), seed=1)
    engine.load(other, "another")
    assert agrees(engine, prompts) < 1e-5


def test_a_step_that_fails_leaves_a_clean_engine(model: Decoder, prompts: Prompts) -> None:
    """NaN weights for one step: the requests of the step end, and what they left in the cache is nobody's."""
    model = copy.deepcopy(model)
    engine = Engine(model)
    engine.submit(prompts[0], Sampling(max_new_tokens=5, n=3))
    with torch.no_grad():
        good = model.norm.weight.clone()
        model.norm.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            engine.step()
        model.norm.weight.copy_(good)
    assert [event.sample.finish_reason for event in engine.step() if event.sample] == ["cancelled"] * 3
    assert not engine.busy and engine.statistics().blocks_used == 0
    assert agrees(engine, prompts) < 1e-5


def test_memory_is_asked_for_before_it_is_promised(model: Decoder, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)
    engine.sample(prompts[:1], GREEDY)
    before = engine.statistics().blocks_total

    def refuse(self: Runner, num_blocks: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "grow", refuse)
        with pytest.raises(MemoryError):
            engine.submit(prompts[1], Sampling(max_new_tokens=60, n=8))
    assert engine.statistics().blocks_total == before and not engine.busy
    assert agrees(engine, prompts) < 1e-5


def test_the_cache_is_as_large_as_the_open_requests_need(model: Decoder, prompts: Prompts) -> None:
    """One long request that is cancelled makes the short ones after it no longer; a refused one takes nothing."""
    engine = Engine(model, max_waiting=10)
    engine.cancel(engine.submit(prompts[0], Sampling(max_new_tokens=90)))
    for _ in range(10):
        engine.submit([1, 2], Sampling(max_new_tokens=5))
    total = engine.statistics().blocks_total
    assert total <= 12
    with pytest.raises(Full):
        engine.submit([1, 2], Sampling(max_new_tokens=90))
    assert engine.statistics().blocks_total == total


def test_a_bounded_cache_keeps_prefixes_until_it_is_full(model: Decoder, prompts: Prompts) -> None:
    """Two prompts in turn: each is found again; of many, the latest."""
    engine = Engine(model, cache_tokens=160)
    long = [prompt for prompt in prompts if len(prompt) > 16][:2]
    for number in range(6):
        engine.sample([long[number % 2]], GREEDY)
    assert engine.statistics().hit_tokens == 4 * 16
    generator = np.random.default_rng(0)
    for _ in range(20):
        engine.sample([generator.integers(3, 300, 40)], GREEDY)
    assert engine.statistics().blocks_total <= 10


def test_a_cache_for_nobody_is_refused(model: Decoder) -> None:
    with pytest.raises(ValueError, match="cache_tokens is 5: a cache of fewer than 32 tokens holds no request"):
        Engine(model, cache_tokens=5)


def test_a_full_queue_within_sample(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model, max_waiting=2)
    with pytest.raises(Full):
        engine.sample(prompts, GREEDY)
    assert not engine.busy and len(engine.sample(prompts[:2], GREEDY)) == 2


def test_a_queued_beam_search_is_cancelled_as_a_whole(model: Decoder, prompts: Prompts) -> None:
    engine = Engine(model, max_batch=4)
    first, second = (engine.submit(prompts[i], Sampling(max_new_tokens=9, n=3), Options(beams=4)) for i in range(2))
    engine.step()
    assert engine.cancel(second)
    ends = [event for event in engine.step() if event.request == second]
    assert sorted(event.response for event in ends) == [0, 1, 2]
    engine.cancel(first)
    assert len(engine.step()) == 3 and not engine.busy


@pytest.mark.parametrize(
    "fields", [{"temperature": 1e-46}, {"logit_bias": ((3, 1e39),)}, {"repetition_penalty": 1e-40}, {"frequency_penalty": 1e30}]
)
def test_numbers_that_overflow_are_refused(model: Decoder, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Engine(model).submit([1], replace(Sampling(), **fields))  # type: ignore[arg-type]


def test_a_library_built_elsewhere_needs_no_compiler(native: bool) -> None:
    if not native or load().path is None:
        pytest.skip("torch's turn")
    code = "from trueline.serve.native.compiled import load; found = load(); print(found.path or found.reason)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "CXX": "no-g++"})
    assert found.stdout.strip().endswith(".so"), found
