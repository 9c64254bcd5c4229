"""Fixed windows over a stream of documents, for pretraining.

    documents  [a a a E] [b b E] [c c c c E]          E: end of text, appended by `document_ids`
    stream     a a a E b b E c c c c E
    windows    a a a E b | b b E c c | c c c c E      context 5; neighbours share one token

The last token of a window is the first of the next, where it is context only: every token but the very first is a target
exactly once. Planning is numpy views over one flat array, so a memory-mapped corpus is never copied.

Left out: keeping documents of one window from attending to one another (give each document its own Row for that).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def flatten(documents: Iterable[np.ndarray], dtype: type[np.integer] = np.int32) -> np.ndarray:
    """One stream from the ids of many documents."""
    parts = [np.asarray(ids, dtype=dtype) for ids in documents]
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)


def windows(stream: np.ndarray, context: int) -> np.ndarray:
    """View [W, context] of a stream [T]; W = floor((T - 1) / (context - 1)). `leftover` gives what remains."""
    if context < 2:
        raise ValueError(f"context {context} is too short: a window needs at least 2 tokens.")
    stride = context - 1
    count = max(0, (len(stream) - 1) // stride)
    if count == 0:
        return np.empty((0, context), dtype=stream.dtype)
    return np.lib.stride_tricks.sliding_window_view(stream[: count * stride + 1], context)[::stride]


def leftover(stream: np.ndarray, context: int) -> np.ndarray:
    """The shorter last window that `windows` leaves out (empty when nothing remains to be predicted)."""
    stride = context - 1
    start = max(0, (len(stream) - 1) // stride) * stride
    return stream[start:] if len(stream) - start > 1 else stream[:0]


def fill_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: indices of sequences grouped so that each group has at most `capacity` tokens.

    For training on whole sequences with few, full microbatches. Deterministic. A sequence above the capacity is an error.
    """
    if len(lengths) and max(lengths) > capacity:
        worst = int(np.argmax(lengths))
        raise ValueError(f"sequence {worst} has {lengths[worst]} tokens, more than a batch holds ({capacity}).")
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    room = np.full(capacity + 1, 0, dtype=np.int64)  # room[r]: how many open bins have r tokens left
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]
    bins: list[list[int]] = []
    for index in order:
        need = int(lengths[index])
        fits = np.flatnonzero(room[need:])
        if len(fits):
            left = need + int(fits[0])
            chosen = open_bins[left].pop()
            room[left] -= 1
        else:
            left, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(int(index))
        open_bins[left - need].append(chosen)
        room[left - need] += 1
    return bins
