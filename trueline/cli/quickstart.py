"""`trueline quickstart`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Teach a small model to document Python functions the way people prefer: supervised tuning, comparisons by a
    stated rule, a reward model; then best-of-n, DPO, RSO, PPO and online DPO, compared at equally many updates and
    measured on packages that no model has seen. Needs no download. The same command goes on after a stop;
    `report.html` is written at the end and says which method to choose, and why."""

    minutes: float = 18.0
    """Time to plan for on this machine. It becomes step counts before training, so resuming stays exact."""
    out: Path = Path("quickstart")
    """Folder of all stages."""
    from_scratch: bool = False
    """Train tokenizer and base model too, within the same minutes. Expect fluent nonsense."""
    seed: int = 0
    """Seeds harvest order, training, sampling and the annotator's noise."""

    def run(self) -> None:
        """Hand over to the quickstart."""
        from trueline.quickstart import main

        main(minutes=self.minutes, out=self.out, from_scratch=self.from_scratch, seed=self.seed)
