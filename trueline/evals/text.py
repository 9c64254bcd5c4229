"""Cheap signs that generated text goes wrong: length, diversity, repetition.

    lengths(texts)            mean, quantiles, share of empty ones
    distinct_n(texts, n)      different n-grams / all n-grams over the whole set (falls when a model says the same of everything)
    repetition_share(text)    share of a text's n-grams that occurred before in the same text (rises when it loops)
    text_report(texts)        all of it

Words are runs of letters, digits and underscores, lower-cased. Left out: anything that needs a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.evals.result import to_plain


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of texts in words."""

    n: int
    mean: float
    std: float
    median: float
    p05: float
    p95: float
    longest: int
    empty: float
    """Share of texts without a word."""
    characters: float
    """Mean number of characters."""


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """What a set of responses looks like from outside."""

    lengths: Lengths
    distinct_1: float
    distinct_2: float
    distinct_texts: float
    """Different texts / texts."""
    repetition: float
    """Mean share of repeated 3-grams within a text."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return to_plain(self)


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return re.findall(r"\w+", text.lower())


def lengths(texts: Sequence[str]) -> Lengths:
    """Length statistics in words."""
    if not texts:
        raise ValueError("length statistics need at least one text: nothing was generated")
    counts_N = np.array([len(words(text)) for text in texts])
    p05, median, p95 = np.quantile(counts_N, [0.05, 0.5, 0.95])
    return Lengths(
        n=len(texts), mean=float(counts_N.mean()), std=float(counts_N.std()), median=float(median), p05=float(p05),
        p95=float(p95), longest=int(counts_N.max()), empty=float((counts_N == 0).mean()),
        characters=float(np.mean([len(text) for text in texts])),
    )  # fmt: skip


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words / all n-grams, over the whole set (Li et al. 2016). It falls with the size of the set: compare
    sets of equal size. NaN when no text has n words."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition_share(text: str, n: int = 3) -> float:
    """Share of n-grams that occurred before in the same text; 0 for a text of fewer than n words."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def text_report(texts: Sequence[str]) -> TextReport:
    """Lengths, distinct-1, distinct-2, share of different texts and repetition."""
    return TextReport(
        lengths=lengths(texts), distinct_1=distinct_n(texts, 1), distinct_2=distinct_n(texts, 2),
        distinct_texts=len(set(texts)) / len(texts), repetition=float(np.mean([repetition_share(text) for text in texts])),
    )  # fmt: skip


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n-grams need n >= 1, got {n}")
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
