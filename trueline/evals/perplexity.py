"""Perplexity and bits per byte of documents.

    text --encode--> ids --windows--> Rows, every text token scored exactly once --score--> sums --> Perplexity

The first window starts with `start_id` (the token that separates documents: BOS or EOS), later ones with `overlap` tokens of
the text before, as context only. So the start token is never scored, no end token is appended, and bits per byte divide the
log-probability of exactly the text by exactly its bytes. Sums are added up first and divided once (not a mean of documents'
perplexities).
Left out: the model. `score` is a Scorer's method (`PolicyScorer.score`): for each Row the summed log-probs of its scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from trueline.evals.result import Interval, to_plain
from trueline.records import Document, Row

Score = Callable[[Sequence[Row]], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well a model predicts documents. Every ratio is sum over sum."""

    documents: int
    tokens: int
    """Text tokens, all of them scored."""
    bytes: int
    """UTF-8 bytes of the text."""
    words: int
    """Pieces between white space."""
    nll: float
    """Summed negative log-probability, in nats."""
    loss: float
    """nll per token, in nats."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    bits_per_byte_interval: Interval
    """Standard error and interval over documents (linearised ratio)."""
    word_perplexity: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def windows(ids: Sequence[int] | np.ndarray, start_id: int, max_length: int, *, overlap: int = 1) -> list[Row]:
    """Rows of at most max_length tokens in which every token of `ids` is scored once.

    Window 0 is [start_id, ids...]; each later one repeats the `overlap` tokens before it as context.
    """
    if not 1 <= overlap < max_length:
        raise ValueError(
            f"overlap must be at least 1 and below max_length, got overlap={overlap}, max_length={max_length}"
        )
    stream = np.concatenate([[start_id], np.asarray(ids, dtype=np.int32)]).astype(np.int32)
    rows = []
    first = 1  # the next token to score
    while first < len(stream):
        begin = max(0, first - overlap)
        end = min(len(stream), begin + max_length)
        scored = np.arange(begin, end) >= first
        rows.append(Row(ids=(stream[begin:end],), scored=(scored,)))
        first = end
    return rows


def perplexity(
    documents: Iterable[Document | str],
    *,
    encode: Callable[[str], Sequence[int]],
    score: Score,
    start_id: int,
    max_length: int,
    overlap: int = 1,
    rows_per_call: int = 256,
) -> Perplexity:
    """Loss, perplexity and bits per byte of `documents` under `score`. Empty documents are counted and cost nothing.

    `encode` must add no special tokens. `overlap` tokens of context are given to each window but the first: 1 is the common
    rolling rule, half of max_length is the strided one (lower, dearer).
    """
    counts: list[tuple[int, int, int]] = []  # tokens, bytes, words per document
    nlls: list[float] = []

    def rows_of(texts: Iterable[Document | str]) -> Iterator[tuple[int, Row]]:
        for number, document in enumerate(texts):
            text = document if isinstance(document, str) else document.text
            ids = encode(text)
            counts.append((len(ids), len(text.encode("utf-8")), len(text.split())))
            nlls.append(0.0)
            for row in windows(ids, start_id, max_length, overlap=overlap):
                yield number, row

    pending = rows_of(documents)
    while chunk := list(islice(pending, rows_per_call)):
        for (number, _), sums_K in zip(chunk, score([row for _, row in chunk]), strict=True):
            nlls[number] -= float(sums_K[0])
    if not nlls or not any(tokens for tokens, _, _ in counts):
        raise ValueError("perplexity was given no text: pass at least one document that is not empty")
    if not np.isfinite(nlls).all():
        bad = int(np.flatnonzero(~np.isfinite(nlls))[0])
        raise ValueError(
            f"document {bad} has log-probability {-nlls[bad]}: the model gives NaN or zero probability on it"
        )
    return _summary(np.array(nlls), np.array(counts, dtype=np.float64))


def _summary(nll_D: np.ndarray, counts_D3: np.ndarray) -> Perplexity:
    tokens, size, words = (int(total) for total in counts_D3.sum(axis=0))
    nll = float(nll_D.sum())
    loss = nll / tokens
    bpb = nll / (size * math.log(2))
    D = len(nll_D)
    # variance of a ratio of sums: residuals nll_d - ratio * bytes_d, clustered by document
    residual_D = nll_D / math.log(2) - bpb * counts_D3[:, 1]
    se = math.sqrt(D / (D - 1) * float((residual_D**2).sum())) / size if D > 1 else math.nan
    interval = Interval(estimate=bpb, low=bpb - 1.96 * se, high=bpb + 1.96 * se, se=se, n=D, method="normal")
    return Perplexity(
        documents=D, tokens=tokens, bytes=size, words=words, nll=nll, loss=loss, perplexity=_exp(loss),
        bits_per_byte=bpb, bits_per_byte_interval=interval, word_perplexity=_exp(nll / words) if words else math.nan,
    )  # fmt: skip


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
