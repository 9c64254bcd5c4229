"""`trueline tradeoff`: what two reward models give when one or the other weighs more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from trueline.align.group import judged
from trueline.cli.judge import groups_of, judge_named
from trueline.cli.places import FILE
from trueline.evals.tradeoff import WEIGHTS, table, tradeoff
from trueline.store import write_atomic

JUDGE = tyro.conf.arg(metavar="DIR_OR_HUB_ID|FILE.py:FUNCTION")


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """Score drawn responses by two reward models, such as a helpful and a harmless one, and print what the best of each
    prompt's responses has of both, from all weight on the second to all weight on the first. The responses are lines of prompt
    and responses, as trueline sample writes them."""

    data: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")]
    """Responses: JSON lines with prompt and responses."""
    first: Annotated[str, JUDGE]
    """A reward model, or a rule of yours."""
    second: Annotated[str, JUDGE]
    """Another one."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="WEIGHT ...")] = WEIGHTS
    """Weights of the first, from 0 to 1."""
    out: Annotated[Path | None, FILE] = None
    """Also write the curve to this JSON file."""
    max_length: int = 1024
    """Longest prompt and response in tokens that a reward model reads; what is longer is cut."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""

    def run(self) -> None:
        """Score twice, choose at every weight, print."""
        several = [group for group, _ in groups_of(self.data) if len(set(group.responses)) > 1]
        if not several:
            raise ValueError(f"{self.data} has no prompt with two different responses: draw several with trueline sample --n 8")
        goals = [judge_named(name, self.max_length, self.device) for name in (self.first, self.second)]
        first, second = ([group.scores for group in judged(several, judge)] for judge in goals)
        points = tradeoff(first, second, self.weights)
        names = Path(self.first).name, Path(self.second).name
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"the best response of each of {len(several):,} prompts; scores less their mean over all, with 95% intervals")
        console.print(table(points, names if names[0] != names[1] else ("first", "second")), markup=False)
        if self.out is not None:
            about = {"first": self.first, "second": self.second, "curve": [point.to_dict() for point in points]}
            write_atomic(self.out, json.dumps(about, indent=2) + "\n")
