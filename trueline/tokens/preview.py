"""A row as people should see it: its decoded text, cut where training starts and stops. No colours here: the caller prints."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from trueline.records import Row
from trueline.tokens.tokenizer import Tokenizer

Segments = list[tuple[str, bool]]
"""(text, scored) stretches; joined, the texts are the whole decoded sequence, control tokens included."""


def segments(ids: np.ndarray, scored: np.ndarray, tok: Tokenizer) -> Segments:
    """One sequence as stretches of scored and unscored text.

    Each stretch is what decoding adds when its ids are appended, because some decoders treat the first token differently.
    """
    borders = [0, *(np.flatnonzero(np.diff(scored)) + 1).tolist(), len(ids)] if len(ids) else [0]
    found: Segments = []
    shown = 0
    for start, stop in pairwise(borders):
        text = tok.decode(ids[:stop], skip_special=False)
        found.append((text[shown:], bool(scored[start])))
        shown = len(text)
    return found


def preview(row: Row, tok: Tokenizer) -> list[Segments]:
    """Every sequence of a row."""
    return [segments(ids, scored, tok) for ids, scored in zip(row.ids, row.scored, strict=True)]
