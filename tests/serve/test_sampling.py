"""Drawing from logits against a plain reference, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueline.records import Sampling
from trueline.serve.noise import noise_key, uniforms
from trueline.serve.penalties import Tally
from trueline.serve.sampling import Change, Knobs, draw, top_logps, with_float64

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


CPU = torch.device("cpu")
WIDE = 9001
"""More than one level of search, and no multiple of its blocks."""


def test_two_levels_find_what_one_running_sum_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, WIDE, generator=generator) * torch.linspace(0, 8, 400)[:, None]
    logits[::7, 100:3000] = -torch.inf
    uniform = np.random.default_rng(0).random(400)
    uniform[:2] = 0, 1 - 2**-52
    ids, _ = draw(logits.clone(), Knobs.of([Sampling()] * 400, WIDE, CPU), uniform)
    sums = torch.softmax(logits, 1).double().cumsum(1)
    expected = torch.searchsorted(sums, (torch.from_numpy(uniform) * sums[:, -1])[:, None], right=True)[:, 0]
    assert np.array_equal(ids, expected.numpy())
    assert torch.isfinite(logits[torch.arange(400), torch.from_numpy(ids)]).all()


def test_wide_nuclei_are_sorted_as_far_as_they_need() -> None:
    """Rows that need few, many and nearly all tokens, with and without top-k, in one batch."""
    settings = [Sampling(top_p=p, top_k=k) for p in (0.3, 0.9, 0.999) for k in (0, 40, 3000)] + [
        Sampling(),
        Sampling(min_p=0.1),
    ]
    rng = np.random.default_rng(1)
    for scale in (0.1, 2.0, 6.0):
        logits = (rng.normal(size=(len(settings), WIDE)) * scale).astype(np.float32)
        knobs = Knobs.of(settings, WIDE, CPU)
        for u in (0.0, 0.5, 0.97, 1 - 2**-52):
            ids, _ = draw(torch.from_numpy(logits.copy()), knobs, np.full(len(settings), u))
            for row, setting in enumerate(settings):
                kept = kept_tokens(logits[row].astype(np.float64), setting)
                odds = np.exp(logits[row, kept].astype(np.float64))
                sums = np.cumsum(odds) / odds.sum()
                place = kept.index(int(ids[row])) if int(ids[row]) in kept else -1
                # the last token that is kept may be one more or less where sums of 1e-7 decide
                assert sums[place - 1] * (place > 0) - 1e-4 <= u <= sums[place] + 1e-4, (setting, u)


def test_a_row_does_not_depend_on_the_batch() -> None:
    settings = [
        Sampling(), Sampling(temperature=0), Sampling(temperature=0.7, top_p=0.9), Sampling(top_k=20), Sampling(top_p=0.99),
        Sampling(min_p=0.02, top_p=0.5, top_k=7), Sampling(repetition_penalty=1.3), Sampling(temperature=2, logit_bias=((4, 3.0),)),
    ]  # fmt: skip
    rng = np.random.default_rng(2)
    logits = torch.from_numpy((rng.normal(size=(len(settings), WIDE)) * 3).astype(np.float32))
    uniform = rng.random(len(settings))
    tallies = [Tally.of(s, np.array([3, 4, 5])) for s in settings]
    mask = np.packbits(rng.random(8000) < 0.5, bitorder="little")  # nothing beyond it is allowed
    changes = [
        Change(row, tally, mask if row % 2 else None) for row, tally in enumerate(tallies) if tally or row % 3 == 0
    ]
    ids, logps = draw(logits.clone(), Knobs.of(settings, WIDE, CPU), uniform, changes)
    draw(changed := logits.clone(), Knobs.of([Sampling()] * len(settings), WIDE, CPU), uniform, [Change(0, None, mask)])
    assert torch.isfinite(changed[1:]).all() and not torch.isfinite(changed[0, 8000:]).any()
    for row, setting in enumerate(settings):
        own = [change._replace(row=0) for change in changes if change.row == row]
        alone = draw(logits[row : row + 1].clone(), Knobs.of([setting], WIDE, CPU), uniform[row : row + 1], own)
        assert (alone[0][0], alone[1][0]) == (ids[row], logps[row])


def shifted(logits: np.ndarray, s: Sampling, prompt: list[int], ids: list[int]) -> np.ndarray:
    """Bias, penalties, token by token: the rule, written as it is said."""
    out = logits.astype(np.float64).copy()
    for token, bias in s.logit_bias:
        out[token] += bias
    for token in set(prompt) | set(ids):
        out[token] = out[token] * s.repetition_penalty if out[token] < 0 else out[token] / s.repetition_penalty
    for token in set(ids):
        out[token] -= s.presence_penalty + s.frequency_penalty * ids.count(token)
    return out


SHIFTS = [
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6, temperature=0.5),
    Sampling(presence_penalty=1.5),
    Sampling(frequency_penalty=-0.8),
    Sampling(logit_bias=((2, 4.0), (7, -100.0))),
    Sampling(
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias=((2, 1.0), (5, -2.0)),
        temperature=2.0,
    ),
    Sampling(presence_penalty=50.0, temperature=0),
]


def test_penalties_change_the_draw_and_not_the_log_probs() -> None:
    rng = np.random.default_rng(3)
    prompt, ids = [2, 3, 3, 9], [5, 2, 5, 11, 5]
    settings = [Sampling(), *SHIFTS]
    logits = rng.normal(size=(len(settings), V)).astype(np.float32)
    tallies = [Tally.of(s, np.array(prompt), ids) for s in settings]
    assert tallies[0] is None
    changes = [Change(row, tally) for row, tally in enumerate(tallies) if tally is not None]
    knobs = Knobs.of(settings, V, CPU)
    for u in np.linspace(0, 0.999, 40):
        drawn, logps = draw(torch.from_numpy(logits.copy()), knobs, np.full(len(settings), u), changes)
        for row, s in enumerate(settings):
            heat = s.temperature or 1.0
            odds = np.exp(shifted(logits[row], s, prompt, ids) / heat)
            expected = int(odds.argmax()) if s.temperature == 0 else int(np.argmax(odds.cumsum() > u * odds.sum()))
            assert drawn[row] == expected, (s, u)
            own = torch.log_softmax(torch.from_numpy(logits[row]) / heat, 0)[expected]
            assert abs(logps[row] - own) < 1e-6


def test_a_tally_grows_with_the_response() -> None:
    rng = np.random.default_rng(4)
    s = Sampling(repetition_penalty=1.3, presence_penalty=0.25, frequency_penalty=0.5, logit_bias=((1, 2.0),))
    prompt, ids = rng.integers(0, 50, 12), rng.integers(0, 400, 300).tolist()
    tally = Tally.of(s, prompt)
    assert tally is not None
    for token in ids[:200]:
        tally.accept(token)
    ahead = tally.after(ids[200:])
    for grown, held in ((ahead, ids), (tally, ids[:200])):  # looking ahead changes nothing
        fresh = Tally.of(s, prompt, held)
        assert fresh is not None and set(grown.ids_K.tolist()) == {1, *prompt.tolist(), *held}
        assert np.array_equal(grown.ids_K, fresh.ids_K) and np.array_equal(grown.numbers_3K, fresh.numbers_3K)
    counts = dict(zip(ahead.ids_K.tolist(), ahead.numbers_3K[2].tolist(), strict=True))
    often = max(ids, key=ids.count)
    assert ids.count(often) > 1 and counts[often] == pytest.approx(0.25 + 0.5 * ids.count(often))


def test_a_mask_leaves_what_it_allows() -> None:
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(5))
    allowed = np.zeros(24, dtype=bool)
    allowed[[3, 20]] = True
    mask = np.packbits(allowed, bitorder="little")[: -(-21 // 8)]
    first = np.array([255, 0, 0], dtype=np.uint8)
    knobs = Knobs.of([Sampling()] * 3, V, CPU)
    drawn = {row: set() for row in range(3)}  # type: dict[int, set[int]]
    for u in np.linspace(0, 0.999, 200):
        ids, logps = draw(logits.clone(), knobs, np.full(3, u), [Change(1, None, mask), Change(2, None, mask & first)])
        for row in range(3):
            drawn[row].add(int(ids[row]))
        assert logps == pytest.approx(torch.log_softmax(logits, 1)[[0, 1, 2], ids].numpy(), abs=1e-6)
    assert len(drawn[0]) > 10 and drawn[1] == {3, 20} and drawn[2] == {3}


def test_top_logps_are_those_of_the_own_logits() -> None:
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(6))
    found = top_logps(logits, [1.0, 0.0, 0.5, 1.0], [2, 3, 1, 0])
    assert [len(top) for top in found] == [2, 3, 1, 0]
    for row, heat in ((0, 1.0), (1, 1.0), (2, 0.5)):
        expected = torch.log_softmax(logits[row] / heat, 0)
        order = expected.argsort(descending=True)
        for (token, logp), place in zip(found[row], order, strict=False):
            assert token == place and abs(logp - expected[place]) < 1e-6
    assert top_logps(logits, [1.0] * 4, [0] * 4) == [()] * 4 and len(top_logps(logits, [1.0] * 4, [99] * 4)[0]) == V


@pytest.mark.slow
@pytest.mark.sample
def test_penalties_are_those_of_transformers() -> None:
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

    rng = np.random.default_rng(7)
    for penalty in (0.5, 1.0, 1.3):
        for bias in ((), ((3, 2.5), (8, -4.0))):
            s = Sampling(repetition_penalty=penalty, logit_bias=bias, temperature=0)
            prompt, ids = rng.integers(0, V, 6), rng.integers(0, V, 4).tolist()
            logits = torch.from_numpy(rng.normal(size=(30, V)).astype(np.float32))
            held = torch.tensor([[*prompt.tolist(), *ids]]).repeat(30, 1)
            theirs = (
                SequenceBiasLogitsProcessor({(t,): b for t, b in bias})(held, logits.clone())
                if bias
                else logits.clone()
            )
            theirs = RepetitionPenaltyLogitsProcessor(penalty)(held, theirs)
            tally = Tally.of(s, prompt, ids)
            changes = [Change(row, tally) for row in range(30)] if tally else []
            drawn, _ = draw(ours := logits.clone(), Knobs.of([s] * 30, V, CPU), np.zeros(30), changes)
            assert torch.equal(ours, theirs) and np.array_equal(drawn, theirs.argmax(1).numpy())


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
