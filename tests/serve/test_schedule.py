"""The scheduler without a model: what it plans, carried out on a memory that is checked in every step (see `world`)."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.serve.world import World, request
from trueline.serve.blocks import Blocks
from trueline.serve.schedule import Full, Scheduler

SETTINGS = {"max_batch": 4, "max_tokens_per_step": 16}


def ids_of(world: World) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(number, response): ids for number, response, ids in world.finished}


# -- any life whatever --------------------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Requests of all kinds come, run, are cancelled, preempted and swapped; `World` checks every step."""

    @initialize(
        size=st.sampled_from([1, 2, 3, 4]), room=st.integers(50, 90), swap=st.sampled_from([0, 4, 30]), batch=st.integers(2, 6),
        more=st.integers(0, 8), patience=st.integers(1, 4), waiting=st.sampled_from([None, 4]), ahead=st.sampled_from([0, 2, 16]),
    )  # fmt: skip
    def begin(
        self, size: int, room: int, swap: int, batch: int, more: int, patience: int, waiting: int | None, ahead: int
    ) -> None:
        self.world = World(
            -(-room // size), size, max_batch=batch, max_tokens_per_step=batch + more, max_waiting=waiting, swap_blocks=-(-swap // size),
            patience=patience, ahead=ahead,
        )  # fmt: skip
        self.expected: set[tuple[int, int]] = set()
        self.number = 0

    @rule(
        ids=st.lists(st.integers(0, 1), min_size=1, max_size=14), n=st.integers(1, 4), limit=st.sampled_from([30, 12, 4, 1]),
        beams=st.booleans(),
        priority=st.integers(0, 2), client=st.sampled_from("ab"), adapter=st.sampled_from(["", "", "x"]), scored=st.booleans(),
        times=st.sampled_from([3, 2, 1]),
    )  # fmt: skip
    def submit(
        self, ids: list[int], n: int, limit: int, beams: bool, priority: int, client: str, adapter: str, scored: bool, times: int
    ) -> None:  # fmt: skip
        scheduler = self.world.scheduler
        room = scheduler.room(len(ids), limit)
        n = min(n, scheduler.max_batch)
        asked = {
            "beams": n if beams else 0,
            "priority": priority,
            "client": client,
            "adapter": adapter,
            "prompt_logps": scored,
        }
        for _ in range(times):
            try:
                scheduler.add(request(self.number, ids, 1 if beams else n, limit, **asked))
            except Full:
                assert scheduler.waiting == scheduler.max_waiting
            except ValueError:
                assert room < n
            else:
                self.expected |= {(self.number, response) for response in range(n)}
            self.number += 1

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.world.step()

    @precondition(lambda self: self.world.scheduler.running)
    @rule(which=st.integers(0, 9), right=st.integers(0, 4), wrong=st.integers(0, 2))
    def guess(self, which: int, right: int, wrong: int) -> None:
        """Drafts whose first tokens are right."""
        runnings = [r for r in self.world.scheduler.running if not r.request.options.beams and r.ids]
        for running in runnings[which : which + 1]:
            known = len(running.ids)
            for _ in range(right):
                running.ids.append(self.world.draw(running))
            running.draft = running.ids[known:] + [99] * wrong
            del running.ids[known:]

    @precondition(lambda self: self.world.scheduler.running)
    @rule(which=st.integers(0, 9))
    def end(self, which: int) -> None:
        """A response stops by itself."""
        for running in self.world.scheduler.running[which : which + 1]:
            if not running.siblings and not running.request.options.beams:
                self.world.finish(running)

    @rule(back=st.integers(1, 6))
    def cancel(self, back: int) -> None:
        number = self.number - back
        dropped, stopped = self.world.scheduler.cancel(number)
        gone = {(number, k) for each in dropped for k in each.responses}
        gone |= {(number, k) for running in stopped for k in (running.response, *running.siblings)}
        if not any(running.request.options.beams for running in stopped):
            assert gone <= self.expected
        self.expected = {
            each for each in self.expected if each[0] != number or each[1] in {k for _, k, _ in self.done(number)}
        }
        self.world.check()

    def done(self, number: int) -> list[tuple[int, int, tuple[int, ...]]]:
        return [each for each in self.world.finished if each[0] == number]

    @precondition(lambda self: self.world.scheduler.running)
    @rule(which=st.integers(0, 9))
    def preempt(self, which: int) -> None:
        """Anybody, at any time."""
        for group in self.world.scheduler._groups[which : which + 1]:
            self.world.preempt(group)

    @rule()
    def reset(self) -> None:
        self.world.scheduler.reset()
        assert self.world.blocks.used == self.world.blocks.cached == self.world.scheduler.host.blocks.used == 0
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run(self.world.steps + 3000)
            assert {(number, response) for number, response, _ in self.world.finished} == self.expected
            assert len(self.world.finished) == len(self.expected)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def storm(seed: int, requests: int) -> World:
    """Many more than fit, of all kinds; some are cancelled."""
    rng = random.Random(seed)
    size, batch = rng.choice([1, 2, 3, 4, 8]), rng.randint(3, 8)
    world = World(
        -(-rng.randint(60, 120) // size), size, max_batch=batch, max_tokens_per_step=batch + rng.randint(0, 20),
        swap_blocks=rng.choice([0, 60 // size, 400 // size]), patience=rng.randint(1, 5), ahead=rng.choice([0, 1, 16]),
    )  # fmt: skip
    expected: set[tuple[int, int]] = set()
    for number in range(requests):
        n, limit, beams = rng.randint(1, min(4, batch)), rng.randint(1, 30), rng.random() < 0.4
        ids = [rng.randint(0, 1) for _ in range(rng.randint(1, 20))]
        if n > world.scheduler.room(len(ids), limit):
            continue
        options = {"beams": n if beams else 0, "priority": rng.randint(0, 1), "adapter": rng.choice(["", "", "x"])}
        world.scheduler.add(request(number, ids, 1 if beams else n, limit, client=rng.choice("ab"), **options))
        expected |= {(number, response) for response in range(n)}
        for _ in range(rng.randint(0, 6)):
            world.step()
            for running in world.scheduler.running:
                if running.ids and not running.request.options.beams and rng.random() < 0.2:
                    running.draft = [world.draw(running), rng.randint(0, 4), 1]
        if rng.random() < 0.1:
            gone = rng.randint(max(0, number - 5), number)
            world.scheduler.cancel(gone)
            ended = {response for each, response, _ in world.finished if each == gone}
            expected -= {each for each in expected if each[0] == gone and each[1] not in ended}
        if rng.random() < 0.02:
            world.scheduler.reset()
    world.run()
    assert sorted(each[:2] for each in world.finished) == sorted(expected)
    return world


@pytest.mark.parametrize("seed", range(6))
def test_a_storm(seed: int) -> None:
    storm(seed, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 200))
def test_a_long_storm(seed: int) -> None:
    storm(seed, 150)


# -- order ----------------------------------------------------------------------------------------------------------------


def order(world: World) -> list[int]:
    """Numbers of the requests in the order in which they first run."""
    seen: dict[int, None] = {}
    while world.scheduler.busy:
        seen.update(dict.fromkeys(running.request.id for running, _ in world.step().chunks))
    return list(seen)


def test_first_come_first_served() -> None:
    world = World(100, 4, max_batch=2, max_tokens_per_step=8)
    for number in range(8):
        world.scheduler.add(request(number, range(5 + number), limit=1 + 7 * number % 5))
    assert order(world) == list(range(8))


def test_a_long_one_is_not_overtaken() -> None:
    """The second does not fit next to the first; the small ones behind it would, and wait."""
    world = World(10, 4, **SETTINGS)
    for number, length in enumerate([20, 24, 2, 2]):
        world.scheduler.add(request(number, range(100 * number, 100 * number + length), limit=8))
    for _ in range(5):
        assert {running.request.id for running, _ in world.step().chunks} == {0}
    assert order(world) == [0, 1, 2, 3]


def test_a_group_starts_together() -> None:
    world = World(100, 4, max_batch=3, max_tokens_per_step=32)
    world.scheduler.add(request(0, range(4), limit=3))
    world.scheduler.add(request(1, range(4), n=3))
    world.step(), world.step()
    assert [running.request.id for running in world.scheduler.running] == [0]
    world.step()
    world.step(), world.step()
    assert [(running.request.id, running.response) for running in world.scheduler.running] == [(1, 0), (1, 1), (1, 2)]


def test_clients_take_turns_and_priorities_come_first() -> None:
    world = World(100, 4, max_batch=1, max_tokens_per_step=32)
    for number, client in enumerate("aaabbc"):
        world.scheduler.add(request(number, range(4), limit=1, client=client))
    world.scheduler.add(request(6, range(4), limit=1, client="a", priority=1))
    assert order(world) == [6, 0, 3, 5, 1, 4, 2]


def test_nobody_waits_for_ever() -> None:
    """Urgent requests without end, which fill batch and cache: the plain one starts after `patience` of them, and ends."""
    world = World(8, 4, max_batch=2, max_tokens_per_step=16, patience=5)
    world.scheduler.add(request(0, range(8), limit=9))
    number = 0
    while (0, 0) not in ids_of(world):
        while world.scheduler.waiting < 4:
            number += 1
            world.scheduler.add(request(number, range(number % 7, number % 7 + 8), limit=9, priority=1))
        world.step()
        assert world.steps < 200
    assert 5 < number < 20


def test_decodes_first_and_never_more_than_the_budget() -> None:
    world = World(100, 4, max_batch=4, max_tokens_per_step=8)
    world.scheduler.add(request(0, range(6), n=2, limit=30))
    world.step()
    world.scheduler.add(request(1, range(100, 120), limit=3))
    counts = []
    for _ in range(4):
        plan = world.step()
        assert [running.request.id for running, _ in plan.chunks][:2] == [0, 0]
        counts.append([count for _, count in plan.chunks])
    assert counts == [[1, 1, 6], [1, 1, 6], [1, 1, 6], [1, 1, 2]]


def test_adapters_take_turns() -> None:
    world = World(100, 4, max_batch=3, max_tokens_per_step=16)
    for number, adapter in enumerate(["", "x", "y"]):
        world.scheduler.add(request(number, range(4), limit=6, adapter=adapter))
    adapters = [world.step().adapter for _ in range(9)]
    assert sorted(adapters[:3]) == sorted(adapters[3:6]) == sorted(adapters[6:]) == ["", "x", "y"]
    world.run()
    assert world.blocks.hit_tokens == 0  # equal prompts, but computed by other weights


def test_a_full_queue_and_what_never_fits() -> None:
    scheduler = Scheduler(Blocks(8, 4), max_batch=4, max_tokens_per_step=16, max_waiting=1)
    with pytest.raises(ValueError, match="cache's 8 blocks of 4 tokens: lower max_new_tokens"):
        scheduler.add(request(0, range(30), limit=4))
    scheduler.add(request(1, range(30), limit=3))
    with pytest.raises(Full, match="1 requests wait"):
        scheduler.add(request(2, range(3), limit=3))
    assert (
        scheduler.room(30, 3) == 1
        and scheduler.room(30, 4) == 0
        and scheduler.room(8, 9) == 3
        and scheduler.room(8, 1) == 4
    )
    with pytest.raises(ValueError, match="max_tokens_per_step at least max_batch"):
        Scheduler(Blocks(8, 4), max_batch=4, max_tokens_per_step=3)


# -- sharing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "copies"), [(7, 3), (8, 0), (9, 3), (4, 0), (1, 3)])
def test_only_a_shared_partial_block_is_copied(prompt: int, copies: int) -> None:
    """Four samples of a prompt: three copies when its last block is not full, none otherwise; and none ever after."""
    world = World(100, 4, max_batch=4, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(prompt), n=4, limit=20))
    world.step()
    assert world.blocks.used == world.blocks.needed(prompt) and world.copied == 0
    world.step()
    assert world.copied == copies and world.blocks.used == prompt // 4 + 4
    world.run()
    assert world.copied == copies and len(world.finished) == 4


@pytest.mark.parametrize(("length", "hit"), [(7, 4), (8, 4), (9, 8), (3, 0), (4, 0), (5, 4)])
def test_a_known_prefix_is_not_computed_again(length: int, hit: int) -> None:
    """At least one token is computed, whole blocks only, and equal tokens only."""
    world = World(100, 4, max_batch=4, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(length), limit=2))
    world.run()
    world.scheduler.add(request(1, range(length), limit=2))
    assert [count for _, count in world.step().chunks] == [length - hit] and world.blocks.hit_tokens == hit
    world.run()
    other = [*range(length - 1), 99]
    world.scheduler.add(request(2, other, limit=2))
    assert [count for _, count in world.step().chunks] == [length - (length - 1) // 4 * 4]
    world.run()
    world.scheduler.add(request(3, range(length), limit=2, prompt_logps=True))
    assert [count for _, count in world.step().chunks] == [length]
    world.run()
    world.scheduler.reset()
    world.scheduler.add(request(4, range(length), limit=2))
    assert [count for _, count in world.step().chunks] == [length]


def test_responses_are_prefixes_too() -> None:
    """The next turn of a conversation: prompt and response of the last one are known, but for the last token."""
    world = World(100, 4, max_batch=4, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(6), limit=7))
    world.run()
    world.scheduler.add(request(1, [*range(6), *ids_of(world)[0, 0], 5, 5, 5], limit=1))
    world.step()
    assert world.blocks.hit_tokens == 12  # 6 + 7 tokens, the last of them never computed


def test_a_prefix_is_computed_once_at_the_same_time_too() -> None:
    """Eight questions behind the same 16 tokens arrive together: the first is computed, the others find its blocks."""
    world = World(100, 4, max_batch=8, max_tokens_per_step=200)
    for number in range(8):
        world.scheduler.add(request(number, [*range(16), 20 + number, 30], limit=2))
    assert [[count for _, count in world.step().chunks] for _ in range(2)] == [[18], [1] + [2] * 7]
    world.run()


def test_blocks_are_taken_at_the_boundary() -> None:
    """The newest token is computed in the following step: 4 tokens and the first new one lie in one block until then."""
    world = World(100, 4, max_batch=1, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(3), limit=9))
    used = []
    for _ in range(8):
        world.step()
        used.append(world.blocks.used)
    assert used == [1, 1, 2, 2, 2, 2, 3, 3]


def test_rejected_drafts_give_their_blocks_back() -> None:
    world = World(100, 2, max_batch=1, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(2), limit=40))
    world.step()
    (running,) = world.scheduler.running
    running.draft = [99] * 9
    plan = world.step()
    assert plan.chunks == [(running, 10)] and len(running.ids) == 2 and len(running.table) == 2
    running.draft = [(len(running.ids) + i) % 5 for i in range(9)]  # what World draws
    world.step()
    assert len(running.ids) == 12 and len(running.table) == 7
    world.run()


# -- preemption -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [0, 100])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_preemption_changes_nothing(swap: int, size: int) -> None:
    """A cache in which two of six fit: everybody is preempted, and ends as in a large one."""
    results = []
    for room in (1000, 100):
        world = World(room // size, size, max_batch=16, max_tokens_per_step=64, swap_blocks=swap)
        for number in range(6):
            world.scheduler.add(
                request(number, np.random.default_rng(number).integers(0, 9, 11).tolist(), n=1 + number % 2, limit=30)
            )
        world.run()
        results.append(ids_of(world))
        assert (world.scheduler.preemptions > 0) == (room == 100)
        assert (world.scheduler.swaps > 0) == (room == 100 and swap > 0)
    assert results[0] == results[1]


@pytest.mark.parametrize(("free", "preempted"), [(1, 1), (2, 0)])
def test_copies_need_blocks_too(free: int, preempted: int) -> None:
    """Three samples share a block that is not full: two of them copy it, or, with a single free block, nobody does."""
    world = World(20, 4, max_batch=4, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(7), n=3, limit=9))
    world.step()
    for _ in range(world.blocks.available - free):
        world.blocks.take()
    plan = world.scheduler.schedule()
    assert world.scheduler.preemptions == preempted and len(plan.copies) == (0 if preempted else 2)


def test_the_least_urgent_and_the_latest_leave_first() -> None:
    world = World(9, 2, max_batch=4, max_tokens_per_step=16)
    for number, priority in enumerate([0, 1, 1]):
        world.scheduler.add(request(number, range(10 * number, 10 * number + 4), limit=9, priority=priority))
    left: list[int] = []
    running = {0, 1, 2}
    for _ in range(6):
        world.step()
        now = {each.request.id for each in world.scheduler.running}
        left += running - now
        running = now
    assert left == [0, 2]
    world.run()


def test_what_was_shared_is_shared_again() -> None:
    """A preempted request with four samples takes no more blocks when it is back."""
    world = World(60, 2, max_batch=5, max_tokens_per_step=64)
    world.scheduler.add(request(0, range(20), n=4, limit=12))
    for _ in range(4):
        world.step()
    used = world.blocks.used
    world.scheduler._preempt(world.scheduler._groups[0], None)
    assert world.blocks.used == 0
    for _ in range(3):
        world.step()
    assert world.blocks.used <= used + 4  # one token more each
    assert len(world.scheduler.running) == 4
    world.run()


def test_cancelling_takes_everything() -> None:
    world = World(20, 2, max_batch=4, max_tokens_per_step=16, swap_blocks=50)
    for number in range(4):
        world.scheduler.add(request(number, range(12), n=2, limit=9))
    world.step(), world.step()
    world.scheduler._preempt(world.scheduler._groups[0], world.scheduler.schedule())
    dropped, stopped = world.scheduler.cancel(3)
    assert [each.id for each in dropped] == [3] and not stopped
    dropped, stopped = world.scheduler.cancel(0)
    assert not dropped and [running.response for running in stopped] == [0, 1]
    assert world.scheduler.cancel(0) == ([], []) and world.scheduler.host.blocks.used == 0


def test_scheduling_needs_no_torch() -> None:
    names = "trueline.serve.schedule, trueline.serve.simulate, trueline.serve.request, trueline.serve.noise, trueline.serve.stops"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
