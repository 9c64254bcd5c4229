"""Where the time of a run goes: drawing responses, scoring them, learning from them.

    clock.begin(report.seconds)      a round is here; what its feed took
    clock.lap("scoring")             what passed since the last lap
    split(metrics.jsonl)             the whole run's, in a sentence
    clock.take()                     {"time/sampling": 3.1, "time/scoring": 0.4, "time/learning": 1.7}, seconds since the last call

Of stored rows nothing is told: they cost no time. Kept outside the state of a run: a checkpoint holds no clock.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from trueline.run import read_lines


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def begin(self, seconds: Mapping[str, float]) -> None:
        """Add what a feed says, and count from here."""
        for name, value in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + value
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Add the time since the last lap, if the feed tells its own."""
        now = time.monotonic()
        if self._seconds:
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """What there is, and from zero again."""
        found = {f"time/{name}": value for name, value in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return found


def split(metrics: Path) -> str:
    """Where the time of a run went so far, by what its lines say; nothing where they tell no times."""
    seconds: Counter[str] = Counter()
    for line in read_lines(metrics) if metrics.exists() else []:
        seconds.update({name.removeprefix("time/"): value for name, value in line.items() if name.startswith("time/") and value})
    if not seconds:
        return ""
    total = seconds.total()
    return "time: " + ", ".join(f"{name} {spent:,.1f} s ({spent / total:.0%})" for name, spent in seconds.items())
