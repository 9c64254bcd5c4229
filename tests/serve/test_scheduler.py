"""The scheduler without a model: order, slots, holes; and that it needs no torch."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np

from trueline.records import Sampling
from trueline.serve.request import Request, Running
from trueline.serve.scheduler import Move, Plan, Scheduler, Start


def request(number: int, length: int = 4, n: int = 1) -> Request:
    return Request(
        id=number, ids=np.zeros(length, dtype=np.int32), sampling=Sampling(n=n), responses=range(n), limit=10, stop_ids=frozenset()
    )  # fmt: skip


def start(scheduler: Scheduler, plan: Plan) -> None:
    for begun in plan.starts:
        for slot, response in zip(begun.slots, begun.request.responses, strict=True):
            scheduler.place(slot, Running(begun.request, response, 0, ids=[0]))


def test_first_come_first_served_within_batch_and_budget() -> None:
    scheduler = Scheduler(max_batch=4, prefill_tokens=10)
    a, b, c, d = request(0, 6, 2), request(1, 5), request(2, 20), request(3, 1)
    for each in (a, b, c, d):
        scheduler.add(each)
    plan = scheduler.schedule()
    assert plan.starts == (Start(a, (0, 1)),)  # b would exceed the prefill budget
    start(scheduler, plan)
    plan = scheduler.schedule()
    assert plan.starts == (Start(b, (2,)),)  # c alone exceeds it, and d does not overtake c
    start(scheduler, plan)
    plan = scheduler.schedule()
    assert plan.starts == (Start(c, (3,)),)
    start(scheduler, plan)
    assert scheduler.schedule() == Plan(batch=4)  # full: everybody takes a step, d waits
    scheduler.free(1)
    assert scheduler.schedule().starts == (Start(d, (1,)),)


def test_a_group_starts_together() -> None:
    scheduler = Scheduler(max_batch=3, prefill_tokens=100)
    scheduler.add(request(0))
    start(scheduler, scheduler.schedule())
    scheduler.add(request(1, n=3))
    assert scheduler.schedule() == Plan(batch=1)
    scheduler.free(0)
    assert scheduler.schedule().starts[0].slots == (0, 1, 2)


def test_holes_are_closed_from_the_end() -> None:
    scheduler = Scheduler(max_batch=6, prefill_tokens=100)
    scheduler.add(request(0, length=7, n=6))
    start(scheduler, scheduler.schedule())
    for slot in (1, 3, 5):
        scheduler.free(slot)
    assert scheduler.schedule() == Plan(moves=(Move(4, 1, 7),), batch=3)
    assert [r.response for r in scheduler.slots if r] == [0, 4, 2]
    for slot in (0, 1, 2):
        scheduler.free(slot)
    assert scheduler.schedule() == Plan() and not scheduler.busy


def test_a_random_life_loses_nobody() -> None:
    """Random arrivals, ends and cancellations: each response runs once, slots are consecutive in every step."""
    rng = random.Random(0)
    scheduler = Scheduler(max_batch=7, prefill_tokens=12)
    expected: set[tuple[int, int]] = set()
    ended: set[tuple[int, int]] = set()
    for number in range(200):
        n = rng.randint(1, 7)
        scheduler.add(request(number, rng.randint(1, 15), n))
        expected |= {(number, k) for k in range(n)}
        for _ in range(rng.randint(0, 3)):
            plan = scheduler.schedule()
            start(scheduler, plan)
            if plan.batch:
                assert len(scheduler.slots) == plan.batch and None not in scheduler.slots
            for slot, running in enumerate(scheduler.slots):
                if running is not None and rng.random() < 0.3:
                    assert (running.request.id, running.response) not in ended
                    ended.add((running.request.id, running.response))
                    scheduler.free(slot)
        if rng.random() < 0.1:
            dropped, stopped = scheduler.cancel(rng.randint(0, number))
            ended |= {(r.id, k) for r in dropped for k in r.responses} | {
                (r.request.id, r.response) for _, r in stopped
            }
    while scheduler.busy:
        start(scheduler, scheduler.schedule())
        for slot, running in enumerate(scheduler.slots):
            if running is not None:
                ended.add((running.request.id, running.response))
                scheduler.free(slot)
    assert ended == expected


def test_scheduling_needs_no_torch() -> None:
    names = "trueline.serve.scheduler, trueline.serve.request, trueline.serve.noise, trueline.serve.stops"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
