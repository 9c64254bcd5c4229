"""What the server needs of an engine, and nothing else: trueline.serve.engine.Engine has it, and so has a test's."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from trueline.models.decoder import Decoder
from trueline.records import Sampling
from trueline.serve.request import Event, Options, Statistics


class Drawing(Protocol):
    """Draws responses, step by step, for one thread."""

    model: Decoder

    def submit(self, ids: np.ndarray, sampling: Sampling, options: Options) -> int:
        """Queues a prompt: int32 [P]. ValueError says what is wrong with it."""

    def step(self) -> list[Event]:
        """One forward for everybody who can go on, and what it gave."""

    def cancel(self, request: int) -> bool:
        """Ends a request; False when there is none."""

    def statistics(self) -> Statistics:
        """Counts, now."""

    @property
    def busy(self) -> bool:
        """True while requests wait or run, or events wait to be fetched."""
