"""The tokens of one step: rows of logits to a token per line, each with its own noise, penalties.

    Line(running, place, row)      token number `place` of a response is drawn from row `row` of the logits
    draw_lines(...) -> tokens_B, logps_B, tops

Several lines may read one row (the n responses of a prompt), and a response may have several lines (drafts that are tried).
Legend: B lines, N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueline.serve.noise import uniforms
from trueline.serve.penalties import Tally
from trueline.serve.request import Running, TopLogps
from trueline.serve.sampling import Change, Knobs, draw, top_logps


class Line(NamedTuple):
    """Where one token is drawn."""

    running: Running
    place: int
    """Its number in the response."""
    row: int
    """Of the logits."""
    mask_W: np.ndarray | None = None
    """Bits of the tokens that a constraint allows here."""


class Drawn(NamedTuple):
    """One entry per line."""

    tokens: list[int]
    logps: list[float]
    tops: list[TopLogps]


class Drawer:
    """Draws; keeps the columns of the last batch's samplings, which seldom change."""

    def __init__(self) -> None:
        self._samplings: list[object] = []
        self._knobs: Knobs | None = None

    def draw(self, lines: Sequence[Line], logits_NV: Tensor) -> Drawn:
        """Overwrites the logits where every row has its own line."""
        rows = [line.row for line in lines]
        logits_BV = logits_NV if rows == list(range(len(logits_NV))) else logits_NV[torch.tensor(rows, device=logits_NV.device)]
        samplings = [line.running.request.sampling for line in lines]
        if self._knobs is None or samplings != self._samplings:
            self._samplings = list(samplings)
            self._knobs = Knobs.of(samplings, logits_BV.shape[1], logits_BV.device)
        counts = [line.running.request.options.top_logps for line in lines]
        tops: list[TopLogps] = [()] * len(lines)
        if any(counts):
            tops = top_logps(logits_BV, [sampling.temperature for sampling in samplings], counts)
        changes = [
            Change(number, _tally(line), line.mask_W)
            for number, line in enumerate(lines)
            if line.running.tally is not None or line.mask_W is not None
        ]
        keys_B = np.array([line.running.key for line in lines], dtype=np.uint64)
        places_B = np.array([line.place for line in lines])
        ids_B, logps_B = draw(logits_BV, self._knobs, uniforms(keys_B, places_B), changes)
        return Drawn(ids_B.tolist(), logps_B.tolist(), tops)


def _tally(line: Line) -> Tally | None:
    """What penalties will be once the drafts before this place are taken."""
    tally, ahead = line.running.tally, line.place - len(line.running.ids)
    return tally if tally is None or ahead == 0 else tally.after(line.running.draft[:ahead])
