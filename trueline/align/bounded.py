"""Checks that may never end, in a process that can be ended: patterns and JSON schemas over text that a model wrote.

    check = Bounded("regex", "(a+)+$", seconds=1);   check(["aaaa", "aaaa...b"], None)   -> [1.0, 0.0]

A pattern can take longer than the age of the universe on the wrong text, and Python's search cannot be interrupted from outside.
So a child (`bounded_child.py`) is asked, one line of JSON per text; when it does not answer in time it is ended, the text counts
as wrong, and the next one gets a new child. The child lives as long as the check.
Left out: code (`trueline.align.sandbox`). The child may do all that its user may; it runs rules, no programs.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

CHILD = Path(__file__).with_name("bounded_child.py")
STARTING = 60.0
"""Seconds that a new child has for its imports, on a busy machine too."""


class Bounded:
    """A check of responses with a time limit for each."""

    def __init__(self, kind: str, rule: Any, seconds: float):
        self.kind, self.rule, self.seconds = kind, rule, seconds
        self.stopped = 0
        """Texts whose check took too long."""
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __call__(self, responses: Sequence[str], answer: Any) -> list[float]:
        """1 or 0 for each response. ValueError: the rule is none."""
        return [self._one(text, answer) for text in responses]

    def _one(self, text: str, answer: Any) -> float:
        with self._lock:
            if self._child is None:
                self._child = _Child(self.kind)
            rule = answer if self.rule is None else self.rule
            found = self._child.ask({"kind": self.kind, "rule": rule, "text": text}, self.seconds)
            if found is None:
                self._child = None
                self.stopped += 1
                return 0.0
        if "wrong" in found:
            raise ValueError(f"{self.kind}: {found['wrong']}")
        return float(found["fits"])


class _Child:
    def __init__(self, kind: str) -> None:
        command = [sys.executable, "-I", str(CHILD), kind]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, self._process.kill)
        self._lines: queue.Queue[bytes] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=_forward, args=(self._process.stdout, self._lines), daemon=True).start()
        if self._line(STARTING) != b"ready\n":
            raise ValueError("the process that checks responses did not start; is the machine out of memory?")

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer; None when there was none in time, and then the child is at its end."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode("ascii") + b"\n")
            self._process.stdin.flush()
            line = self._line(seconds)
        except OSError:
            line = b""
        if line:
            return json.loads(line)
        self._process.kill()
        self._process.wait()
        return None

    def _line(self, seconds: float) -> bytes:
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return b""


def _forward(pipe: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """Reading a pipe cannot be timed on every system, waiting for a queue can."""
    for line in pipe:
        lines.put(line)
    lines.put(b"")
    pipe.close()
