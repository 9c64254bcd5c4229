"""Bytes of tensors that a run holds at its phases, counted without computing anything.

    sketch_of(job, model)        -> Sketch       the policy's modules, of which a copy without memory is built
    largest(job)                 -> Fullest      the rows of the largest microbatch of the run
    footprint(job, sketch, rows) -> Tensors      bytes

    loading     the weights twice: their file's pages, and what is copied out of them
    reference   forward passes over as many positions as max_tokens_per_batch allows
    training    one step with the optimizer's moments in place: its largest microbatch, and the one behind or before it, so that
                gradients that wait for the rest of their step are there

Saving takes less than training: files are written from the tensors themselves, when activations and gradients are gone.
Left out: evaluation (it keeps nothing for a backward pass), and what is no tensor (forecast.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trueline.models.adapters import adapters_of, attach, without_adapters
from trueline.models.attention import Layout, tree_tokens
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder, ScalarModel, labels_of
from trueline.models.families import named
from trueline.models.files import read_config
from trueline.models.lora import LoRAConfig
from trueline.objectives.base import Batch, Budget
from trueline.protocols import Crew
from trueline.records import Row
from trueline.store import adapter_base, local_folder
from trueline.train.adapt import load_policy, lora_config
from trueline.train.api import Job
from trueline.train.config import TrainConfig
from trueline.train.feed import StoredFeed
from trueline.train.optim import Optimizer, adamw
from trueline.train.step import backward, clip

MOST_STEPS = 2000
"""Steps of a run that are searched for the largest microbatch."""


@dataclass(frozen=True)
class Sketch:
    """A policy without its values."""

    shape: DecoderConfig
    head: str
    adapter: LoRAConfig | None
    """The one that the model comes with."""

    def build(self, config: TrainConfig) -> Decoder | ScalarModel:
        """All its modules, on the run's device, marked for training as the run does; the values are of no use."""
        with torch.device(config.device):
            decoder = Decoder(self.shape if self.head == "tokens" else replace(self.shape, tie_word_embeddings=True))
            policy = decoder if self.head == "tokens" else ScalarModel(decoder, labels_of(self.head))
        decoder.activation_checkpointing = config.gradient_checkpointing
        adapter = self.adapter or (lora_config(config.lora) if config.lora.lora_r else None)
        if adapter is not None:
            attach(policy, replace(adapter, modules_to_save=()))
        if isinstance(policy, ScalarModel):
            policy.score.requires_grad_(True)  # an adapter trains a copy of it
        return policy.train()

    @property
    def adaptable(self) -> bool:
        """Whether a new adapter could be trained on it."""
        family = named(self.shape.model_type)
        return self.adapter is None and not family.fused and not family.transposed


@dataclass(frozen=True)
class Tensors:
    """Bytes."""

    weights: int
    moments: int
    reference: int
    """The most while reference log-probs are computed, weights included; 0 where there are none."""
    training: int
    """The most while training, weights and moments included."""

    @property
    def loading(self) -> int:
        return 2 * self.weights

    @property
    def peak(self) -> int:
        return max(self.loading, self.reference, self.training)


@dataclass(frozen=True)
class Fullest:
    """What of a run decides its memory."""

    rows: tuple[Row, ...]
    """Of the largest microbatch, and of the one behind it in its step (before it, if it is the last)."""
    positions: int
    """Of the largest microbatch."""
    mean: float
    """Positions of a step, on average."""


def sketch_of(job: Job, model: str | Path) -> Sketch:
    """The policy that the job trains. Weights are read only where an adapter is trained further."""
    folder = local_folder(model, "config")
    adapters = {}
    if adapter_base(folder):
        adapters = adapters_of(load_policy(job.objective.verb, job.objective.head, model, job.tokenizer, job.config.seed))
    return Sketch(read_config(folder)[0], job.objective.head, next(iter(adapters.values()), None))


def largest(job: Job) -> Fullest:
    """Look through the steps of the run, in its own order."""
    config = job.config
    limit = None if config.max_steps > 0 else config.row_limit(len(job.rows))
    feed = StoredFeed(job.rows, job.rows_per_step, config.seed, limit)
    sizes = {id(row): tree_tokens(row) for row in job.rows}
    best, most, counts = list[Row](), -1, list[int]()
    for rows in islice(feed, min(job.total_steps, MOST_STEPS)):
        counts.append(sum(sizes[id(row)] for row in rows))
        first = 0  # positions of the step's first microbatch: it has the longest rows
        for size in sorted((sizes[id(row)] for row in rows), reverse=True)[: config.per_device_train_batch_size]:
            if first + size > config.max_tokens_per_batch:
                break
            first += size
        if first > most:
            best, most = rows, first
    step = steps_of(job, best)
    place = max(range(len(step)), key=lambda number: step[number].layout.num_tokens)
    nearby = step[max(0, place - 1) :][:2]
    return Fullest(tuple(row for batch in nearby for row in batch.rows), step[place].layout.num_tokens, float(np.mean(counts)))


def footprint(job: Job, sketch: Sketch, rows: Sequence[Row], *, reference: bool = True) -> Tensors:
    """The tensors of a run one of whose steps trains on these rows; with the pass of a reference if it needs one."""
    from trueline.train.meter import weightless  # takes a second and 50 MB, which training should not

    config, passed = job.config, 0
    with weightless() as meter:
        policy = sketch.build(config)
        weights = meter.live
        if reference and "reference" in job.objective.needs:
            layout = Layout.tree(list(up_to(job.rows, config.max_tokens_per_batch))).to(config.device)
            autocast = torch.autocast(layout.ids_T.device.type, torch.bfloat16, enabled=config.bf16)
            with torch.inference_mode(), autocast, without_adapters(policy):
                (policy.decoder if isinstance(policy, ScalarModel) else policy).token_logps(layout)
            passed, meter.peak = meter.peak, meter.live
        optimizer = adamw(policy, config.optim)
        for parameter in policy.parameters():  # a step without rows, for the moments to be there
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
        moments = meter.live - weights
        one_step(job, policy, optimizer, steps_of(job, rows))
    return Tensors(weights, moments, passed, meter.peak)


def one_step(job: Job, policy: nn.Module, optimizer: Optimizer, step: list[Batch]) -> tuple[float, float]:
    """What train/step.py does with a step, its checks left out; the seconds of the gradient, and of the rest."""
    times = [clock(job.config.device)]
    backward(job.objective, policy, step, Crew(), job.config.bf16)
    times.append(clock(job.config.device))
    clip(policy, job.config.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    times.append(clock(job.config.device))
    return times[1] - times[0], times[2] - times[1]


def clock(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def steps_of(job: Job, rows: Sequence[Row]) -> list[Batch]:
    """One optimizer step over rows; what helpers would say of them is taken to be 0."""
    blank = [replace(row, numbers={"reference_logps": np.zeros(len(row.ids)), **row.numbers}) for row in rows]
    budget = Budget(rows=job.config.per_device_train_batch_size, tokens=job.config.max_tokens_per_batch)
    return next(iter(job.objective.steps(blank, budget)))


def up_to(rows: Iterable[Row], positions: int) -> Iterator[Row]:
    """The first rows with at most so many positions together; at least one."""
    used = 0
    for row in rows:
        used += tree_tokens(row)
        if used > positions and used > tree_tokens(row):
            return
        yield row
