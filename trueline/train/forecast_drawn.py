"""Peak memory and time of runs that draw their own responses, before they start.

    found = forecast_drawn(job, sketch, rollouts, scorers, limit)

One round is played without a policy: responses of the longest length, judged by chance, selected as the method selects. Its rows are
counted and tried like stored ones (forecast, footprint). On top of the policy come the critic, the copy that is the reference, reward
models and the cache of keys and values, which stays between rounds; drawing is timed on a few tokens that are really drawn.

    sampling   waves of as many responses as the engine runs at once, each with a step per token
    scoring    a forward pass per model that reads the round: reference, critic, reward models
    learning   the round's own optimizer steps

All responses are taken to be as long as they may be: real ones are shorter, and both figures are an upper bound then. Left out: what
other judges take, and the time of evaluations' judging.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from trueline.models.adapters import without_adapters
from trueline.models.attention import Layout, tree_tokens
from trueline.models.cache import BLOCK_SIZE
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.files import read_config
from trueline.models.products import choose, products
from trueline.models.value import ActorCritic, policy_of
from trueline.objectives.base import Batch, Budget
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Crew, Rollouts
from trueline.records import Row, Sample, Sampling
from trueline.store import local_folder
from trueline.train.api import Job
from trueline.train.config import override
from trueline.train.corpus import with_corpus
from trueline.train.critic import Criticised
from trueline.train.feed import StoredFeed
from trueline.train.footprint import MOST_STEPS, Sketch, clock, one_step, up_to
from trueline.train.optim import adamw

PREFILL = 4096
"""Positions of prompts that an engine computes at once, and SLOTS responses that it draws at once, by default."""
SLOTS = 64
PROBE = 512
"""Positions of the steps that are really taken, about."""
TRIED = 24
"""Tokens that are really drawn to see how fast that is."""


@dataclass(frozen=True)
class Longest:
    """A Sampler whose responses are tokens by chance, none of them shorter than it may be."""

    vocab_size: int
    agreement: object = None

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        rng, size = np.random.default_rng(sampling.seed), sampling.max_new_tokens
        return [[self._one(np.asarray(prompt, np.int32), rng, size) for _ in range(sampling.n)] for prompt in prompts]

    def _one(self, prompt: np.ndarray, rng: np.random.Generator, size: int) -> Sample:
        ids = rng.integers(0, self.vocab_size, size).astype(np.int32)
        return Sample(prompt_ids=prompt, ids=ids, logps=np.zeros(size, np.float32), mask=np.ones(size, bool), finish_reason="length")

    def load(self, weights: Any, version: str) -> None: ...


class Zeros:
    """In the place of a reference and a critic: all they say is 0."""

    fingerprint = "zeros"

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        return [np.zeros(len(row.ids), np.float32) for row in rows]

    def token_logps(self, rows: Sequence[Row], temperature: float = 1.0) -> list[tuple[np.ndarray, ...]]:
        return [tuple(np.zeros(int(scored_L.sum()), np.float32) for scored_L in row.scored) for row in rows]

    def token_values(self, rows: Sequence[Row]) -> list[tuple[np.ndarray, ...]]:
        return self.token_logps(rows)


@dataclass(frozen=True)
class Round:
    """What a round comes to."""

    steps: list[list[Batch]]
    prompts: Sequence[Row]
    responses: int
    slots: int
    """Responses drawn at once."""
    length: int
    """Positions of the cache per response."""
    scored: Sequence[Row] = ()
    """What reference, critic and reward models read."""

    @property
    def fullest(self) -> list[Batch]:
        """The largest microbatch, and the one behind it in its step (before it, if it is the last)."""
        step = max(self.steps, key=lambda batches: max(batch.layout.num_tokens for batch in batches))
        place = max(range(len(step)), key=lambda number: step[number].layout.num_tokens)
        return step[max(0, place - 1) :][:2]

    @property
    def positions(self) -> int:
        """Computed in all optimizer steps of the round."""
        return sum(batch.layout.num_tokens for step in self.steps for batch in step)


@dataclass(frozen=True)
class Held:
    """Bytes of tensors: what stays, and the most of each phase with it."""

    parts: Mapping[str, int]
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        return max(self.phases.values())


@dataclass(frozen=True)
class Pace:
    """Seconds, by a real try."""

    position: float
    """Of forward and backward of one position."""
    forward: float
    """Of its forward alone."""
    update: float
    """Of the optimizer, per step."""
    token: float
    """Of one token for every slot."""

    def of_run(self, job: Job, found: Round, passes: float) -> dict[str, float]:
        """{"sampling": ..., "scoring": ..., "learning": ...} of the whole run; `passes` of the policy's forward score a round."""
        assert isinstance(job.objective, OnPolicy) and job.drawing is not None
        rounds, longest = job.total_steps / job.objective.rounds.steps, job.drawing.max_completion_length
        evaluations = (1 + (job.total_steps // job.config.evals.eval_steps if job.config.evals.eval_steps else 0)) if job.held else 0
        waves = rounds * found.responses / found.slots + evaluations * len(job.held) / min(SLOTS, max(1, len(job.held)))
        asked = sum(row.num_tokens for row in found.prompts)
        read = sum(map(tree_tokens, found.scored))
        return {
            "sampling": waves * longest * self.token + rounds * asked * self.forward,
            "scoring": rounds * read * self.forward * passes,
            "learning": rounds * (found.positions * self.position + len(found.steps) * self.update),
        }


def played(job: Job, sketch: Sketch, rollouts: Rollouts) -> Round:
    """The round of the run whose prompts make the largest microbatch, with the longest responses."""
    objective, drawing, config = job.objective, job.drawing, job.config
    assert isinstance(objective, OnPolicy) and drawing is not None
    feed = StoredFeed(job.rows, job.rows_per_round, config.seed)
    rounds = -(-job.total_steps // objective.rounds.steps)

    def largest(rows: Sequence[Row]) -> int:
        return sum(sorted((row.num_tokens for row in rows), reverse=True)[: config.per_device_train_batch_size])

    prompts = max(islice(feed, min(rounds, MOST_STEPS)), key=largest)
    asked = [(job.texts[row.key], row.ids[0]) for row in prompts]
    drawn = rollouts.draw(
        asked, Longest(sketch.shape.vocab_size), drawing, decode=lambda ids: " ".join(map(str, ids.tolist())),
        select=objective.rounds.select, options=objective.rounds.options, seed=0,
    )  # fmt: skip
    if not drawn.rows:
        options = "".join(f", {name} {value}" for name, value in objective.rounds.options.items())
        raise ValueError(
            f"{objective.verb} selects none of {len(prompts) * drawing.num_generations:,} responses ({objective.rounds.select}{options}), "
            "so there is no round to forecast: trueline plan rewards by chance, from 0 to 1; plan with a smaller margin, or without one"
        )
    crew = with_corpus(Crew(reference=Zeros(), critic=Zeros()), objective, job.tokenizer, config, lambda text: None)
    budget = Budget(rows=config.per_device_train_batch_size, tokens=config.max_tokens_per_batch)
    steps = list(objective.steps(objective.annotate(drawn.rows, crew), budget))
    responses = len(prompts) * drawing.num_generations
    slots = min(SLOTS, 1 << (min(responses, SLOTS) - 1).bit_length())
    length = max(row.num_tokens for row in prompts) + drawing.max_completion_length
    return Round(steps, prompts, responses, slots, min(sketch.shape.max_length, -(-length // 64) * 64), drawn.rows)


def learner_like(job: Job, sketch: Sketch) -> nn.Module:
    """What the optimizer trains, of no values in particular."""
    policy = sketch.build(job.config)
    assert isinstance(policy, Decoder)
    if "critic" not in job.objective.needs:
        return policy
    assert isinstance(job.objective, Criticised)
    start = job.objective.critic
    if start == "shared":
        return ActorCritic(policy)
    shape = sketch.shape if start == "policy" else read_config(local_folder(start, "config"))[0]
    with torch.device(job.config.device):
        trunk = Decoder(replace(shape, tie_word_embeddings=True))
    trunk.activation_checkpointing = job.config.gradient_checkpointing
    return ActorCritic(policy, trunk.train())


def copies(job: Job) -> bool:
    """Whether the reference is a second copy of the policy."""
    assert isinstance(job.objective, OnPolicy)
    return ("reference" in job.objective.needs or job.objective.rounds.asks_reference) and not job.config.lora.lora_r


def held_by(job: Job, sketch: Sketch, found: Round, scorers: Sequence[DecoderConfig], *, alone: bool = False) -> Held:
    """Counted without memory; `alone` leaves out the models that only score."""
    from trueline.train.meter import weightless

    config, parts, phases = job.config, dict[str, int](), dict[str, int]()
    device = torch.device(config.device)
    batches = found.fullest
    with weightless() as meter:

        def since(name: str) -> None:
            parts[name] = meter.live - sum(parts.values())

        learner = learner_like(job, sketch)
        policy = policy_of(learner)
        assert isinstance(policy, Decoder)
        since("weights" if policy is learner else "weights, those of the critic included")
        with device:
            others = [Decoder(sketch.shape)] if copies(job) and not alone else []
            since("the reference, a second copy")
            judges = [] if alone else [ScalarModel(Decoder(replace(shape, tie_word_embeddings=True))) for shape in scorers]
        since("reward models")
        optimizer = adamw(learner, config.optim)
        for parameter in learner.parameters():  # a step without rows, for the moments to be there
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
        since("AdamW's moments")
        two = isinstance(job.objective, OnPolicy) and job.objective.rounds.second is not None and not alone
        caches = [policy.new_cache(found.slots * found.length // BLOCK_SIZE) for _ in range(2 if two else 1)]
        since("keys and values of what is drawn")
        meter.peak = meter.live
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.bf16)
        with torch.inference_mode(), without_adapters(policy):
            policy(Layout.tree(list(up_to(found.prompts, PREFILL))).to(device))
            logits_BV = torch.zeros(found.slots, sketch.shape.vocab_size, device=device)
            sums_BV = (logits_BV - 1).cumsum(1, dtype=torch.float64)
            phases["drawing"], meter.peak = meter.peak, meter.live
            del logits_BV, sums_BV
            meter.peak = meter.live
            if others or judges or policy is not learner:
                with autocast:
                    policy.token_logps(Layout.tree(list(up_to(found.scored, config.max_tokens_per_batch))).to(device))
            phases["scoring"], meter.peak = meter.peak, meter.live
        one_step(job, learner, optimizer, batches)
        phases["learning"] = meter.peak
        del caches, judges, others
    phases["reading the weights"] = 2 * next(iter(parts.values()))
    return Held(parts, phases)


def tried(job: Job, sketch: Sketch, found: Round, rollouts: Rollouts) -> tuple[Pace, Round]:
    """A few tokens drawn and two short steps taken, for real; and the round that this was."""
    assert job.drawing is not None
    config, sampling = job.config, job.drawing.sampling(0)
    backend = choose().backend if config.device.startswith("cpu") and not config.bf16 else "default"
    rows = list(up_to(found.scored, PROBE))
    budget = Budget(rows=config.per_device_train_batch_size, tokens=config.max_tokens_per_batch)
    crew = with_corpus(Crew(reference=Zeros(), critic=Zeros()), job.objective, job.tokenizer, config, lambda text: None)
    steps = list(job.objective.steps(job.objective.annotate(rows, crew), budget))
    positions = sum(batch.layout.num_tokens for batch in steps[0])
    few = [row.ids[0] for row in found.prompts[: -(-found.slots // sampling.n)]]
    tokens = max(2, min(TRIED, sampling.max_new_tokens))
    with products(backend):
        learner = learner_like(job, sketch)
        for parameter in learner.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        policy = policy_of(learner)
        assert isinstance(policy, Decoder)
        sampler = rollouts.sampler(policy, job.tokenizer)
        times = []
        for size in (2, tokens):  # the first warms up
            began = clock(config.device)
            sampler.sample(few, replace(sampling, max_new_tokens=size))
            times.append(clock(config.device) - began)
        waves = max(1.0, len(few) * sampling.n / found.slots)  # more responses than slots where groups are large
        token = times[1] / tokens / waves  # with its share of the prompts
        optimizer = adamw(learner, config.optim)
        for _ in range(2):
            gradient, update = one_step(job, learner, optimizer, steps[0])
        with torch.no_grad():
            began = clock(config.device)
            policy.token_logps(Layout.tree([row for batch in steps[0] for row in batch.rows]).to(torch.device(config.device)))
            forward = clock(config.device) - began
    length = max(map(len, few)) + tokens
    small = replace(found, steps=[steps[0]], prompts=found.prompts[: len(few)], scored=rows, length=-(-length // 64) * 64)
    return Pace(gradient / positions, forward / positions, update, token), small


def readers(job: Job, sketch: Sketch, scorers: Sequence[DecoderConfig]) -> float:
    """How many forward passes of the policy it takes to score a round: reference, critic and reward models."""

    def size(shape: DecoderConfig) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in Decoder(replace(shape, tie_word_embeddings=True)).parameters())

    own = size(sketch.shape)
    passes = ("reference" in job.objective.needs) + ("critic" in job.objective.needs)
    return passes + sum(size(shape) / own for shape in scorers)


def easier(job: Job, sketch: Sketch, rollouts: Rollouts) -> Iterator[dict[str, int]]:
    """Changes that take less memory, the mildest first."""
    assert job.drawing is not None
    longest = max(tree_tokens(row) for row in played(job, sketch, rollouts).scored)
    parts: dict[str, int] = {"max_tokens_per_batch": longest} if longest < job.config.max_tokens_per_batch else {}
    if parts:
        yield parts
    if not job.config.gradient_checkpointing:
        yield parts | {"gradient_checkpointing": True}
    if sketch.adaptable and not job.config.lora.lora_r:
        yield parts | {"lora_r": 16}
    if job.drawing.max_completion_length > 1:
        yield {"max_completion_length": job.drawing.max_completion_length // 2}


def changed(job: Job, settings: Mapping[str, int]) -> Job:
    """The job with other settings."""
    assert job.drawing is not None
    drawing = {name: value for name, value in settings.items() if name == "max_completion_length"}
    config = {name: value for name, value in settings.items() if name not in drawing}
    return replace(job, config=override(job.config, **config), drawing=replace(job.drawing, **drawing))
