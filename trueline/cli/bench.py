"""`trueline bench serve`: what the paged cache saves, simulated on the engine's own blocks and scheduler."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console

from trueline.cli.places import FILE
from trueline.serve.simulate import PLACES, RESERVED, Figure, figures
from trueline.store import write_atomic

PAPER = {
    ("utilisation", "ShareGPT-like", "16"): "96.3%",
    ("utilisation", "ShareGPT-like", str(RESERVED)): "20.4%",
    ("saving by samples", "ShareGPT-like", "2"): "16.2%",
    ("saving by samples", "ShareGPT-like", "6"): "30.5%",
    ("saving by samples", "Alpaca-like", "2"): "6.1%",
    ("saving by samples", "Alpaca-like", "6"): "9.8%",
    ("saving by beams", "ShareGPT-like", "2, alike 0.95"): "44.3%",
    ("saving by beams", "ShareGPT-like", "6, alike 0.95"): "66.3%",
    ("saving by beams", "Alpaca-like", "2, alike 0.95"): "37.6%",
    ("saving by beams", "Alpaca-like", "6, alike 0.95"): "55.2%",
    ("in flight", "ShareGPT-like", "contiguous"): "7.0",
    ("in flight", "ShareGPT-like", "contiguous, exact"): "13.6",
    ("in flight", "ShareGPT-like", "paged"): "30.4",
}
"""What Kwon et al., 2309.06180, measured on real traces with OPT-13B (sections 3, 6.2 and 6.3)."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Simulate the engine's cache without a model, under a minute: its waste by block size, what parallel samples and beams save by
    sharing, and how many requests run at once against contiguous reservation. Lengths are exponential with the means of the
    paper's workloads; what it measured stands beside."""

    requests: int = 200
    """Requests of each simulation; beam searches take a tenth of them."""
    seeds: int = 3
    """Simulations of each figure, with the seeds 0, 1, ...; what is printed is their mean and its standard error."""
    block_size: int = 16
    """Tokens of a block, where it is not what varies."""
    json: Annotated[Path | None, FILE] = None
    """Also write the figures to this file."""

    def run(self) -> None:
        """Simulate and print."""
        if min(self.requests, self.seeds, self.block_size) < 1 or self.block_size > RESERVED:
            raise ValueError(
                f"--requests, --seeds and --block_size must be at least 1, and a block at most {RESERVED} tokens: "
                f"got {self.requests}, {self.seeds} and {self.block_size}"
            )
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"{self.requests} requests, seeds 0 to {self.seeds - 1}, blocks of {self.block_size} tokens where nothing else is said"
        )
        titles = {
            "utilisation": "share of the taken places that hold a token, by block size (the last: one contiguous reservation)",
            "saving by samples": "blocks saved by n samples of a prompt",
            "saving by beams": "blocks saved by beams (width; chance that all beams of a request see the same probabilities)",
            "in flight": f"requests at once in a cache of {PLACES:,} tokens, while others wait",
            "steps": "steps until all are done",
            "preemptions": "preemptions",
        }
        found: list[Figure] = []
        for figure in figures(self.requests, self.seeds, self.block_size):
            if not found or found[-1][:2] != figure[:2]:
                console.print(f"\n{figure.workload}: {titles[figure.about]}", markup=False)
            found.append(figure)
            console.print(line(figure), markup=False)
        if self.json is not None:
            about = {"requests": self.requests, "seeds": self.seeds, "block_size": self.block_size}
            write_atomic(
                self.json, json.dumps({**about, "figures": [figure._asdict() for figure in found]}, indent=2) + "\n"
            )


def line(figure: Figure) -> str:
    """One row: setting, mean, standard error, the paper's figure."""
    share = figure.about.startswith(("utilisation", "saving"))
    mean, error = (f"{100 * value:.1f}%" if share else f"{value:,.1f}" for value in figure[3:])
    paper = PAPER.get(figure[:3])
    return f"  {figure.setting:<20} {mean:>9} +-{error:<7}" + (f" paper {paper}" if paper else "")
