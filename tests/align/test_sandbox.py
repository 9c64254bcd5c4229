"""The sandbox of model-written code, attacked: what must not happen does not, and nobody but the tests says that they passed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trueline.align import sandbox
from trueline.align.sandbox import Limits, code_of, run_tests, unit_tests
from trueline.align.verifiers import Verifier, answers_of
from trueline.records import Conversation, Message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux' own")
HONEST = "def add(a, b): return a + b"
SHORT = Limits(seconds=20, cpu_seconds=1, memory_mb=128)
"""The clock is generous, since machines are busy; computing time is not."""


def attempts(actions: list[str]) -> str:
    """Code whose function `tried` tells what each action led to: "done", or the name of the exception."""
    code = "import os, sys\nsaid = []\n"
    for action in actions:
        body = "\n".join("    " + line for line in action.splitlines())
        code += f"try:\n{body}\n    said.append('done')\nexcept BaseException as error:\n    said.append(type(error).__name__)\n"
    return code + "def tried(): return said\n"


def test_right_code_passes_and_wrong_code_does_not() -> None:
    add = "def add(a, b):\n    return a + b\n"
    assert run_tests(add, "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'\nassert add([1], [2]) == [1, 2]").passed
    assert run_tests(add, "from solution import add as plus\ndef test_sum():\n    assert plus(1.5, 2) == 3.5").passed
    wrong = run_tests(add, "def test_sum():\n    assert add(1, 2) == 4, 'sums'")
    assert not wrong.passed and wrong.why == "AssertionError: sums"
    assert "SyntaxError" in run_tests("def add(a, b) return", "assert add(1, 2) == 3").why
    with pytest.raises(ValueError, match=r"are no Python .* every code would fail them"):  # the row is to blame
        run_tests("def add(a, b): return a + b", "assert add(1, 2) ==")
    assert "NameError" in run_tests("pass", "assert add(1, 2) == 3").why
    with pytest.raises(ValueError, match="there are no tests"):
        run_tests(add, " \n")


@pytest.mark.parametrize(
    "tests",
    [
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3",
        "import unittest\nclass TestAdd(unittest.TestCase):\n    def test_sum(self): self.assertEqual(add(1, 2), 3)\n"
        "if __name__ == '__main__':\n    unittest.main()",
        "async def test_sum():\n    assert add(1, 2) == 3",
    ],
)
def test_tests_that_run_nothing_are_refused(tests: str) -> None:
    """Every code would pass them."""
    with pytest.raises(ValueError, match="run none of them"):
        run_tests("def add(a, b): return a - b", tests)
    if "check" in tests:
        assert not run_tests("def add(a, b): return a - b", tests + "\ncheck(add)").passed


def test_a_function_may_be_called_like_a_module() -> None:
    assert run_tests("def bisect(x): return x // 2", "assert bisect(4) == 2").passed


def test_classes_generators_and_exceptions_cross() -> None:
    code = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
def upto(n): yield from range(n)
def kinds(x): return (x, {1: (2,)}, {3}, frozenset([4]), b"5", 1j, None, 10**5000)
"""
    tests = """
stack = Stack()
stack.push((1, "a"))
assert len(stack) == 1 and stack.items == [(1, "a")] and stack.pop() == (1, "a")
try: stack.pop()
except IndexError as error: assert "empty" in str(error)
else: assert False
assert list(upto(3)) == [0, 1, 2]
assert kinds([0]) == ([0], {1: (2,)}, {3}, frozenset([4]), b"5", 1j, None, 10**5000)
"""
    assert run_tests(code, tests).why == ""
    assert "only plain data can" in run_tests("def twice(f): return f(f(1))", "assert twice(lambda x: x + 1) == 3").why


@pytest.mark.parametrize(
    "code",
    [
        HONEST,
        "print('passed')\nprint('{\"passed\": true}')\nraise SystemExit(0)",
        "import os\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"passed\": true, \"why\": \"\"}\\n')\n    except OSError: pass",
        "class Yes:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __lt__ = __gt__ = __le__ = __ge__ = __eq__\n    def __hash__(self): return 5\ndef add(a, b): return Yes()",
        "class Int(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef add(a, b): return Int(7)",
        "import builtins\nbuiltins.AssertionError = None\ndef isinstance(*a): return True\ndef abs(x): return 0\ndef add(a, b): return 7",
        "class math:\n    def isclose(*given): return True\ndef add(a, b): return 7",
        "import sys\nsys.exit = sys.settrace = None\ndef add(a, b):\n    raise SystemExit(0)",
        "def add(a, b): raise StopIteration",
        "import gc\ndef add(a, b):\n    return next((o for o in gc.get_objects() if isinstance(o, str) and 'assert' in o), 0)",
    ],
)  # fmt: skip
def test_the_verdict_cannot_be_forged(code: str) -> None:
    tests = "assert isinstance(add(2, 3), int)\nassert abs(add(2, 3) - 5) < 1e-9\nassert not add(2, 3) != 5\nassert add(2, 3) == 5"
    if "class math" in code:
        tests = "assert math.isclose(add(2, 3), 5)"
    outcome = run_tests(code, tests, SHORT)
    assert outcome.passed == (code == HONEST), outcome


def test_tests_that_stop_early_did_not_pass() -> None:
    code = "def add(a, b): return a + b"
    for early in ("raise SystemExit(0)", "import os; os._exit(0)", "import sys; sys.exit()"):
        assert not run_tests(code, f"{early}\nassert add(1, 1) == 3").passed


REFUSED = [
    ("import socket; socket.socket()", "PermissionError"),
    ("import socket; socket.socketpair()", "PermissionError"),
    ("import socket; socket.create_connection(('127.0.0.1', PORT), 1)", "PermissionError|gaierror|OSError"),
    ("os.fork()", "PermissionError"),
    ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
    ("import subprocess; subprocess.run(['true'])", "PermissionError|FileNotFoundError|OSError"),
    ("os.execv(sys.executable, ['python'])", "PermissionError"),
    ("os.system('true'); raise OSError", "OSError"),
    ("os.kill(os.getppid(), 0)", "PermissionError"),
    ("os.kill(1, 15)", "PermissionError"),
    ("open('here', 'w')", "PermissionError"),
    ("os.mkdir('here')", "PermissionError"),
    ("open('OUTSIDE', 'a')", "PermissionError"),
    ("os.unlink('OUTSIDE')", "PermissionError"),
    ("os.rename('OUTSIDE', 'OUTSIDE.old')", "PermissionError"),
    ("os.symlink('/', 'link')", "PermissionError"),
    ("os.chmod('OUTSIDE', 0)", "PermissionError"),
    ("os.truncate('OUTSIDE', 0)", "PermissionError"),
    ("open('OUTSIDE').read()", "PermissionError"),
    ("open('/etc/passwd').read()", "PermissionError"),
    ("os.listdir('/')", "PermissionError"),
    ("open('/proc/self/environ', 'rb').read()", "PermissionError"),
    ("open('/proc/%d/environ' % os.getppid(), 'rb').read()", "PermissionError"),
    ("os.memfd_create('x')", "PermissionError"),
    ("os.setuid(0); os.chroot('/')", "PermissionError"),
    ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "ValueError|PermissionError|OSError"),
    ("import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)", "PermissionError"),
    ("import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", "PermissionError"),
    ("import fcntl; fcntl.fcntl(0, 10, 9)", "PermissionError"),  # F_SETSIG
    ("import fcntl; fcntl.ioctl(0, 0x8901, b'1234')", "PermissionError"),  # FIOSETOWN
    ("import ctypes\nif ctypes.CDLL(None).syscall(425, 1, None) == -1: raise OSError", "OSError"),  # io_uring_setup
    ("import ctypes\nif ctypes.CDLL(None).syscall(101, 0, 0, 0, 0) == -1: raise OSError", "OSError"),  # ptrace
]  # fmt: skip
"""What the code tries, and the exceptions that are right."""


def test_what_is_refused(tmp_path: Path) -> None:
    """The code goes on after each attempt, and the test sees what came of it; nothing outside has changed."""
    outside = tmp_path / "outside.txt"
    outside.write_text("a secret", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        actions = [action.replace("OUTSIDE", str(outside)).replace("PORT", str(server.getsockname()[1])) for action, _ in REFUSED]
        right = [kinds.split("|") for _, kinds in REFUSED]
        tests = f"for said, kinds, action in zip(tried(), {right!r}, {actions!r}, strict=True):\n    assert said in kinds, (action, said)"
        outcome = run_tests(attempts(actions), tests, Limits(seconds=60, cpu_seconds=5, memory_mb=256))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome.passed, outcome
    assert outside.read_text(encoding="utf-8") == "a secret" and os.listdir(tmp_path) == ["outside.txt"]


FORKS = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
PRINTS = "while True: print('x' * 10**6)"
MEMORY = "x = []\nwhile True: x.append(bytes(10**7))"
SLEEPS = "import time\ntime.sleep(1000)"


def bomb(code: str, seconds: float) -> None:
    """It ends, it did not pass, and no process is left."""
    before = children()
    began = time.monotonic()
    outcome = run_tests(code, "assert answer() == 42", Limits(seconds=seconds, cpu_seconds=1, memory_mb=128))
    assert not outcome.passed
    assert time.monotonic() - began < seconds + 40
    assert children() == before


@pytest.mark.parametrize("code", [FORKS, MEMORY])
def test_bombs_end_and_leave_nothing(code: str) -> None:
    """Endless forks and memory."""
    bomb(code, 20)


def test_the_clock_ends_what_takes_no_computing_time() -> None:
    bomb(SLEEPS, 1.5)


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        PRINTS,
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\nwhile True: pass",
        "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
        "x = 'x' * 10**10",
        "def f(): return f()\nimport sys\nsys.setrecursionlimit(10**9)\nf()",
        "import ctypes\nctypes.string_at(0)",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'[' * 10**6 + b'\\n')\n    except OSError: pass",
        "import os\nfor fd in range(64):\n    try:\n        while True: os.write(fd, b'x' * 10**6)\n    except OSError: pass",
    ],
)  # fmt: skip
def test_other_bombs_end(code: str) -> None:
    """Output without end, loops with all signals ignored, crashes, rubbish and floods over the pipe."""
    bomb(code, 20)


def test_what_was_started_is_dead_when_the_starter_dies(tmp_path: Path) -> None:
    """Killed in the middle, it leaves no process behind."""
    program = (
        "import sys\nfrom trueline.align.sandbox import run_tests, Limits\nprint('ready', flush=True)\n"
        "run_tests('import time\\ntime.sleep(600)', 'f()', Limits(seconds=600))"
    )
    runner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert runner.stdout is not None and runner.stdout.readline() == b"ready\n"
    end = time.monotonic() + 60
    while len(started := children(runner.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1)  # until both are behind the fence
    runner.kill()
    runner.wait()
    runner.stdout.close()
    while any(alive(pid) for pid in started) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(started) == 2 and not any(alive(pid) for pid in started)


def children(of: int | None = None) -> set[int]:
    """Processes that a process has started."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == (of or os.getpid()):
            found.add(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_held_for_plain_users_too() -> None:
    """The same for a user who is not root, when the tests run as root and everybody may read this Python."""
    actions = ["os.fork()", "open('/etc/passwd')", "open('x', 'w')", "import socket; socket.socket()"]
    tests = "assert tried() == ['PermissionError'] * 4, tried()"
    job = f"from trueline.align.sandbox import run_tests; print(run_tests({attempts(actions)!r}, {tests!r}))"
    try:
        done = subprocess.run([sys.executable, "-c", job], user=65534, group=65534, capture_output=True, text=True, cwd="/")
    except PermissionError:
        pytest.skip("not root, or another user cannot read this Python")
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("another user cannot read this package")
    assert "passed=True" in done.stdout, done.stderr


def test_where_it_cannot_be_held_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fence = tmp_path / "fence.py"
    fence.write_text("def fence(seconds, memory, machine):\n    raise OSError('the kernel has no Landlock')\n", encoding="utf-8")
    monkeypatch.setattr(sandbox, "FENCE", fence)
    with pytest.raises(ValueError, match=r"cannot hold it \(the kernel has no Landlock\): unit_tests needs Linux 5.13"):
        run_tests("open('ran', 'w')", "pass")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match=r"this is darwin"):
        run_tests("pass", "pass")


def test_responses_are_judged_by_their_rows_tests() -> None:
    prompt = (Message(role="user", content="Write add(a, b)."),)
    answers = answers_of([Conversation(messages=prompt, answer=["assert add(1, 2) == 3", "assert add(0, 0) == 0"])])
    judge = Verifier(unit_tests(workers=2), answers, "unit_tests")
    texts = ["Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", "def add(a, b): return a * b", "", "I cannot."]
    assert judge.judge(prompt, [(Message(role="assistant", content=text),) for text in texts]) == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="takes a text of Python"):
        unit_tests()([""], 3)


def test_the_code_of_a_response() -> None:
    assert code_of("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```\nc") == "y = 2\n"
    assert code_of("x = 1") == "x = 1"
    assert code_of("```py\nx = '''`'''\n") == "x = '''`'''\n"  # cut off before its end
