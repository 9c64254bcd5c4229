"""The reference of a run: the model as it is at the start, and what it says of rows.

    stored rows     with_reference    all log-probs now, from disk or computed, before the first step: no second model
    fresh rollouts  live_reference    a frozen scorer of rows that do not exist yet: the base below an adapter, or a second copy
    frozen rounds   reference_sampler its responses, where it draws in the policy's stead

Left out: references that move (a new run from the newest model has one).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.models.adapters import without_adapters
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.scorer import PolicyScorer
from trueline.protocols import Crew, Rollouts, Sampler
from trueline.records import Row, Sample, Sampling
from trueline.run import Run
from trueline.train.config import TrainConfig
from trueline.train.ranks import Ranks
from trueline.train.reference_cache import CachedScorer


def with_reference(
    crew: Crew, policy: Decoder | ScalarModel, start: str, rows: Sequence[Row], config: TrainConfig, ranks: Ranks, run: Run
) -> Crew:
    """The crew with reference log-probs of these rows at hand: from disk, or computed now with the model as it starts."""
    folder = Path(config.save.reference_cache) if config.save.reference_cache else run.folder.parent / ".reference"
    given = crew.reference
    name = (given.fingerprint if given is not None else start) + ("-bf16" if config.bf16 else "")
    if given is None:
        assert isinstance(policy, Decoder)
        given = PolicyScorer(policy, max_tokens=config.max_tokens_per_batch, bf16=config.bf16)
    cached = CachedScorer(given, name, folder)
    share = ranks.deal(rows)
    with run.progress(len(share), "reference log-probs") as bar:
        cached.fill(share, bar.update)
    computed = sum(ranks.gather(cached.computed))
    run.event(f"reference log-probs: {computed:,} rows computed, {len(rows) - computed:,} read from {cached.folder}")
    if ranks.world > 1:
        cached = CachedScorer(given, name, folder)  # what the others computed, too
        cached.fill(rows)
    cached.scorer = None  # the policy is about to change: nothing may be scored with it from now on
    return dataclasses.replace(crew, reference=cached)


class BaseScorer:
    """The base of an adapter that is being trained: the same weights, the adapter out of the way."""

    def __init__(self, policy: Decoder, max_tokens: int, bf16: bool) -> None:
        self.policy = policy
        with without_adapters(policy):
            self.scorer = PolicyScorer(policy, max_tokens=max_tokens, bf16=bf16)
        self.fingerprint = self.scorer.fingerprint

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        with without_adapters(self.policy):
            return self.scorer.score(rows)

    def token_logps(self, rows: Sequence[Row], temperature: float = 1.0) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence float32 [its scored tokens]."""
        with without_adapters(self.policy):
            return self.scorer.token_logps(rows, temperature)


def live_reference(crew: Crew, policy: Decoder, adapted: bool, config: TrainConfig, say: Callable[[str], None]) -> Crew:
    """The crew with a reference that scores rows which are drawn on the way."""
    if crew.reference is not None:
        return crew
    if adapted:
        say("the reference is the model without the adapter that is trained: no second copy of the weights")
        return dataclasses.replace(crew, reference=BaseScorer(policy, config.max_tokens_per_batch, config.bf16))
    frozen = copy.deepcopy(policy).requires_grad_(False)
    size = sum(parameter.numel() * parameter.element_size() for parameter in frozen.parameters())
    say(f"the reference is a second copy of the model as it starts, {size / (1 << 20):,.0f} MB (with lora_r there is none)")
    return dataclasses.replace(crew, reference=PolicyScorer(frozen, max_tokens=config.max_tokens_per_batch, bf16=config.bf16))


class BaseSampler:
    """Draws from the base of an adapter that is being trained."""

    def __init__(self, policy: Decoder, sampler: Sampler) -> None:
        self.policy, self.sampler = policy, sampler

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        """For each prompt its samples."""
        with without_adapters(self.policy):
            return self.sampler.sample(prompts, sampling)

    def load(self, weights: Any, version: str) -> None:
        """The base does not change."""

    @property
    def agreement(self) -> object:
        """That of the sampler within."""
        return self.sampler.agreement


def reference_sampler(crew: Crew, policy: Any, rollouts: Rollouts, tokenizer: Any) -> Sampler:
    """Draws from what the crew's reference scores with."""
    reference = crew.reference
    if isinstance(reference, BaseScorer):
        return BaseSampler(policy, rollouts.sampler(policy, tokenizer))
    if not isinstance(reference, PolicyScorer):
        raise ValueError("responses are drawn from the reference, which must be a model: pass Crew(reference=PolicyScorer(model))")
    return rollouts.sampler(reference.model, tokenizer)
