"""Fixed windows over a stream of documents, for pretraining.

    documents  [a a a E] [b b E] [c c c c E]          E: end of text, appended by `document_ids`
    stream     a a a E b b E c c c c E
    windows    a a a E b | b b E c c | c c c c E      context 5; neighbours share one token

The last token of a window is the first of the next, where it is context only: every token but the very first is a target
exactly once. Planning is numpy views over one flat array, so a memory-mapped corpus is never copied.

Left out: keeping documents of one window from attending to one another (give each document its own Row for that).
"""

from __future__ import annotations

from collections.abc import Iterable

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
