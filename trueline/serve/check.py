"""Does the sampler say what the trainer would? Drawn tokens are scored again by the training forward.

    engine.sample(...)      checks a few of its first samples, once for each model it is given
    str(engine.agreement)   "sampler vs trainer log-probs: max difference 2.4e-06 over 512 tokens"

The cached path (one token at a time) and the packed path of training are two programs for one function. Where they differ, the
policy that drew is not the policy that is trained, and whatever is learned from the samples is off-policy without saying so.
Float32 gives 1e-6 to 1e-5. Left out: which of the two is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.records import Sample

TOKENS = 512
"""Drawn tokens that are scored again at most, but at least one sample."""
LIMIT = 1e-3
"""A larger difference is no rounding."""


@dataclass(frozen=True)
class Agreement:
    """How far sampler and trainer are apart."""

    difference: float
    """Largest absolute difference of a token's log-prob."""
    tokens: int
    """Drawn tokens compared."""

    @property
    def holds(self) -> bool:
        """False for a NaN, too."""
        return self.difference <= LIMIT

    def __str__(self) -> str:
        said = f"sampler vs trainer log-probs: max difference {self.difference:.1e} over {self.tokens:,} tokens"
        return said if self.holds else f"{said}; {WARNING}"


WARNING = (
    f"above {LIMIT:g} the two do not compute the same model (half precision on one side, other weights, or a fault): "
    "what is learned from these samples is off-policy"
)


def compare(model: Decoder, samples: Iterable[Sample]) -> Agreement:
    """The first samples of about TOKENS tokens in all, scored by the training forward at their temperature.

    Call it in evaluation mode and without gradients, with the weights that drew. Greedy samples have log-probs at temperature 1.
    """
    compared, difference = 0, 0.0
    for sample in samples:
        if compared and compared + len(sample.ids) > TOKENS:
            break
        ids = np.concatenate((sample.prompt_ids, sample.ids))
        layout = Layout.packed([ids], [np.arange(len(ids)) >= len(sample.prompt_ids)]).to(model.device)
        scores = model.token_logps(layout, temperature=sample.temperature or 1.0)
        apart_N = scores.logps_N.float().cpu() - torch.from_numpy(sample.logps)
        difference = max(difference, float(apart_N.abs().nan_to_num(nan=torch.inf).max()))
        compared += len(sample.ids)
    return Agreement(difference, compared)
