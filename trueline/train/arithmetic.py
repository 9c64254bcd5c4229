"""How a run's matrix products are computed on a CPU: decided at its start, kept in its folder, said in its events.

    out/products.json      {"backend": "onednn", "speedup": 1.9, "error": 9e-07}: what the probe found (models/products.py)

Another choice changes the last bits, so a run that goes on keeps the one it began with, and all ranks take rank 0's. One
thing comes first: on a machine where oneDNN rounds, it is not used whatever the file says. The probe goes by time, so two
runs on one machine may choose differently where oneDNN is about 1.2 times as fast.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager

from trueline.models.products import LARGEST_ERROR, bf16_speedup, choose, onednn_error, products
from trueline.run import Run, read_json
from trueline.store import write_atomic
from trueline.train.config import TrainConfig
from trueline.train.ranks import Ranks

FILE = "products.json"


@contextmanager
def arithmetic(run: Run, config: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Float32 products by the backend that suits this processor; a word where bfloat16 was asked for and does not pay."""
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
    known = read_json(path).get("backend") if path.exists() else None
    if known is None and ranks.first:
        choice = choose()
        write_atomic(path, json.dumps(dataclasses.asdict(choice)) + "\n")
        known = choice.backend
        if known != "default":
            run.event(str(choice))
    wanted = ranks.gather(known)[0]
    errors = ranks.gather(onednn_error() or 0.0) if wanted == "onednn" else [0.0]
    if max(errors) > LARGEST_ERROR:
        run.warn(
            "products",
            f"{path} says oneDNN, which rounds on this machine (error {max(errors):.0e}), so torch's default is used: "
            "the run goes on, but does not repeat the bits of the machine that it began on",
        )
        wanted = "default"
    with products("onednn" if wanted == "onednn" else "default"):
        yield
