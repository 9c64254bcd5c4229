"""Every family through every layout: packed, tree, cached, one by one; to disk and back; and what its files may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trueline.models.attention import Layout, Rule, _attend_generic, attend
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.families import FAMILIES
from trueline.models.families.weights import groups
from trueline.models.files import fingerprint, load_model, load_scalar_model, save_model
from trueline.records import Row, Sampling
from trueline.serve.engine import Engine


def row_of(ids: list[np.ndarray]) -> Row:
    return Row(ids=tuple(ids), scored=tuple(np.arange(len(x)) > 0 for x in ids))


def graded(model: Decoder, layout: Layout, weights_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs of the scored tokens, and all gradients of their weighted sum."""
    model.zero_grad()
    logps_N = model.token_logps(layout).logps_N
    (logps_N * weights_N[: len(logps_N)]).sum().backward()
    return logps_N.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_layouts_agree(family: str, decoder: Any, sequences: Any) -> None:
    """Packed = tree = one by one by the plainest route, to 1e-5; with the fused blocks and without; gradients too."""
    model = decoder(family)
    weights_N = torch.randn(500, generator=torch.Generator().manual_seed(0))
    rows = []
    for seed, prompt in enumerate((20, 4)):
        trunk, *branches = sequences(seed, [prompt, 15, 3, 15])
        rows.append(row_of([np.concatenate((trunk, b)) for b in branches]))
    plain = []
    for row in rows:
        for ids in row.ids:
            x = torch.from_numpy(ids).long()
            plain.append(model.logits(x).log_softmax(-1)[torch.arange(len(x) - 1), x[1:]])
    expected_N = torch.cat(plain)
    model.zero_grad()
    (expected_N * weights_N[: len(expected_N)]).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in expected.values())
    packed = Layout.packed([x for row in rows for x in row.ids])
    for layout, fused in ((packed, True), (Layout.tree(rows), True), (Layout.tree(rows), False)):
        model.fused = fused
        logps_N, grads = graded(model, layout, weights_N)
        torch.testing.assert_close(logps_N, expected_N.detach(), atol=1e-5, rtol=0)
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected[name], atol=1e-5 * largest, rtol=0, msg=name)


@torch.no_grad()
def test_cached_steps_equal_training_forward(family: str, decoder: Any, sequences: Any) -> None:
    """Prefill in two pieces, single steps at different lengths."""
    model = decoder(family)
    a, b = sequences(8, [30, 22])
    whole_a, whole_b = (model(Layout.packed([x])) for x in (a, b))
    cache, tables = model.new_cache(8, 8), [[3, 5, 1, 0], [7, 2, 6, 4]]
    close = lambda x, y: torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)  # noqa: E731
    close(model(Layout.cached([a[:10], b[:16]], tables, [0, 0], 8), cache), torch.cat((whole_a[:10], whole_b[:16])))
    close(
        model(Layout.cached([a[10:25], b[16:18]], tables, [10, 16], 8), cache), torch.cat((whole_a[10:25], whole_b[16:18]))
    )
    for i in range(4):
        step = Layout.cached([b[18 + i : 19 + i], a[25 + i : 26 + i]], tables[::-1], [18 + i, 25 + i], 8)
        close(model(step, cache), torch.stack((whole_b[18 + i], whole_a[25 + i])))


def test_sampled_logps_equal_trainers(decoder: Any, sequences: Any) -> None:
    """What the engine says it drew with is what training computes: caps, windows and scales included."""
    for variant in ("gemma2", "gemma3_window", "gpt2", "pythia", "granite"):
        model = decoder(variant)
        for [drawn] in Engine(model, stop_ids=()).sample(
            sequences(5, [9, 14]), Sampling(max_new_tokens=12, temperature=0.7)
        ):
            ids = np.concatenate((drawn.prompt_ids, drawn.ids))
            layout = Layout.packed([ids], [np.arange(len(ids)) >= len(drawn.prompt_ids)])
            with torch.no_grad():
                logps_N = model.token_logps(layout, temperature=0.7).logps_N
            torch.testing.assert_close(torch.from_numpy(drawn.logps), logps_N, atol=1e-5, rtol=0)


def test_disk_and_back(family: str, decoder: Any, sequences: Any, tmp_path: Path) -> None:
    """Bit for bit, also as a reward model; config included."""
    model = decoder(family)
    save_model(model, tmp_path / "lm", max_shard_bytes=20_000)
    again = load_model(tmp_path / "lm")
    assert again.config == model.config and fingerprint(again) == fingerprint(model)
    scalar = load_scalar_model(tmp_path / "lm", seed=3)
    save_model(scalar, tmp_path / "rm")
    layout = Layout.packed(sequences(4, [7, 12]))
    torch.testing.assert_close(load_scalar_model(tmp_path / "rm")(layout), scalar(layout), atol=0, rtol=0)
    assert scalar.decoder.config.logits_scaling == model.config.logits_scaling


def test_a_window_is_felt_to_the_token(decoder: Any, sequences: Any) -> None:
    """In two windowed layers of 7 tokens the last token sees 13 tokens, and not the 14th."""
    model = decoder("mistral_window")
    x = sequences(6, [30])[0]
    for back, same in ((13, True), (12, False)):
        y = x.copy()
        y[-1 - back] = (y[-1 - back] + 1) % 61
        with torch.no_grad():
            a, b = (model(Layout.packed([ids]))[-1] for ids in (x, y))
        assert torch.equal(a, b) == same


@pytest.mark.parametrize("window", [1, 2, 5, 16, 70, 600, 2000])
def test_windows_equal_a_mask(window: int, sequences: Any) -> None:
    """Kernels by pieces, and the formulation of every device, against one dense mask; outputs and gradients."""
    trunk, *branches = sequences(4, [90, 7, 7, 120, 40])
    layout = Layout.tree(
        [row_of([np.concatenate((trunk, b)) for b in branches]), row_of(sequences(5, [700 if window > 99 else 150]))]
    )
    torch.manual_seed(0)
    tensors = [torch.randn(layout.num_tokens, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    seen = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    for span in layout.spans:
        own = range(span.start, span.start + span.length)
        before = layout.spans[span.parent] if span.parent >= 0 else None
        path = [*(range(before.start, before.start + before.length) if before else ()), *own]
        for at, token in enumerate(path):
            if token in own:
                seen[token, path[max(0, at - window + 1) : at + 1]] = True
    for rule in (Rule(0.3, None, window), Rule(0.3, 1.5, window)):
        results = []
        outs = dense(*tensors, seen, rule), _attend_generic(*tensors, layout, rule), attend(*tensors, layout, rule=rule)
        for out in outs:
            results.append((out, *torch.autograd.grad(out.sin().sum(), tensors)))
        for ours in results[1:]:
            for a, b in zip(ours, results[0], strict=True):
                torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(b.detach().abs().max())), rtol=0)


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, rule: Rule) -> Tensor:
    products = torch.einsum("qhe,khe->hqk", q, k.repeat_interleave(2, 1)) * rule.scale
    if rule.cap is not None:
        products = rule.cap * (products / rule.cap).tanh()
    return torch.einsum("hqk,khe->qhe", products.masked_fill(~seen, -torch.inf).softmax(-1), v.repeat_interleave(2, 1))


def test_work_grows_with_the_window_not_the_span() -> None:
    layout = Layout.packed([np.zeros(20_000, np.int32)])
    keys = [p.query_length * p.key_length for p in layout.pieces_within(100)]
    assert sum(keys) < 20_000 * 300 and layout.pieces_within(20_000) is layout.pieces


@pytest.mark.parametrize("variant", ["gpt2", "pythia", "phi3", "stablelm_2_12b"])
def test_groups_are_permutations(variant: str, decoder: Any) -> None:
    """What a file joins comes apart into exactly the same numbers, and the wanted shapes allocate nothing."""
    model = decoder(variant)
    family = next(f for f in FAMILIES if f.model_type == model.config.model_type)
    state = model.state_dict()
    found = list(groups(family, {k: v.shape for k, v in state.items()}, model.config.num_attention_heads))
    assert sorted(name for group in found for name in group.ours) == sorted(state)
    assert any(len(group.ours) > 1 or len(group.stored) > 1 for group in found)
    for group in found:
        stored = group.join([state[name] for name in group.ours])
        assert group.shapes() == {name: x.shape for name, x in zip(group.stored, stored, strict=True)}
        for name, back in zip(group.ours, group.split(stored), strict=True):
            assert torch.equal(back, state[name])


def test_names_of_older_files(decoder: Any, tmp_path: Path) -> None:
    """GPT-2 without its prefix and with masks; Pythia with embed_out and rotary tables."""
    for variant, change in (
        ("gpt2", lambda k: k.removeprefix("transformer.")),
        ("pythia", lambda k: k.replace("lm_head", "embed_out")),
    ):
        model = decoder(variant)
        path = save_model(model, tmp_path / variant) / "model.safetensors"
        tensors = {change(k): v for k, v in load_file(path).items()}
        mask = {"gpt2": "h.0.attn.bias", "pythia": "gpt_neox.layers.0.attention.bias"}[variant]
        save_file({**tensors, mask: torch.ones(1, 1, 4, 4, dtype=torch.bool)}, path)
        assert fingerprint(load_model(tmp_path / variant)) == fingerprint(model)


def test_positions_that_end(decoder: Any, sequences: Any) -> None:
    for variant in ("gpt2", "phi3_longrope"):
        model = decoder(variant)
        model(Layout.packed(sequences(9, [64])))
        with pytest.raises(ValueError, match="65 tokens exceeds the 64 positions"):
            model(Layout.packed(sequences(9, [65])))


@pytest.mark.parametrize(
    "raw, says",
    [
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForConditionalGeneration cannot be computed"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor below 1"),
        ({"model_type": "stablelm", "partial_rotary_factor": 0.4}, "3 numbers of a head"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 2}, "'chunked_attention' cannot be computed"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "has 1 entries for 2 layers"),
        ({"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0]}}, "should be 4 numbers"),
        ({"model_type": "llama", "hidden_size": "32"}, "hidden_size = '32' should be a whole number"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers = 0 should be"),
        ({"model_type": "llama", "rms_norm_eps": True}, "rms_norm_eps = True should be a number"),
        ({"model_type": "mistral", "sliding_window": -1}, "sliding_window = -1 should be"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": "x"}, "a key of gemma2 cannot be read"),
        ({"model_type": "llama", "rope_parameters": [1]}, "rope_parameters should be an object"),
        ({"model_type": "llama", "eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
    ],
)
def test_configs_that_are_refused(raw: dict[str, Any], says: str, small: dict[str, Any]) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4} if raw.get("model_type") == "gpt2" else {}
    with pytest.raises(ValueError, match=says):
        DecoderConfig.from_hf({**small, **sizes, **raw})


def test_more_layers_than_tensors(decoder: Any, tmp_path: Path) -> None:
    """Refused before a module per layer is made."""
    path = save_model(decoder("llama2"), tmp_path) / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 2000000000'))
    with pytest.raises(ValueError, match="num_hidden_layers = 2,000,000,000, and the weights are 21 tensors"):
        load_model(tmp_path)


def test_wanted_positions_only(family: str, decoder: Any, sequences: Any) -> None:
    """What the last layer leaves out changes nothing of the rest: outputs and gradients, repeats included, recomputed or not."""
    model, layout = decoder(family), Layout.packed(sequences(6, [9, 14]))
    wanted_N = torch.tensor([3, 0, 22, 3, 17])
    upstream_ND = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    found = []
    for asked, recompute in ((False, False), (True, False), (True, True)):
        model.zero_grad()
        model.activation_checkpointing = recompute
        hidden_ND = model(layout, wanted_N=wanted_N) if asked else model(layout)[wanted_N]
        (hidden_ND * upstream_ND).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((hidden_ND.detach(), grads))
    for hidden_ND, grads in found[1:]:
        torch.testing.assert_close(hidden_ND, found[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(grads, found[0][1], atol=1e-5 * float(found[0][1].abs().max()), rtol=0)


def test_scalar_models_are_of_the_hidden_state(decoder: Any, sequences: Any) -> None:
    """Granite's divisor is for logits: a score does not shrink with it."""
    model = decoder("granite")
    scalar = ScalarModel(model)
    layout = Layout.packed(sequences(4, [7]))
    expected = scalar.score(model(layout)[layout.last_S] * 8.0).squeeze(1)
    torch.testing.assert_close(scalar(layout), expected, atol=1e-6, rtol=0)
