"""What a run is said to need: the count is that of real tensors, and what is advised is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import save_model
from trueline.objectives.dpo import DPO
from trueline.objectives.reward import Reward
from trueline.objectives.sft import SFT
from trueline.records import Row
from trueline.train import meter
from trueline.train.api import resolve
from trueline.train.footprint import Sketch, footprint, largest, sketch_of
from trueline.train.forecast import MEGABYTE, UNSEEN, forecast

RUNS: list[tuple[SFT | DPO | Reward, dict[str, int]]] = [
    (SFT(), {}),
    (SFT(), {"gradient_checkpointing": True}),
    (DPO(), {"max_tokens_per_batch": 60}),
    (DPO(), {"lora_r": 2}),
    (Reward(), {"lora_r": 2, "gradient_checkpointing": True}),
]


@contextmanager
def real() -> Iterator[meter.Meter]:
    """In the place of `weightless`: the same count of tensors that are there."""
    with meter.Meter() as found:
        yield found


def test_the_meter_counts_storages_while_they_live() -> None:
    with meter.Meter() as found:
        a = torch.zeros(1000)
        b = a.view(10, 100)
        assert found.live == 4000
        c = b + 1
        del a, b
        assert found.live == 4000
        c.add_(1)
    assert (found.peak, found.live, float(c.sum())) == (8000, 4000, 2000.0)
    del c
    assert found.live == 0


def test_weightless_tensors_take_no_memory() -> None:
    with meter.weightless() as found:
        a = torch.zeros(1 << 40, dtype=torch.uint8)
        assert bool((a[:10] == a[0]).all())
        assert found.peak > 1 << 40


@pytest.mark.parametrize(("objective", "settings"), RUNS, ids=[f"{one.verb} {' '.join(settings)}" for one, settings in RUNS])
def test_counted_is_real(
    objective: SFT | DPO | Reward, settings: dict[str, int], decoder: Callable[..., Decoder],
    text_rows: Callable[..., list[Row]], pair_rows: Callable[..., list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every phase of a run, to the byte, without memory and with it."""
    save_model(decoder(), tmp_path)
    rows = text_rows(6) if objective.verb == "sft" else pair_rows(6)
    job = resolve(objective, tmp_path, rows, None, None, None, {"learning_rate": 0.0, **settings}, None)
    sketch, fullest = sketch_of(job, tmp_path), largest(job)
    counted = footprint(job, sketch, fullest.rows)
    monkeypatch.setattr(meter, "weightless", real)
    assert footprint(job, sketch, fullest.rows) == counted
    parameters = sum(p.numel() for p in decoder().parameters())
    assert counted.training > counted.weights + counted.moments > counted.weights >= 4 * parameters
    assert (counted.moments > 8 * parameters) == (not settings.get("lora_r"))
    assert (counted.reference > counted.weights) == (objective.verb == "dpo")


def test_caps_windows_and_other_norms_are_counted(text_rows: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    shape = DecoderConfig(
        model_type="gemma2", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, norm="rmsnorm_zero_centred", post_norms=True, hidden_act="gelu_pytorch_tanh",
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=8, tie_word_embeddings=True,
    )  # fmt: skip
    job = resolve(SFT(), Decoder(shape), text_rows(6), None, None, None, {}, None)
    counted = footprint(job, Sketch(shape, "tokens", None), job.rows)
    monkeypatch.setattr(meter, "weightless", real)
    assert footprint(job, Sketch(shape, "tokens", None), job.rows) == counted


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model whose activations outweigh it."""
    shape = DecoderConfig(
        vocab_size=64, hidden_size=64, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return save_model(Decoder(shape), tmp_path / "wide")


@pytest.mark.slow
@pytest.mark.sample
def test_what_is_advised_is_enough(wide: Path, text_rows: Callable[..., list[Row]]) -> None:
    """Each change, made, fits by a count of its own; the run as it is does not."""
    rows = text_rows(64)
    options = {"per_device_train_batch_size": 32, "max_steps": 2, "max_length": 64}
    whole = forecast(SFT(), wide, rows, limit=1 << 40, start=0, **options)
    assert whole.fits and not whole.ways and whole.seconds is None
    least = forecast(SFT(), wide, rows, limit=1 << 40, start=0, **options | {"max_tokens_per_batch": 32})
    limit = (whole.peak + least.peak) // 2
    found = forecast(SFT(), wide, rows, limit=limit, start=0, **options)
    assert not found.fits
    names = [tuple(way.settings) for way in found.ways]
    assert names[:2] == [("max_tokens_per_batch",), ("per_device_train_batch_size", "gradient_accumulation_steps")]
    assert any("gradient_checkpointing" in settings for settings in names) and any("lora_r" in settings for settings in names)
    for way in found.ways:
        again = forecast(SFT(), wide, rows, limit=limit, start=0, **options | way.settings)
        assert again.fits and again.peak == way.peak and str(way).startswith(f"{next(iter(way.settings))} = ")
    assert found.advice().startswith("use max_tokens_per_batch = ")


@pytest.mark.slow
@pytest.mark.sample
def test_max_length_only_where_nothing_else_is_enough(wide: Path, text_rows: Callable[..., list[Row]]) -> None:
    rows = [replace(row, ids=(row.ids[0].repeat(8),), scored=(row.scored[0].repeat(8),)) for row in text_rows(4)]
    options = {"per_device_train_batch_size": 1, "max_steps": 2, "max_length": 256, "lora_r": 2, "gradient_checkpointing": True}
    whole = forecast(SFT(), wide, rows, limit=1 << 40, start=0, **options)
    found = forecast(SFT(), wide, rows, limit=whole.peak - 64_000, start=0, **options)
    assert [next(iter(way.settings)) for way in found.ways] == ["max_length"]
    none = forecast(SFT(), wide, rows, limit=UNSEEN, start=0, **options)
    assert not none.ways and "take a smaller model" in none.advice() and f"{none.floor / MEGABYTE:,.0f} MB" in none.advice()


def test_the_parts_add_up(wide: Path, text_rows: Callable[..., list[Row]]) -> None:
    found = forecast(SFT(), wide, text_rows(8), max_steps=1, start=MEGABYTE)
    assert found.peak == sum(found.parts.values()) and next(iter(found.parts.values())) == UNSEEN + MEGABYTE
    assert f"{found.peak / MEGABYTE:,.0f} MB  at the peak" in str(found)


def test_a_probe_finds_a_speed(wide: Path, text_rows: Callable[..., list[Row]]) -> None:
    """Time grows with the steps: everything else is the same."""
    short, long = (forecast(SFT(), wide, text_rows(8), max_steps=steps) for steps in (1, 100))
    assert short.seconds is not None and long.seconds is not None
    assert 5 < long.seconds / short.seconds < 2000
