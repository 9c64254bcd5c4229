"""Drawing from logits against a plain reference, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueline.records import Sampling
from trueline.serve.noise import noise_key, uniforms
from trueline.serve.sampling import Knobs, draw, with_float64

V = 23


def kept_tokens(logits: np.ndarray, s: Sampling) -> list[int]:
    """Which tokens may be drawn: sorting and counting, one row at a time."""
    odds = np.exp((logits - logits.max()) / (s.temperature or 1.0))
    order = np.argsort(-odds)
    if s.top_k:
        order = order[: s.top_k]
    if s.top_p < 1:
        mass = np.cumsum(odds[order]) / odds[order].sum()
        order = order[: int(np.argmax(mass >= s.top_p)) + 1]
    return sorted(int(i) for i in order if odds[i] >= s.min_p)


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(top_k=1),
    Sampling(top_k=5, temperature=2.0),
    Sampling(top_k=999),
    Sampling(top_p=0.5),
    Sampling(top_p=0.95, temperature=1.5),
    Sampling(top_k=7, top_p=0.6),
    Sampling(min_p=0.2),
    Sampling(min_p=0.01, top_p=0.8, top_k=12),
    Sampling(top_p=1e-9),
    Sampling(min_p=1.0),
    Sampling(temperature=0),
]


def test_truncation_draws_exactly_the_kept_tokens() -> None:
    """All settings in one batch: each row's own rule holds. A grid of uniforms reaches every kept token."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(SETTINGS), V)).astype(np.float32) * 2
    drawn: list[set[int]] = [set() for _ in SETTINGS]
    knobs = Knobs.of(SETTINGS, V, torch.device("cpu"))
    for u in np.linspace(0, 1 - 2**-52, 2000):
        ids, _ = draw(torch.from_numpy(logits.copy()), knobs, np.full(len(SETTINGS), u))
        for row, token in enumerate(ids):
            drawn[row].add(int(token))
    for row, setting in enumerate(SETTINGS):
        expected = {int(logits[row].argmax())} if setting.temperature == 0 else set(kept_tokens(logits[row], setting))
        odds = np.exp(logits[row] / (setting.temperature or 1))
        reachable = {i for i in expected if odds[i] / sum(odds[j] for j in expected) > 1e-3}  # wider than the grid
        assert reachable <= drawn[row] <= expected, setting


def test_kept_tokens_keep_their_odds() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]]).repeat(40000, 1)
    knobs = Knobs.of([Sampling(top_k=3, temperature=2.0)] * 40000, 4, torch.device("cpu"))
    ids, _ = draw(logits, knobs, np.random.default_rng(0).random(40000))
    odds = np.exp(np.array([1.0, 0.0, 0.5]))
    assert np.abs(np.bincount(ids, minlength=4) / 40000 - [*odds / odds.sum(), 0][:4]).max() < 0.01


def test_logps_are_untruncated() -> None:
    logits = torch.randn(6, V, generator=torch.Generator().manual_seed(0)) * 3
    settings = [Sampling(top_k=2, temperature=0.5), Sampling(top_p=0.3), Sampling(temperature=0), *[Sampling()] * 3]
    ids, logps = draw(logits.clone(), Knobs.of(settings, V, torch.device("cpu")), np.linspace(0, 0.99, 6))
    scale = torch.tensor([0.5, 1, 1, 1, 1, 1])[:, None]
    expected = torch.log_softmax(logits / scale, -1).gather(1, torch.from_numpy(ids)[:, None])[:, 0]
    assert np.abs(logps - expected.numpy()).max() < 1e-6


def test_a_device_without_float64_leaves_the_draw_to_the_cpu() -> None:
    settings = [Sampling(top_p=0.5, min_p=0.1, temperature=2.0), Sampling(top_k=3), Sampling(temperature=0)]
    knobs = Knobs.of(settings, V, torch.device("mps"))
    columns = (knobs.temperature_B1, knobs.greedy_B, knobs.top_k_B, knobs.top_p_B, knobs.min_p_B)
    assert {column.device.type for column in columns if column is not None} == {"cpu"}
    assert with_float64(torch.device("mps", 0)).type == "cpu" and with_float64(torch.device("cuda", 1)).index == 1


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((3, 5), -torch.inf)
    logits[:, 2] = 0.0
    knobs = Knobs.of([Sampling()] * 3, 5, torch.device("cpu"))
    ids, logps = draw(logits, knobs, np.array([0.0, 0.5, 1 - 2**-52]))
    assert ids.tolist() == [2, 2, 2] and logps.tolist() == [0, 0, 0]


def test_noise_is_uniform_and_repeatable() -> None:
    keys = np.array([noise_key(seed, np.arange(4), 0, k) for seed in range(50) for k in range(4)], dtype=np.uint64)
    assert len(set(keys.tolist())) == 200
    grid = np.stack([uniforms(keys, np.full(200, step)) for step in range(100)])
    assert np.array_equal(grid[7], uniforms(keys, np.full(200, 7)))
    assert grid.min() >= 0 and grid.max() < 1
    sample = np.sort(grid.ravel())
    steps = np.arange(1, len(sample) + 1) / len(sample)
    assert np.abs(sample - steps).max() < 1.95 / np.sqrt(len(sample))  # Kolmogorov-Smirnov at 0.1%
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(grid[:, 0], grid[:, 1])[0, 1]) < 0.35


def test_noise_depends_on_everything_that_names_a_response() -> None:
    prompt = np.array([1, 2, 3], dtype=np.int32)
    base = noise_key(0, prompt, 0, 0)
    assert base == noise_key(0, prompt.astype(np.int64), 0, 0)
    others = [
        noise_key(1, prompt, 0, 0),
        noise_key(0, prompt[:2], 0, 0),
        noise_key(0, prompt, 1, 0),
        noise_key(0, prompt, 0, 1),
    ]
    assert len({base, *others}) == 5


@pytest.mark.slow
@pytest.mark.sample
def test_truncation_is_that_of_transformers() -> None:
    from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(1)) * 2
    for s in SETTINGS:
        if s.temperature == 0:
            continue
        theirs = logits / s.temperature
        if s.top_k:
            theirs = TopKLogitsWarper(min(s.top_k, V))(torch.zeros(1), theirs)
        theirs = TopPLogitsWarper(s.top_p)(torch.zeros(1), theirs) if s.top_p < 1 else theirs
        theirs = MinPLogitsWarper(s.min_p)(torch.zeros(1), theirs) if s.min_p else theirs
        for row in range(50):
            assert kept_tokens(logits[row].numpy(), s) == torch.isfinite(theirs[row]).nonzero()[:, 0].tolist(), s
