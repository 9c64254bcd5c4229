"""Perplexity and bits per byte by hand, with a scorer that knows the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from trueline.evals.perplexity import perplexity, windows
from trueline.records import Document, Row

START = 0


def encode(text: str) -> list[int]:
    """Bytes, shifted past the start token."""
    return [byte + 1 for byte in text.encode("utf-8")]


def uniform(rows: Sequence[Row]) -> list[np.ndarray]:
    """log(1/256) for every scored token."""
    return [np.array([-row.scored[0].sum() * math.log(256)]) for row in rows]


def test_a_uniform_model_needs_eight_bits_per_byte() -> None:
    found = perplexity(
        ["héllo world", Document(text="two words")], encode=encode, score=uniform, start_id=START, max_length=5
    )
    assert (found.documents, found.tokens, found.bytes, found.words) == (2, 21, 21, 4)
    assert found.bits_per_byte == pytest.approx(8) and found.perplexity == pytest.approx(256)
    assert found.word_perplexity == pytest.approx(math.exp(21 * math.log(256) / 4))
    assert found.bits_per_byte_interval.se == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "limit", "overlap"), [(1, 4, 1), (4, 4, 1), (5, 4, 1), (17, 4, 1), (17, 8, 4), (17, 5, 4)]
)
def test_every_token_is_scored_once_with_its_context(length: int, limit: int, overlap: int) -> None:
    ids = list(range(10, 10 + length))
    stream = [START, *ids]
    seen = []
    for row in windows(ids, START, limit, overlap=overlap):
        (x,), (scored,) = row.ids, row.scored
        assert len(x) <= limit and not scored[0]
        first = stream.index(int(x[0]))
        assert stream[first : first + len(x)] == x.tolist()
        context = int(np.argmax(scored))
        assert context == min(overlap, len(stream) - 1) or first == 0
        assert scored[context:].all()
        seen += x[scored].tolist()
    assert seen == ids


def test_sums_before_ratios() -> None:
    """A long easy and a short hard document: the ratio of sums, not the mean of ratios."""

    def score(rows: Sequence[Row]) -> list[np.ndarray]:
        return [
            np.array([-1.0 * row.scored[0].sum() if row.ids[0][1] == 98 else -3.0 * row.scored[0].sum()])
            for row in rows
        ]

    found = perplexity(["a" * 30, "zz"], encode=encode, score=score, start_id=START, max_length=64)
    assert found.nll == pytest.approx(36) and found.loss == pytest.approx(36 / 32)
    assert found.bits_per_byte == pytest.approx(36 / 32 / math.log(2))
    mean = found.bits_per_byte
    residual = np.array([30 / math.log(2) - mean * 30, 6 / math.log(2) - mean * 2])
    assert found.bits_per_byte_interval.se == pytest.approx(math.sqrt(2 * (residual**2).sum()) / 32)


def test_batches_do_not_matter() -> None:
    texts = ["some text", "", "more of it, and longer"]
    runs = [
        perplexity(texts, encode=encode, score=uniform, start_id=START, max_length=6, rows_per_call=size)
        for size in (1, 2, 99)
    ]
    assert runs[0] == runs[1] == runs[2] and runs[0].documents == 3


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no text"):
        perplexity(["", ""], encode=encode, score=uniform, start_id=START, max_length=8)
    with pytest.raises(ValueError, match="overlap must be"):
        windows([1], START, 4, overlap=4)

    def broken(rows: Sequence[Row]) -> list[np.ndarray]:
        return [np.array([np.nan]) for _ in rows]

    with pytest.raises(ValueError, match="document 0 has log-probability nan"):
        perplexity(["a"], encode=encode, score=broken, start_id=START, max_length=8)
