"""What a paged cache saves, measured on the engine's own blocks and scheduler, without a model.

    utilisation   share of the taken places that hold a token, by block size; 2,048 is one contiguous reservation per request
    saving        share of the blocks that n samples of a prompt, or the beams of a search, save against a copy for each
    in_flight     requests that run at once in a cache of a given size, paged or contiguous

A request is a prompt and a response of given lengths; all wait from the start. A step computes prompts whole and one token of every
other response. What is averaged is summed over all steps, so a step weighs as much as what it holds.
Lengths are exponential, cut at 1,024, with the means of the paper's two workloads; the samples of a prompt are equally long, as in
the paper, whose lengths come from a trace. Choice of beams: the probabilities of the next token are pieces broken off a stick (GEM(1):
every piece is a uniform share of what is left) and the best sums of log-probs go on, as in a beam search. With chance `alike` all beams
of a request see the same probabilities, else each has its own: real beams lie between, since they differ in a few words.
Source: Kwon et al., 2309.06180, sections 3.1, 6.2 and 6.3. Left out: time, prompts that share a prefix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trueline.records import Sampling
from trueline.serve.blocks import Blocks
from trueline.serve.request import Options, Request, Running
from trueline.serve.schedule import Scheduler

CAP = 1024
"""Longest prompt, and longest response."""
RESERVED = 2 * CAP
"""Places of a contiguous reservation: the context of the paper's models."""
BATCH = 64
"""Responses at once, where there is room for all."""
PLACES = 15_700
"""Tokens for which there is room next to OPT-13B on a GPU of 40 GB (the paper's table 1)."""


class Workload(NamedTuple):
    """Mean lengths in tokens."""

    name: str
    prompt: int
    response: int


SHAREGPT = Workload("ShareGPT-like", 161, 338)
ALPACA = Workload("Alpaca-like", 19, 58)


class Trace(NamedTuple):
    """Lengths in tokens, each [requests]."""

    prompts: np.ndarray
    responses: np.ndarray


def trace(workload: Workload, requests: int, seed: int) -> Trace:
    """Exponential lengths, at least 1 and at most CAP."""
    rng = np.random.default_rng(seed)
    drawn = (rng.exponential(mean, requests) for mean in (workload.prompt, workload.response))
    return Trace(*(np.clip(np.ceil(lengths), 1, CAP).astype(int) for lengths in drawn))


class Load(NamedTuple):
    """What a step held after its forward."""

    tokens: int
    """In the cache, summed over responses."""
    named: int
    """Blocks that the responses name, summed over responses."""
    used: int
    """Blocks that are taken: those that several name count once."""
    running: int
    """Responses with blocks."""
    waiting: int
    """Requests without."""


class Simulation:
    """A trace on a scheduler; `loads` carries it out."""

    def __init__(
        self, lengths: Trace, block_size: int, blocks: int, max_batch: int, *, n: int = 1, beams: int = 0, alike: float = 0.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.responses, self.beams, self.alike, self.rng = lengths.responses, beams, alike, np.random.default_rng(seed)
        whole = max_batch * (1 + RESERVED)  # tokens of a step: no prompt is ever cut
        self.scheduler = Scheduler(Blocks(blocks, block_size), max_batch=max_batch, max_tokens_per_step=whole)
        common = {
            "sampling": Sampling(n=n),
            "responses": range(n),
            "stop_ids": frozenset[int](),
            "options": Options(beams=beams),
        }
        for number, (prompt, response) in enumerate(zip(*lengths, strict=True)):
            ids = self.rng.integers(0, 1 << 30, prompt).astype(np.int32)
            self.scheduler.add(Request(id=number, ids=ids, limit=int(response), **common))  # type: ignore[arg-type]

    def loads(self) -> Iterator[Load]:
        """Step by step, until all is done."""
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        while scheduler.busy:
            plan = scheduler.schedule()
            for running, count in plan.chunks:
                scheduler.computed(running, count)
            held = scheduler.running
            tokens, named = sum(running.computed for running in held), sum(len(running.table) for running in held)
            yield Load(tokens, named, blocks.used, len(held), scheduler.waiting + scheduler.preempted)
            self._commit([running for running, _ in plan.chunks if running.computed == running.length])
        assert blocks.used == 0

    def _commit(self, ready: list[Running]) -> None:
        """A new token for everybody who stands at its end; who is as long as the trace says leaves."""
        if self.beams:
            searches: dict[int, list[Running]] = {}
            for running in ready:
                searches.setdefault(running.request.id, []).append(running)
            ready = [beam for beams in searches.values() for beam in self._choose(beams)]
        else:
            ready = [each for running in ready for each in (running, *self._forks(running))]
            for running in ready:
                running.ids.append(running.response)
        for running in ready:
            if len(running.ids) == self.responses[running.request.id]:
                self.scheduler.finish(running)

    def _forks(self, running: Running) -> list[Running]:
        return [self.scheduler.fork(running, number, 0) for number in running.siblings]

    def _choose(self, beams: list[Running]) -> list[Running]:
        """A step of a beam search: the best continuations. A beam without any leaves, one with several is forked."""
        width = self.beams
        rows = 1 if self.rng.random() < self.alike else len(beams)
        pieces = np.clip(self.rng.random((rows, width)), 1e-9, 1 - 1e-9)
        rest = np.log1p(-pieces)
        logps = np.log(pieces) + np.cumsum(rest, 1) - rest
        sums = np.array([sum(beam.logps) for beam in beams])[:, None] + logps
        chosen: list[Running] = []
        ends = [(list(beam.ids), sum(beam.logps)) for beam in beams]
        parents = set[int]()
        for flat in np.argsort(-sums, axis=None)[:width].tolist():
            parent, token = divmod(flat, width)
            beam = self.scheduler.fork(beams[parent], 0, 0) if parent in parents else beams[parent]
            parents.add(parent)
            beam.ids, beam.logps = [*ends[parent][0], token], [float(sums[parent, token])]
            chosen.append(beam)
        for number, beam in enumerate(beams):
            if number not in parents:
                self.scheduler.finish(beam)
        return chosen


def utilisation(workload: Workload, block_size: int, requests: int, seed: int) -> float:
    """Share of the taken places that hold a token. A block of RESERVED tokens is a contiguous reservation."""
    lengths = trace(workload, requests, seed)
    loads = list(Simulation(lengths, block_size, BATCH * -(-RESERVED // block_size), BATCH).loads())
    return sum(load.tokens for load in loads) / (block_size * sum(load.used for load in loads))


def saving(
    workload: Workload, block_size: int, requests: int, seed: int, *, n: int = 1, beams: int = 0, alike: float = 0.0
) -> float:
    """Blocks saved by sharing, over the blocks that as many copies would take."""
    lengths, blocks = trace(workload, requests, seed), BATCH * -(-RESERVED // block_size)
    loads = list(Simulation(lengths, block_size, blocks, BATCH, n=n, beams=beams, alike=alike, seed=seed).loads())
    return 1 - sum(load.used for load in loads) / sum(load.named for load in loads)


class InFlight(NamedTuple):
    """Of a trace in a cache of PLACES tokens."""

    running: float
    """Mean number of requests at once, over the steps in which others wait; 0 when nobody ever waits."""
    steps: int
    """Until all are done."""
    preemptions: int = 0


def paged(lengths: Trace, block_size: int, places: int = PLACES) -> InFlight:
    """On blocks."""
    simulation = Simulation(lengths, block_size, places // block_size, 256)
    loads = list(simulation.loads())
    counts = [load.running for load in loads if load.waiting]
    return InFlight(float(np.mean(counts or [0])), len(loads), simulation.scheduler.preemptions)


def contiguous(lengths: Trace, exact: bool, places: int = PLACES) -> InFlight:
    """First come, first served, with one piece for each: of RESERVED tokens, or (`exact`, an oracle) as long as it is going to be."""
    needs = lengths.prompts + lengths.responses if exact else np.full(len(lengths.prompts), RESERVED)
    queue = deque(zip(needs.tolist(), lengths.responses.tolist(), strict=True))
    running: list[tuple[int, int]] = []  # (step in which it has ended, places)
    counts, step = list[int](), 0
    while queue or running:
        running = [(end, need) for end, need in running if end > step]
        while queue and queue[0][0] <= places - sum(need for _, need in running):
            need, length = queue.popleft()
            running.append((step + length, need))
        if queue:
            counts.append(len(running))
        step += bool(running)
    return InFlight(float(np.mean(counts or [0])), step)


class Figure(NamedTuple):
    """One number of the report."""

    about: str
    """utilisation, saving by samples, saving by beams, in flight, steps, preemptions."""
    workload: str
    setting: str
    mean: float
    error: float
    """Standard error over the seeds."""


def figures(requests: int, seeds: int, block_size: int) -> Iterator[Figure]:
    """Everything, one after another: `requests` requests from each of the seeds 0, 1, ... (beams: a tenth of them)."""

    def figure(about: str, workload: Workload, setting: str, values: list[float]) -> Figure:
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        return Figure(about, workload.name, setting, float(np.mean(values)), error)

    runs = range(seeds)
    for workload in (SHAREGPT, ALPACA):
        for size in (1, 8, 16, 32, 64, 128, 256, RESERVED):
            yield figure(
                "utilisation", workload, str(size), [utilisation(workload, size, requests, seed) for seed in runs]
            )
        for n in (2, 4, 6):
            found = [saving(workload, block_size, requests, seed, n=n) for seed in runs]
            yield figure("saving by samples", workload, str(n), found)
        for width in (2, 4, 6):
            for alike in (1.0, 0.95, 0.0):
                found = [
                    saving(workload, block_size, max(1, requests // 10), seed, beams=width, alike=alike)
                    for seed in runs
                ]
                yield figure("saving by beams", workload, f"{width}, alike {alike}", found)
    traces = [trace(SHAREGPT, requests, seed) for seed in runs]
    schemes = {
        "contiguous": [contiguous(each, exact=False) for each in traces],
        "contiguous, exact": [contiguous(each, exact=True) for each in traces],
        "paged": [paged(each, block_size) for each in traces],
    }
    for number, about in enumerate(("in flight", "steps", "preemptions")):
        for name, outcomes in schemes.items():
            yield figure(about, SHAREGPT, name, [float(outcome[number]) for outcome in outcomes])
