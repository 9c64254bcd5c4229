"""Peak memory and time of a run before it starts, and what to change where the memory does not suffice.

    found = forecast(SFT(), "runs/base", "pairs.jsonl", max_length=512, limit=8 << 30)
    print(found)                  the parts of the peak, the time
    found.ways                    changes that are enough, the mildest first; none when it fits

    peak = process + tensors

Tensors are counted, not fitted: the run's own step is carried out on its largest microbatch with tensors that have no
memory (footprint.py), for the run as it is and once more for every change that is advised. What counting cannot see
(libraries as their code is used, scratch space of kernels, losses of the allocator) is what a short real probe takes
beyond its tensors. Time is the probe's, per position and per step.

Left out: several ranks (each takes as much), the time of checkpoints and of reading rows and weights.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trueline.models.attention import tree_tokens
from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.products import choose, products
from trueline.objectives.base import Objective
from trueline.protocols import Crew, Rollouts
from trueline.records import RolloutConfig
from trueline.tokens import Tokenizer
from trueline.train.api import Job, describe, resolve
from trueline.train.checks import check_rounds, refuse_misfit
from trueline.train.config import TrainConfig, override
from trueline.train.data import Data
from trueline.train.feed import StoredFeed
from trueline.train.footprint import Sketch, clock, footprint, largest, one_step, sketch_of, steps_of, up_to
from trueline.train.forecast_drawn import PROBE, changed, easier, held_by, played, readers, tried
from trueline.train.optim import adamw
from trueline.train.watch import many

Settings = dict[str, int]
"""Options by their flat names."""
MEGABYTE = 1 << 20
SLACK = 0.2
"""What allocator and kernels take on top of tensors beyond those of the probe, as a share of them (docs/stages/memory.md)."""
UNSEEN = 40 * MEGABYTE
"""What a process takes beyond its tensors once it trains, where no probe can tell."""
SHORTEST = 32
"""No shorter max_length is advised."""
PRICES = {
    "max_tokens_per_batch": "the same gradient, in more parts",
    "gradient_accumulation_steps": "the same gradient, in more parts",
    "gradient_checkpointing": "the same gradient, in a third more time",
    "lora_r": "another run: an adapter is trained, not all weights",
    "max_length": "another run: longer sequences are cut",
    "max_completion_length": "another run: responses are cut earlier",
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A change of options that is enough."""

    settings: Settings
    peak: int
    """Bytes, with the change."""

    def __str__(self) -> str:
        said = ", ".join(f"{name} = {str(value).lower()}" for name, value in self.settings.items())
        prices = dict.fromkeys(PRICES[name] for name in self.settings if name in PRICES)
        return f"{said}: {self.peak / MEGABYTE:,.0f} MB ({'; '.join(prices)})"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes and seconds of a run."""

    about: str
    """The run in one line."""
    parts: dict[str, int]
    """What the peak is made of: name -> bytes."""
    steps: int
    seconds: float | None
    """Of all steps, with reference log-probs and evaluation; None where no step could be tried."""
    limit: int | None
    """Bytes that there are, where that is known."""
    floor: int
    """Bytes before the first row is computed: process, weights, moments."""
    ways: tuple[Way, ...]
    split: Mapping[str, float] = field(default_factory=dict)
    """Seconds of sampling, scoring and learning, of methods that draw their own responses."""

    @property
    def peak(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.limit is None or self.peak <= self.limit

    def __str__(self) -> str:
        lines = [self.about, *(f"{size / MEGABYTE:9,.0f} MB  {name}" for name, size in self.parts.items())]
        lines.append(f"{self.peak / MEGABYTE:9,.0f} MB  at the peak")
        if self.seconds is None:
            lines.append(f"{'?':>9} min {many(self.steps, 'step')}: too large to try one here")
        else:
            lines.append(f"{self.seconds / 60:9,.1f} min {many(self.steps, 'step')}, {self.seconds / self.steps:.2g} s each")
        if self.split and self.seconds:
            shares = ", ".join(f"{name} {seconds / self.seconds:.0%}" for name, seconds in self.split.items())
            lines.append(f"{'':>9}     {shares}; every response taken to be as long as it may be")
        return "\n".join(lines)

    def advice(self) -> str:
        """What to change, in one sentence."""
        if self.ways:
            return "use " + ", or ".join(str(way) for way in self.ways[:3])
        return (
            f"no option is enough, so take a smaller model, or more memory: before the first row is computed this one takes "
            f"{self.floor / MEGABYTE:,.0f} MB"
        )


def forecast(
    objective: Objective,
    model: str | Path,
    rows: Data,
    *,
    tokenizer: Tokenizer | None = None,
    eval_rows: Data | None = None,
    config: TrainConfig | None = None,
    drawing: RolloutConfig | None = None,
    rollouts: Rollouts | None = None,
    scorers: Sequence[DecoderConfig] = (),
    limit: int | None = None,
    start: int | None = None,
    **overrides: Any,
) -> Forecast:
    """What `train` would need with the same arguments. Writes nothing.

    rollouts of methods that draw their own responses (forecast_drawn.py): an engine, with a judge that need not be the run's
    scorers  shapes of the reward models that would be in memory
    limit    bytes to fit into; default: what the machine, or its GPU, has
    start    bytes that the process holds without the model, where it is known; then nothing is probed

    In a fresh process the figures are those of a training process; memory that this one took earlier counts, too.
    """
    check_rounds(objective, drawing, rollouts)
    job = resolve(objective, model, rows, eval_rows, tokenizer, config, overrides, None, drawing)
    there = memory_of(job.config.device)
    limit = there if limit is None else limit
    sketch = sketch_of(job, model)
    refuse_misfit(sketch.shape, (*job.rows, *job.held), job.tokenizer, job.drawn_tokens)
    if rollouts is not None:
        return _of_rounds(job, sketch, rollouts, scorers, limit, there, start)
    fullest = largest(job)
    process, speed = (Process(UNSEEN + start, 0), None) if start is not None else probe(job, sketch, there)
    found = footprint(job, sketch, fullest.rows)
    parts = {"the process: libraries, rows, what kernels use": process.size, "weights": found.weights}
    if found.peak == found.training:
        parts |= {"AdamW's moments": found.moments}
        rest = f"gradients and activations; the largest microbatch has {fullest.positions:,} positions"
    elif found.peak == found.reference:
        rest = f"reference log-probs, {job.config.max_tokens_per_batch:,} positions at a time (max_tokens_per_batch)"
    else:
        rest = "the file of the weights, while it is read"
    total = process.total(found.peak)
    parts |= {rest: process.size + found.peak - sum(parts.values())}
    parts |= {"lost between tensors by the allocator, about": total - sum(parts.values())}
    enough = ways(job, sketch, process, limit) if limit is not None and total > limit else ()
    return Forecast(
        about=describe(job), parts=parts, steps=job.total_steps, limit=limit, ways=tuple(enough),
        seconds=speed.of_run(job, fullest.mean) if speed is not None else None,
        floor=process.total(found.weights + found.moments),
    )  # fmt: skip


def _of_rounds(
    job: Job, sketch: Sketch, rollouts: Rollouts, scorers: Sequence[DecoderConfig], limit: int | None, there: int | None,
    start: int | None,
) -> Forecast:  # fmt: skip
    """Of a method that draws its own responses."""
    began, pace, found = highest(job.config.device), None, played(job, sketch, rollouts)
    held = held_by(job, sketch, found, scorers)
    process = Process(UNSEEN + (began if start is None else start), 0)
    if start is None and (there is None or began + held.peak <= there):
        before = highest(job.config.device)  # what the counting itself takes is none of the run's
        pace, small = tried(job, sketch, found, rollouts)
        tensors = held_by(job, sketch, small, (), alone=True).peak
        process = Process(max(began, highest(job.config.device) - tensors - (before - began)), tensors)
    total = process.total(held.peak)
    most = max(held.phases, key=lambda name: held.phases[name])
    parts = {"the process: libraries, rows, what kernels use": process.size} | {name: size for name, size in held.parts.items() if size}
    parts |= {f"what {most} takes": held.peak - sum(held.parts.values())}
    parts |= {"lost between tensors by the allocator, about": total - sum(parts.values())}
    enough = []
    if limit is not None and total > limit:
        for settings in easier(job, sketch, rollouts):
            other = changed(job, settings)
            size = process.total(held_by(other, sketch, played(other, sketch, rollouts), scorers).peak)
            enough += [Way(settings=settings, peak=size)] if size <= limit else []
    split = pace.of_run(job, found, readers(job, sketch, scorers)) if pace is not None else {}
    return Forecast(
        about=describe(job), parts=parts, steps=job.total_steps, limit=limit, ways=tuple(enough),
        seconds=sum(split.values()) if split else None, floor=process.total(sum(held.parts.values())), split=split,
    )  # fmt: skip


@dataclass(frozen=True)
class Process:
    """What a process holds beside its tensors. Bytes."""

    size: int
    """While it held as many tensors as the probe."""
    seen: int
    """The most tensors of the probe."""

    def total(self, tensors: int) -> int:
        """All of it, with so many bytes of tensors at the peak."""
        return self.size + tensors + round(SLACK * max(0, tensors - self.seen))


@dataclass(frozen=True)
class Speed:
    """Seconds."""

    position: float
    """Of forward and backward of one position."""
    forward: float
    """Of its forward alone."""
    update: float
    """Of the optimizer, per step."""

    def of_run(self, job: Job, positions: float) -> float:
        """All steps of so many positions each, reference log-probs of all rows, and evaluations."""
        evaluations = 1 + (job.total_steps // job.config.evals.eval_steps if job.config.evals.eval_steps else 0)
        held = sum(map(tree_tokens, job.held))
        passed = evaluations * held
        if "reference" in job.objective.needs:
            passed += sum(map(tree_tokens, job.rows)) + held
        return job.total_steps * (positions * self.position + self.update) + passed * self.forward


def probe(job: Job, sketch: Sketch, there: int | None) -> tuple[Process, Speed | None]:
    """What the process holds beyond its tensors, and its speed, from two short steps of a model of that shape.

    Nothing is tried where five copies of the model would not be `there`.
    """
    config, kind = job.config, job.config.device.split(":")[0]
    start = highest(config.device)
    if kind == "cpu" and not start:
        raise ValueError("this system does not say how much memory a process takes: plan on Linux or macOS")
    with torch.device("meta"):
        weights = sum(p.numel() * p.element_size() for p in Decoder(sketch.shape).parameters())
    if there is not None and start + 5 * weights > there:
        return Process(start + UNSEEN, 0), None
    rows = list(up_to(next(iter(StoredFeed(job.rows, job.rows_per_step, config.seed))), PROBE))
    positions = sum(map(tree_tokens, rows))
    backend = choose().backend if kind == "cpu" and not config.bf16 else "default"
    with products(backend):
        policy = sketch.build(config)
        optimizer = adamw(policy, config.optim)
        for _ in range(2):  # the second one meets the optimizer's moments, and code that was used before
            gradient, update = one_step(job, policy, optimizer, steps_of(job, rows))
        with torch.no_grad():
            began = clock(config.device)
            for batch in job.objective.prepare(policy, steps_of(job, rows)):
                job.objective.loss(policy, batch, Crew())
            forward = clock(config.device) - began
    del policy, optimizer
    most = highest(config.device)  # before anything is imported for the counting
    tensors = footprint(job, sketch, rows, reference=False).training
    return Process(max(start, most - tensors), tensors), Speed(gradient / positions, forward / positions, update)


def ways(job: Job, sketch: Sketch, process: Process, limit: int) -> Iterator[Way]:
    """Changes with which the run fits into `limit`, the mildest first, each counted with the change made."""
    config = job.config

    def peak(settings: Settings) -> int:
        other = applied(job, settings)
        return process.total(footprint(other, sketch, largest(other).rows).peak)

    smaller = narrowed(job, {}, peak, limit)
    if smaller is not None:
        yield smaller
        rows, times = config.per_device_train_batch_size, config.gradient_accumulation_steps
        while rows % 2 == 0:
            rows, times = rows // 2, times * 2
            settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": times}
            if (size := peak(settings)) <= limit:
                yield Way(settings=settings, peak=size)
                break
    recompute: Settings = {} if config.gradient_checkpointing else {"gradient_checkpointing": True}
    adapter: Settings = {"lora_r": 16} if sketch.adaptable and not config.lora.lora_r else {}
    found = smaller is not None
    for settings in (recompute, adapter):
        if settings and (way := narrowed(job, settings, peak, limit)) is not None:
            found = True
            yield way
    all_of_it = recompute | adapter
    if found or limit <= peak(all_of_it | {"max_length": min(SHORTEST, config.max_length)}):
        return
    length = config.max_length
    while not found:
        shorter = {"max_length": length} if length < config.max_length else {}
        if (way := narrowed(job, all_of_it | shorter, peak, limit)) is not None:
            found = True
            yield way
        length = max(SHORTEST, length // 2)


def narrowed(job: Job, settings: Settings, peak: Callable[[Settings], int], limit: int) -> Way | None:
    """The settings, with no more positions per microbatch than fit; None where the longest row alone is too much."""
    other = applied(job, settings)
    least, most = max(map(tree_tokens, other.rows)), min(other.config.max_tokens_per_batch, largest(other).positions)
    low = peak(settings | {"max_tokens_per_batch": least})
    if low > limit:
        return None
    high = peak(settings)
    if high <= limit:
        return Way(settings=settings, peak=high)
    for share in (0.95, 0.7, 0.4):  # of where it would fit if it were linear in the positions
        tokens = least + int(share * (limit - low) / (high - low) * (most - least))
        wanted = settings | {"max_tokens_per_batch": tokens}
        if tokens > least and (size := peak(wanted)) <= limit:
            return Way(settings=wanted, peak=size)
    return Way(settings=settings | {"max_tokens_per_batch": least}, peak=low)


def applied(job: Job, settings: Settings) -> Job:
    """The job with other settings, its rows cut to another max_length."""
    length = settings.get("max_length", job.config.max_length)
    cut = [
        replace(row, ids=tuple(ids_L[:length] for ids_L in row.ids), scored=tuple(scored_L[:length] for scored_L in row.scored))
        for row in job.rows
    ]
    rows = [row for row in cut if any(scored_L.any() for scored_L in row.scored)]
    return replace(job, rows=rows or cut, config=override(job.config, **settings))


def highest(device: str) -> int:
    """Bytes: the process's highest resident set so far, or the most that a GPU's allocator has taken; 0 where no one says."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure begins with that of the process that started this one
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_of(device: str) -> int | None:
    """Bytes that a process may take on the device; None where the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return None
    group = Path("/sys/fs/cgroup/memory.max")  # of a container
    said = group.read_text(encoding="ascii").strip() if group.is_file() else ""
    return min(there, int(said)) if said.isdigit() else there
