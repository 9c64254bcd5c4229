"""The scheduler without a model: what it plans, on a memory that is checked (see `world`)."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.serve.world import World, request


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize("swap", [0, 64])
def test_random_lives(size: int, swap: int) -> None:
    rng = random.Random(size)
    for _ in range(5):
        world = World(64 // size, size, max_batch=6, max_tokens_per_step=10, swap_blocks=swap)
        expected = set()
        for number in range(30):
            n, limit = rng.randint(1, 4), rng.randint(1, 12)
            ids = [rng.randint(0, 1) for _ in range(rng.randint(1, 20))]
            try:
                world.scheduler.add(
                    request(number, ids, n, limit, priority=rng.randint(0, 1), adapter=rng.choice(["", "", "a"]))
                )
            except ValueError:
                continue
            expected |= {(number, k) for k in range(n)}
            for _ in range(rng.randint(0, 4)):
                world.step()
                for running in world.scheduler.running:
                    if rng.random() < 0.3 and running.ids:
                        running.draft = [world.draw(running), rng.randint(0, 4), 1]
        world.run()
        assert sorted((number, k) for number, k, _ in world.finished) == sorted(expected)


def test_scheduling_needs_no_torch() -> None:
    names = "trueline.serve.schedule, trueline.serve.request, trueline.serve.noise, trueline.serve.stops"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
