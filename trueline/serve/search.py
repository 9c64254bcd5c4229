"""Beam searches of running requests: rows of logits to moves of beams, whose caches share all blocks that they have in common.

    take(running, logits_V) -> events      when the last beam's row is there, all beams move; the events are the final hypotheses

A beam that goes on in several ways is forked, one that does not is ended; the first way keeps its place. Legend: V vocabulary.
Left out: which beams go on (beams.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trueline.serve.beams import BeamSearch, Hypothesis
from trueline.serve.request import Event, Running
from trueline.serve.samples import sample_of
from trueline.serve.schedule import Scheduler


@dataclass
class _Search:
    """One request's."""

    search: BeamSearch
    beams: list[Running]
    rows: dict[Running, Tensor] = field(default_factory=dict)
    """Log-probs of the next token, float32 [V], of the beams that have taken this step."""


class Searches:
    """All that run, by request."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._running: dict[int, _Search] = {}

    def take(self, running: Running, logits_V: Tensor, version: str) -> list[Event]:
        """One beam's next-token logits, its keys and values computed."""
        request = running.request
        here = self._running.get(request.id)
        if here is None:
            options = request.options
            search = BeamSearch(options.beams, request.stop_ids, request.limit, options.length_penalty)
            here = self._running[request.id] = _Search(search, [running])
        here.rows[running] = logits_V.float().log_softmax(0)
        if len(here.rows) < len(here.beams):
            return []
        rows_BV = torch.stack([here.rows[beam] for beam in here.beams])
        here.rows.clear()
        if not rows_BV.isfinite().any():
            raise ValueError(f"the model {version} gives NaN logits: its weights are broken, load others")
        self._move(here, here.search.step(rows_BV), rows_BV)
        if not here.search.done:
            return []
        del self._running[request.id]
        found = here.search.hypotheses[: request.sampling.n]
        return [_event(running, rank, hypothesis, version) for rank, hypothesis in enumerate(found)]

    def forget(self, request_id: int) -> None:
        """It was cancelled."""
        self._running.pop(request_id, None)

    def _move(self, here: _Search, moves: list[tuple[int, int]], rows_BV: Tensor) -> None:
        going = {row for row, _ in moves}
        for row, beam in enumerate(here.beams):
            if row not in going:
                self._scheduler.finish(beam)
        taken: set[int] = set()
        moved = []
        for row, _ in moves:  # all forks before any token is added
            beam = here.beams[row]
            moved.append(self._scheduler.fork(beam, 0, 0) if row in taken else beam)
            taken.add(row)
        for beam, (row, token) in zip(moved, moves, strict=True):
            beam.accept(token, float(rows_BV[row, token]))
        here.beams = moved


def _event(running: Running, rank: int, hypothesis: Hypothesis, version: str) -> Event:
    ended = Running(running.request, rank, 0, list(hypothesis.ids), list(np.asarray(hypothesis.logps, float)))
    reason = "stop" if hypothesis.ids[-1] in running.request.stop_ids else "length"
    return Event(running.request.id, rank, None, hypothesis.score, sample_of(ended, reason, version))
