"""How a run's matrix products are computed on a CPU: decided at its start, kept in its folder, said in its events.

    out/products.json      {"library": "onednn", "speedup": 1.9, "error": 9e-07}: what the probe found (models/products.py)

Another choice changes the last bits, so a run that goes on keeps the one it began with, and all ranks take rank 0's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

from trueline.models.products import Choice, bf16_speedup, choose, products
from trueline.run import Run
from trueline.store import write_atomic
from trueline.train.config import TrainConfig
from trueline.train.ranks import Ranks

FILE = "products.json"


@contextmanager
def arithmetic(run: Run, config: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Float32 products by the library that suits this processor; a word where bfloat16 was asked for and does not pay."""
    if config.device != "cpu":
        yield
        return
    if config.bf16:
        speedup = bf16_speedup()
        if speedup < 1:
            run.event(
                f"bf16 on this processor: products take {1 / speedup:.0f} times as long as in float32, for it computes "
                "bfloat16 by emulation; leave bf16 out here"
            )
        yield
        return
    path = run.folder / FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    found = ranks.gather(known or (dataclasses.asdict(choose()) if ranks.first else None))[0]
    choice = Choice(**found)
    if ranks.first and known is None:
        write_atomic(path, json.dumps(found) + "\n")
    if choice.library != "default":
        run.event(str(choice))
    with products(choice.library):
        yield
