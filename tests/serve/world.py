"""An engine without a model: it carries out the scheduler's plans on a memory of tokens, and checks all that must hold.

What a token's keys and values would be is the token itself with its place and adapter, so a response whose blocks do not hold
exactly its own tokens is found at once, whichever of sharing, copying, swapping or reuse went wrong.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np

from trueline.records import Sampling
from trueline.serve.blocks import Blocks
from trueline.serve.group import Group
from trueline.serve.plan import Plan
from trueline.serve.request import Options, Request, Running
from trueline.serve.schedule import Scheduler

Slot = tuple[int, int, str] | None


def request(number: int, ids: list[int] | range, n: int = 1, limit: int = 10, **options: object) -> Request:
    return Request(
        id=number, ids=np.array(ids, dtype=np.int32), sampling=Sampling(n=n), responses=range(n), limit=limit, stop_ids=frozenset(),
        options=Options(**options),  # type: ignore[arg-type]
    )  # fmt: skip


class World:
    """Runs a scheduler step by step. `draw(running)` is the next token; drafts equal to it are accepted."""

    def __init__(
        self, num_blocks: int, block_size: int, draw: Callable[[Running], int] | None = None, **settings: object
    ) -> None:
        self.blocks = Blocks(num_blocks, block_size)
        self.scheduler = Scheduler(self.blocks, **settings)  # type: ignore[arg-type]
        self.draw = draw or (lambda running: (7 * running.response + 3 * running.request.id + len(running.ids)) % 5)
        self.memory: list[list[Slot]] = [[None] * block_size for _ in range(num_blocks)]
        self.host: list[list[Slot]] = [[None] * block_size for _ in range(self.scheduler.host.blocks.num_blocks)]
        self.finished: list[tuple[int, int, tuple[int, ...]]] = []
        self.copied = self.steps = 0
        self.rng = random.Random(0)

    def step(self) -> Plan:
        """Schedules, computes, draws."""
        plan = self.scheduler.schedule()
        self.steps += 1
        self.check_plan(plan)
        for block, host in plan.swap_out:
            self.host[host] = list(self.memory[block])
        sources = [list(self.memory[source]) for source, _ in plan.copies]
        for (_, target), held in zip(plan.copies, sources, strict=True):
            self.memory[target] = held
        self.copied += len(plan.copies)
        for host, block in plan.swap_in:
            self.memory[block] = list(self.host[host])
        for running, count in plan.chunks:
            self.write(running, count)
        for running, count in plan.chunks:
            self.check_content(running, running.computed + count)
        for running, count in plan.chunks:
            self.commit(running, count)
        self.search([running for running, _ in plan.chunks if running.request.options.beams])
        self.check()
        return plan

    def preempt(self, group: Group) -> None:
        """As a step would that needs its blocks."""
        plan = Plan()
        self.scheduler._preempt(group, plan)
        for block, host in plan.swap_out:
            self.host[host] = list(self.memory[block])
        self.check()

    def write(self, running: Running, count: int) -> None:
        tokens = [*running.request.ids.tolist(), *running.ids, *running.draft]
        for place in range(running.computed, running.computed + count):
            block = running.table[place // self.blocks.block_size]
            self.memory[block][place % self.blocks.block_size] = (place, tokens[place], running.request.options.adapter)

    def check_content(self, running: Running, computed: int) -> None:
        """Its blocks hold its own tokens, at their places."""
        tokens = [*running.request.ids.tolist(), *running.ids, *running.draft]
        size = self.blocks.block_size
        held = [slot for block in running.table for slot in self.memory[block]][:computed]
        assert held == [(place, tokens[place], running.request.options.adapter) for place in range(computed)], size

    def commit(self, running: Running, count: int) -> None:
        """Draws, accepts drafts, forks siblings, ends responses at their limit. Beams are computed only (see `search`)."""
        request = running.request
        if request.options.beams or running.computed + count < running.length + len(running.draft):
            self.scheduler.computed(running, count)
            return
        forks = []
        if running.siblings:
            self.scheduler.computed(running, count)
            count = 0
            forks = [self.scheduler.fork(running, response, response) for response in running.siblings]
        known = running.length
        for place in range(len(running.draft) + 1):
            token = self.draw(running)
            running.ids.append(token)
            if len(running.ids) == request.limit or running.draft[place : place + 1] != [token]:
                break
        if count:
            self.scheduler.computed(running, count - len(running.draft) + running.length - known - 1)
        running.draft = []
        for each in (running, *forks):
            if each is not running:
                each.ids.append(self.draw(each))
            if len(each.ids) == request.limit:
                self.finish(each)

    def search(self, computed: list[Running]) -> None:
        """A step of every beam search whose beams are computed: they all are, or none; parents are chosen by chance."""
        ready: dict[int, list[Running]] = {}
        for running in computed:
            if running.computed == running.length:
                ready.setdefault(running.request.id, []).append(running)
        for beams in ready.values():
            group = self.scheduler._group[beams[0]]
            assert set(beams) == set(group.active) and not group.pending, "beams take their steps together"
            parents = [self.rng.randrange(len(beams)) for _ in range(beams[0].request.options.beams)]
            children = [
                beams[p] if p not in parents[:i] else self.scheduler.fork(beams[p], i, i) for i, p in enumerate(parents)
            ]
            for number, beam in enumerate(beams):
                if number not in parents:
                    self.scheduler.finish(beam)
            for number, beam in enumerate(children):
                beam.ids.append(number)
                if len(beam.ids) == beam.request.limit:
                    self.finished.append((beam.request.id, number, tuple(beam.ids)))
                    self.scheduler.finish(beam)

    def finish(self, running: Running) -> None:
        self.finished.append((running.request.id, running.response, tuple(running.ids)))
        self.scheduler.finish(running)

    def check_plan(self, plan: Plan) -> None:
        scheduler, references = self.scheduler, self.blocks.references
        assert sum(count for _, count in plan.chunks) <= scheduler.max_tokens
        runnings = [running for running, _ in plan.chunks]
        assert len(set(map(id, runnings))) == len(runnings)
        assert {running.request.options.adapter for running in runnings} <= {plan.adapter}
        for running, count in plan.chunks:
            first, last = running.computed, running.computed + count - 1
            assert count > 0 and last < running.length + len(running.draft)
            written = running.table[first // self.blocks.block_size : last // self.blocks.block_size + 1]
            assert all(references[block] == 1 for block in written)
            assert len(running.table) * self.blocks.block_size > last
        assert all(
            count == 1 + len(running.draft) or running.computed + count <= running.length
            for running, count in plan.chunks
        )
        targets = [target for _, target in plan.copies]
        assert len(set(targets)) == len(targets) and not set(targets) & {source for source, _ in plan.copies}
        written_by = {running.table[running.computed // self.blocks.block_size] for running in runnings}
        assert set(targets) <= written_by  # only who writes copies
        assert len({host for _, host in plan.swap_out}) == len(plan.swap_out)
        assert len({block for _, block in plan.swap_in}) == len(plan.swap_in)
        assert not {host for _, host in plan.swap_out} & {host for host, _ in plan.swap_in}

    def check(self) -> None:
        """Between steps: every reference is a table's, every block is somewhere once, contents are right."""
        scheduler, blocks = self.scheduler, self.blocks
        runnings = list(scheduler._group)
        named = Counter(block for running in runnings for block in running.table)
        assert [named[block] for block in range(blocks.num_blocks)] == blocks.references
        free = [*blocks._blank, *blocks._cached]
        assert sorted([*free, *named]) == list(range(blocks.num_blocks))
        assert {block for block in blocks._found.values()} >= set(blocks._cached)
        for key, block in blocks._found.items():
            assert blocks._key[block] == key and blocks._number[block]
        assert all(blocks._key[block] is None and blocks._number[block] == 0 for block in blocks._blank)
        for block in blocks._found.values():  # what can be found is what the key says
            held = [slot for slot in self.memory[block]]
            assert None not in held
            key = blocks._key[block]
            assert key is not None and np.array([slot[1] for slot in held if slot], dtype=np.int32).tobytes() == key[1]
        hosted = Counter(block for table in scheduler.host._tables.values() for block in table)
        host = scheduler.host.blocks
        assert [hosted[block] for block in range(host.num_blocks)] == host.references
        assert sorted([*host._blank, *hosted]) == list(range(host.num_blocks))
        for running in runnings:
            group = scheduler._group[running]
            assert (running in group.active) != (running in group.pending)
            assert running.computed <= running.length + len(running.draft)
            if running in group.active:
                assert group in scheduler._groups
                assert blocks.needed(running.computed) <= len(running.table) <= blocks.needed(running.length)
                self.check_content(running, running.computed)
            else:
                assert not running.table and (running in scheduler.host or running.computed == 0)
        ranks = [group.rank for group in scheduler._groups]
        assert ranks == sorted(ranks) and all(group.active or group.pending for group in scheduler._groups)
        assert scheduler._slots == sum(group.slots for group in scheduler._groups) <= scheduler.max_batch

    def run(self, most: int = 10_000) -> World:
        """Until nobody is left; then every block is free."""
        while self.scheduler.busy:
            self.step()
            assert self.steps < most, "no end"
        assert self.blocks.used == 0 and self.scheduler.host.blocks.used == 0 and not self.scheduler._group
        return self
