"""The main job, end to end, on data that any machine has: teach a small model to document Python functions.

main(minutes=18, out=Path("quickstart"))      what `trueline quickstart` runs
"""

from __future__ import annotations

from pathlib import Path


def main(*, minutes: float = 18.0, out: Path = Path("quickstart"), from_scratch: bool = False, seed: int = 0) -> Path:
    """Run all stages in `out` (the same call goes on after a stop) and return the report's path."""
    from trueline.quickstart.job import run

    return run(minutes, Path(out), from_scratch, seed)
