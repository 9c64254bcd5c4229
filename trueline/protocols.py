"""What rooms promise each other, so that they need not import one another. No torch here.

    train  is handed a Crew: frozen helpers that an objective may ask for
    align  is handed a Sampler and a Judge
    serve.Engine is a Sampler; models.scorer has the scorers; align.judges the judges
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trueline.records import Messages, Row, Sample, Sampling


class Sampler(Protocol):
    """Draws responses from a policy."""

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        """For each prompt (token ids) its `sampling.n` samples."""
        ...

    def load(self, weights: Any, version: str) -> None:
        """Use these weights from now on; `version` is written into Sample.policy."""
        ...


class Scorer(Protocol):
    """Gives every sequence of a row a number: a reward model, or a frozen policy's log-probability of the scored tokens."""

    fingerprint: str
    """Names the weights; caches of scores are keyed by it."""

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row a float32 array [K]."""
        ...


class Judge(Protocol):
    """Gives the responses to one prompt a number each; more is better, equal is a tie."""

    @property
    def name(self) -> str:
        """Who judged; written into what is made from it."""
        ...

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]: ...


@dataclass(frozen=True)
class Crew:
    """Frozen helpers of a run. An objective that needs a missing one says so before the first step."""

    reference: Scorer | None = None
    reward: Scorer | None = None
    sampler: Sampler | None = None

    def refresh(self, model: Any, version: str) -> None:
        """Let the sampler draw from the live weights."""
        if self.sampler is not None:
            self.sampler.load(model, version)
