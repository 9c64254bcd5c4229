"""Two samplers as one: the first half of every prompt's responses by the main policy, the second half by another player.

Its draws have a seed of their own, so that the same weights do not say the same twice. Left out: who the players are (rounds.Second says
it), what pairs are made (align.select).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueline.protocols import Sampler
from trueline.records import Sample, Sampling


@dataclass(frozen=True)
class TwoPlayers:
    """A Sampler. Of an odd number the main policy draws one more."""

    main: Sampler
    second: Sampler
    temperature: float = 0.0
    """Of the second player's drawing; 0 takes that of the call."""

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        """For each prompt the main policy's samples, then the second player's."""
        half = sampling.n // 2
        first = self.main.sample(prompts, replace(sampling, n=sampling.n - half))
        if not half:
            return first
        (seed,) = np.random.SeedSequence([sampling.seed, 1]).generate_state(1).tolist()
        temperature = self.temperature or sampling.temperature
        second = self.second.sample(prompts, replace(sampling, n=half, seed=seed, temperature=temperature))
        return [[*one, *other] for one, other in zip(first, second, strict=True)]

    def load(self, weights: Any, version: str) -> None:
        """Of the main policy; the second player's weights are its own."""
        self.main.load(weights, version)

    @property
    def agreement(self) -> object:
        """The main policy's."""
        return self.main.agreement
