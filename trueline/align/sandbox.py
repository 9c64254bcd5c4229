"""Code that a model wrote, run against a row's tests: what it may do is a short list, and it cannot say itself that it passed.

    run_tests("def add(a, b): return a + b", "assert add(1, 2) == 3")     -> Outcome(passed=True, why="")

Two processes, both fenced in (`sandbox_fence`): one runs the code, the other the tests, which call the code over a pipe and compare
plain data on their own side (`sandbox_child`). Neither has a network, files but Python's own, a way to write anything, or a second
process or thread; both have limits of time and memory, an empty folder, an empty environment, and a session of their own. What they
print goes nowhere. At the end of the time both are killed; there can be no others.

Where the kernel cannot hold such a process nothing is run: ValueError. It can from Linux 5.13 on (x86-64 and arm64), with Landlock
switched on and in containers, too, for root and for everybody else.
Left out: installed packages (the code has Python's standard library), code that reads its input and prints its answer, bounds on
how often the code looks at the clock, and secrecy of what files there are (their names and sizes, not what they hold).
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHILD, FENCE = (Path(__file__).with_name(f"sandbox_{part}.py") for part in ("child", "fence"))
LONGEST_VERDICT = 1 << 14
"""Bytes."""
DEFINITIONS = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign
)  # fmt: skip
"""Statements that test nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one process; two run for each response."""

    seconds: float = 10.0
    """On the clock, for both together."""
    cpu_seconds: int = 5
    """Of computation."""
    memory_mb: int = 512
    """Address space; Python alone takes about 30."""


@dataclass(frozen=True)
class Outcome:
    """How the tests ended."""

    passed: bool
    why: str
    """What failed; empty where they passed."""


def run_tests(code: str, tests: str, limits: Limits = Limits()) -> Outcome:
    """Whether the tests, Python source with asserts and test functions, hold for the code. ValueError: it cannot be held here."""
    if sys.platform != "linux":
        raise ValueError(_refusal(f"this is {sys.platform}"))
    if not tests.strip():
        raise ValueError("there are no tests: a row without any would let every code pass")
    refuse_no_python(tests)
    if runs_nothing(tests):
        raise ValueError(
            f"the tests {tests.strip()[:60]!r} define things and run none of them, so every code would pass: write asserts, functions "
            "named test..., or a last line that calls what is defined, such as check(add)"
        )
    asked, answered = os.pipe(), os.pipe()
    ours = {*asked, *answered}
    with tempfile.TemporaryDirectory(prefix="trueline-") as folder:
        children = []
        try:
            for role, source, ends in (("code", code, (asked[0], answered[1])), ("tests", tests, (asked[1], answered[0]))):
                children.append(_child(role, source, ends, limits, folder))
                for end in ends:
                    ours.remove(end)
                    os.close(end)
            return _verdict(children[1], limits)
        finally:
            for child in children:
                child.kill()
                child.wait()
                if child.stdout is not None:
                    child.stdout.close()
            for end in ours:
                os.close(end)


def refuse_no_python(tests: str) -> None:
    """Tests that cannot be read fail every code: the row is to blame, not the model."""
    try:
        ast.parse(tests)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests {tests.strip()[:60]!r} are no Python ({error}): every code would fail them") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"the tests {tests.strip()[:60]!r} are nested too deep to be read") from None


def runs_nothing(tests: str) -> bool:
    """Whether a text only defines: neither a statement that does something nor a function named test..., which would be called. Classes
    of unittest are such, and so is a check(candidate) that nobody calls."""
    for one in ast.parse(tests).body:
        if isinstance(one, ast.FunctionDef) and one.name.startswith("test"):
            return False
        main = isinstance(one, ast.If) and "__name__" in ast.dump(one.test)  # the tests are no program
        text = isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
        calls = isinstance(one, ast.Assign) and any(isinstance(part, ast.Call) for part in ast.walk(one))
        if calls or not (isinstance(one, DEFINITIONS) or main or text):
            return False
    return True


def unit_tests(limits: Limits = Limits(), workers: int = 0) -> UnitTests:
    """A check for `Verifier`: the answer of a row is its tests, a text or a list of texts."""
    return UnitTests(limits, workers or os.cpu_count() or 1)


@dataclass(frozen=True)
class UnitTests:
    """1 for each response whose code passes. Several responses are tested at a time."""

    limits: Limits
    workers: int

    def __call__(self, responses: Sequence[str], answer: Any) -> list[float]:
        """1 or 0 for each response."""
        if isinstance(answer, list) and all(isinstance(one, str) for one in answer):
            answer = "\n".join(answer)
        if not isinstance(answer, str):
            raise ValueError(f"unit_tests takes a text of Python, or a list of such; a row's answer is {str(answer)[:60]!r}")
        tests: str = answer
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            outcomes = list(pool.map(lambda response: run_tests(code_of(response), tests, self.limits), responses))
        return [float(outcome.passed) for outcome in outcomes]


def code_of(response: str) -> str:
    """What stands in the last ``` fence, or the whole response where there is none."""
    found = re.findall(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", response, re.DOTALL | re.MULTILINE)
    return found[-1] if found else response


def _child(role: str, source: str, ends: tuple[int, int], limits: Limits, folder: str) -> subprocess.Popen[bytes]:
    """Ends are the pipe of requests and that of replies, as this role uses them."""
    job = {
        "source": source, "fence": str(FENCE), "machine": platform.machine(), "seconds": limits.cpu_seconds,
        "memory": limits.memory_mb << 20,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD), role, str(ends[0]), str(ends[1])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE if role == "tests" else subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=folder, env={"LANG": "C.UTF-8"}, pass_fds=ends, start_new_session=True,
    )  # fmt: skip
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(job).encode("ascii"))
        child.stdin.close()
    except OSError:  # it died first; the verdict will be missing
        pass
    return child


def _verdict(tests: subprocess.Popen[bytes], limits: Limits) -> Outcome:
    """What the process of the tests says within the time, and no more than a verdict is long."""
    assert tests.stdout is not None
    end, said = time.monotonic() + limits.seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(tests.stdout, selectors.EVENT_READ)
        while len(said) < LONGEST_VERDICT:
            if not selector.select(max(0.0, end - time.monotonic())):
                return Outcome(False, f"not over after {limits.seconds:g} s")
            piece = os.read(tests.stdout.fileno(), LONGEST_VERDICT)
            if not piece:
                break
            said += piece
    try:
        found = json.loads(said)
    except ValueError:
        return Outcome(False, "the tests ended without a verdict: out of time, out of memory, or a crash")
    if "refused" in found:
        raise ValueError(_refusal(found["refused"]))
    return Outcome(found["passed"], found["why"])


def _refusal(reason: str) -> str:
    return (
        f"code that a model wrote is not run here, since this system cannot hold it ({reason}): unit_tests needs Linux 5.13 "
        "or newer on x86-64 or arm64, with Landlock and seccomp"
    )

