"""Packed and tree layouts against one sequence at a time, and the cached path against the training forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trueline.models.attention import Layout, _attend_generic, attend, common_prefix, tree_tokens
from trueline.models.decoder import Decoder
from trueline.records import Row


def one_by_one(model: Decoder, rows: list[Row], weights: Tensor) -> Tensor:
    """Log-probs of the scored tokens by the plainest route, gradients of their weighted sum left in the model."""
    model.zero_grad()
    parts = []
    for row in rows:
        for ids, scored in zip(row.ids, row.scored, strict=True):
            x = torch.from_numpy(ids).long()
            logps_LV = model.logits(x).log_softmax(-1)
            where = torch.from_numpy(np.flatnonzero(scored))
            parts.append(logps_LV[where - 1, x[where]])
    logps_N = torch.cat(parts)
    (logps_N * weights[: len(logps_N)]).sum().backward()
    return logps_N.detach()


def check(model: Decoder, rows: list[Row], layout: Layout) -> None:
    weights = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    expected_N = one_by_one(model, rows, weights)
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logps_N = model.token_logps(layout).logps_N
    (logps_N * weights[: len(logps_N)]).sum().backward()
    torch.testing.assert_close(logps_N.detach(), expected_N, atol=1e-5, rtol=0)
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5 * largest, rtol=0, msg=name)


def row_of(ids: list[np.ndarray], scored_from: int = 1) -> Row:
    return Row(ids=tuple(ids), scored=tuple(np.arange(len(x)) >= max(1, scored_from) for x in ids))


small_ids = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(lambda x: np.array(x, np.int32))
small_rows = st.lists(st.lists(small_ids, min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(small_rows, st.integers(0, 6))
def test_any_tree_equals_one_by_one(tiny: Any, drawn: list[list[np.ndarray]], scored_from: int) -> None:
    """Three token values, so prefixes, nested sharing, repeats and one sequence inside another all occur."""
    rows = [row_of(ids, scored_from) for ids in drawn]
    rows.append(row_of([np.array([1, 2, 3], np.int32)]))  # at least one token is scored
    layout = Layout.tree(rows)
    assert layout.num_tokens == sum(tree_tokens(row) for row in rows)
    check(tiny(), rows, layout)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
def test_packed_equals_one_by_one(tiny: Any, sequences: Any, heads: int, kv_heads: int) -> None:
    ids = sequences(3, [40, 7, 40, 1, 130, 41, 40, 33])
    row = row_of(ids)
    check(tiny(num_attention_heads=heads, num_key_value_heads=kv_heads), [row], Layout.packed(row.ids, row.scored))


@pytest.mark.parametrize("lengths", [(30, 50), (64, 64, 1, 0), (200, 3)])
def test_trees_of_real_shapes_equal_one_by_one(tiny: Any, sequences: Any, lengths: tuple[int, ...]) -> None:
    rows = []
    for seed, prompt in enumerate((90, 5, 90)):
        trunk, *branches = sequences(seed, [prompt, *lengths])
        rows.append(row_of([np.concatenate((trunk, b)) for b in branches], prompt - 2))
    layout = Layout.tree(rows)
    assert layout.num_tokens == 185 + 3 * sum(lengths)
    check(tiny(), rows, layout)


def test_public_attention_equals_kernels(sequences: Any) -> None:
    """The formulation that every device has, and the CPU's kernels: outputs and gradients."""
    trunk, *branches = sequences(4, [20, 7, 7, 12])
    layout = Layout.tree([row_of([np.concatenate((trunk, b)) for b in branches])])
    torch.manual_seed(0)
    results = []
    tensors = [torch.randn(layout.num_tokens, heads, 8, requires_grad=True) for heads in (6, 2, 2)]
    for function in (_attend_generic, attend):
        out = function(*tensors, layout)
        results.append((out, *torch.autograd.grad(out.sin().sum(), tensors)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_tree_bookkeeping_by_hand() -> None:
    """Prompt 5 6, responses 7 8 | 9 | nothing; scored from the prompt's second token on."""
    ids = [np.array(x, np.int32) for x in ([5, 6, 7, 8], [5, 6, 9], [5, 6])]
    layout = Layout.tree([row_of(ids), row_of([np.array([4, 4])])])
    assert layout.ids_T.tolist() == [5, 6, 7, 8, 9, 4, 4]
    assert layout.positions_T.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert layout.predicted_by_N.tolist() == [0, 1, 2, 0, 1, 0, 5]
    assert layout.targets_N.tolist() == [6, 7, 8, 6, 9, 6, 4]
    assert layout.sequence_of_N.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert layout.last_S.tolist() == [3, 4, 1, 6]
    assert common_prefix(ids) == 2 and common_prefix(ids[:1]) == 0


def test_layouts_refuse_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="first token"):
        Layout.packed([np.array([1, 2])], [np.array([True, True])])
    with pytest.raises(ValueError, match="empty"):
        Layout.packed([np.array([], np.int32)])


def test_activation_checkpointing_changes_nothing(tiny: Any, sequences: Any) -> None:
    row = row_of(sequences(5, [20, 31]))
    model = tiny()
    model.activation_checkpointing = True
    check(model, [row], Layout.packed(row.ids, row.scored))
    calls: list[int] = []
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model(Layout.packed(row.ids)).sum().backward()
    assert len(calls) == 2  # the second time in the backward pass


def test_modules_equal_fused(tiny: Any, sequences: Any) -> None:
    """The fused halves against autograd over the modules, blocks that do not divide the stream"""
    layout = Layout.packed(sequences(6, [500, 90]))
    for fields in ({}, {"qk_norm": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True}):
        model = tiny(**fields)
        grads = []
        for fused in (True, False):
            model.fused = fused
            model.zero_grad()
            model.token_logps(layout).logps_N.sum().backward()
            grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
        largest = max(float(g.abs().max()) for g in grads[1].values())
        for name, expected in grads[1].items():
            torch.testing.assert_close(grads[0][name], expected, atol=1e-5 * largest, rtol=0, msg=name)


def test_bf16_autocast_is_close(tiny: Any, sequences: Any) -> None:
    layout = Layout.packed(sequences(7, [30, 20]))
    model = tiny()
    exact_N = model.token_logps(layout).logps_N
    with torch.autocast("cpu", torch.bfloat16):
        rough_N = model.token_logps(layout).logps_N
    rough_N.sum().backward()
    assert rough_N.dtype == torch.float32 and model.embed_tokens.weight.grad.dtype == torch.float32
    assert 0 < float((rough_N - exact_N).detach().abs().max()) < 0.1


@torch.no_grad()
def test_cached_steps_equal_training_forward(tiny: Any, sequences: Any) -> None:
    """Prefill in two pieces, blocks shared and copied, single steps and chunks in one forward."""
    model = tiny()
    a, b = sequences(8, [30, 22])
    cache = model.new_cache(8, 8)
    table_a, table_b, shared = [5, 2, 7, 0], [1, 3, 4], [5, 2, 6]  # `shared` has a's first 16 tokens, and 4 more in a copy of block 7
    first = model(Layout.cached([a[:10], b[:16]], [table_a, table_b], [0, 0], 8), cache)
    second = model(Layout.cached([a[10:25], b[16:18]], [table_a, table_b], [10, 16], 8), cache)
    cache.copy([(7, 6)])
    whole_a, whole_b = model(Layout.packed([a])), model(Layout.packed([b]))
    close = lambda x, y: torch.testing.assert_close(x, y, atol=1e-5, rtol=0)  # noqa: E731
    close(first, torch.cat((whole_a[:10], whole_b[:16])))
    close(second, torch.cat((whole_a[10:25], whole_b[16:18])))
    for i in range(4):  # two steps, and a chunk between them
        ids = [b[18 + i : 19 + i], a[20 + i : 21 + i], a[25 + i : 27 + i]]
        layout = Layout.cached(ids, [table_b, shared, table_a], [18 + i, 20 + i, 25 + i], 8)
        close(model(layout, cache), torch.stack((whole_b[18 + i], whole_a[20 + i], *whole_a[25 + i : 27 + i])))
    with pytest.raises(ValueError, match="does not fit its 3 blocks"):
        Layout.cached([a[:1]], [table_b], [24], 8)


@torch.no_grad()
def test_cache_in_8_bits(tiny: Any, sequences: Any) -> None:
    """Every number is off by at most half a 127th of its head's largest; chunks of a prompt change nothing."""
    model = tiny()
    (a,) = sequences(8, [30])
    cache, again = (model.new_cache(4, 8, torch.int8) for _ in range(2))
    k_TGE = torch.randn(30, *cache.keys[0].shape[1:3])
    slots_T = torch.arange(30)
    cache.write(0, slots_T, k_TGE, k_TGE)
    read_BGLE, _ = cache.read(0, torch.arange(4)[None], torch.float32)
    apart_TGE = (read_BGLE[0].transpose(0, 1)[:30] - k_TGE).abs()
    assert bool((apart_TGE <= k_TGE.abs().amax(-1, keepdim=True) / 254 * 1.0001).all())
    whole = model(Layout.cached([a], [[0, 1, 2, 3]], [0], 8), cache)
    parts = [
        model(Layout.cached([a[i : i + n]], [[3, 1, 0, 2]], [i], 8), again) for i, n in ((0, 11), (11, 1), (12, 18))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-3, rtol=0)  # a number next to a border may fall to its other side
    exact = model(Layout.packed([a]))
    assert 1e-6 < float((whole - exact).abs().max()) < 0.1


def test_neftune(tiny: Any, sequences: Any) -> None:
    """Noise only while training, bounded by alpha / sqrt(L D), L each sequence's own; the same under recomputation."""
    model = tiny()
    short, long = sequences(10, [4, 100])
    layout = Layout.packed([short, long])
    clean = model(layout)
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model.neftune_alpha = 5.0
    torch.testing.assert_close(model.eval()(layout), clean, atol=0, rtol=0)
    model.train()
    torch.manual_seed(0)
    model(layout)
    noise = (seen[1] - seen[0]).abs()
    for part, length in ((noise[:4], 4), (noise[4:], 100)):
        assert 0.8 < float(part.max()) / (5 / (length * 32) ** 0.5) <= 1
    model.zero_grad()
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        torch.manual_seed(0)
        model.zero_grad()
        model(layout).square().sum().backward()
        gradients.append(model.embed_tokens.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)
