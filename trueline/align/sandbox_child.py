"""A process of the sandbox: either the code that a model wrote, or the tests of it. Never both in one, so that the code can neither
read the tests nor change what they compare with, nor say how they ended. Imports nothing of Trueline.

    python -I -S -B sandbox_child.py code|tests REQUESTS REPLIES         source on standard input, then it is fenced in

The tests see the code's functions and classes by their names. A call goes over a pipe as JSON; plain data (numbers, texts, bytes, lists,
tuples, sets, dictionaries) comes back as what it is, everything else as a `Remote`, which can be called, iterated, indexed and asked for
its length, attributes and text, but never compares equal to anything: what is compared is data, and it is compared here.
Left out: handing functions of the tests to the code, arithmetic with the code's own objects.
"""

from __future__ import annotations

import builtins
import importlib
import json
import operator
import os
import sys
from importlib.machinery import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:  # two of these start for every response: what only the reader needs is not loaded
    from collections.abc import Callable, Iterator
    from typing import Any

ModuleType = type(sys)
LONGEST = 1 << 24
"""Bytes of a line over the pipes."""
KNOWN = ("math", "re", "collections", "itertools", "functools", "json", "random", "datetime")
"""Modules that tests may use without importing them: Python's, whatever the code calls by these names."""
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda thing, given, named: thing(*given, **named), "get": getattr, "iter": iter, "next": next, "len": len,
    "item": operator.getitem, "has": operator.contains, "text": str,
}  # fmt: skip


class Source(SourceFileLoader):
    """A module from a text, without a file."""

    def __init__(self, name: str, text: str):
        super().__init__(name, f"<{name}>")
        self.text = text

    def get_data(self, path: str) -> bytes:
        return self.text.encode("utf-8", errors="replace")

    def path_stats(self, path: str) -> dict[str, Any]:
        raise OSError("nothing is cached")


def module_of(name: str, text: str, names: dict[str, Any]) -> ModuleType:  # type: ignore[valid-type]
    """Run a text as a module in which these names are known."""
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
    Source(name, text).exec_module(module)
    return module


# --- values over the pipe ---------------------------------------------------------------------------------------------


def packed(value: Any, keep: Callable[[Any], int]) -> Any:
    """Plain data with its type; `keep` numbers what is none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    inside = lambda: [packed(one, keep) for one in value]  # noqa: E731
    match value:
        case list() | tuple() | set() | frozenset():
            kind = next(kind for kind in (list, tuple, frozenset, set) if isinstance(value, kind))
            return {kind.__name__: inside()}
        case dict():
            return {"dict": [[packed(key, keep), packed(one, keep)] for key, one in value.items()]}
        case bytes() | bytearray():
            return {"bytes": value.hex()}
        case complex():
            return {"complex": [value.real, value.imag]}
    return {"remote": keep(value)}


def unpacked(value: Any, remote: Callable[[int], Any]) -> Any:
    """The reverse."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "remote":
        return remote(held)
    if kind == "dict":
        return {unpacked(key, remote): unpacked(one, remote) for key, one in held}
    if kind == "bytes":
        return bytes.fromhex(held)
    if kind == "complex":
        return complex(*held)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpacked(one, remote) for one in held)


# --- the code ---------------------------------------------------------------------------------------------------------


def serve(text: str, requests: int, replies: int) -> None:
    """Run the code, say its names, then answer calls until there are no more."""
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def reply(work: Callable[[], Any]) -> None:
        try:
            line = json.dumps({"value": packed(work(), keep)})
        except BaseException as error:  # the code may raise anything; the tests are told
            line = json.dumps({"raise": type(error).__name__, "text": str(error)[:500]})
        _write(replies, line.encode() + b"\n")

    def names() -> dict[str, Any]:
        module = module_of("solution", text, {})
        return {name: value for name, value in vars(module).items() if not name.startswith("_") and type(value) is not ModuleType}

    reply(names)
    with open(requests, "rb") as lines:
        for line in lines:
            operation, given = json.loads(line)
            reply(lambda: OPERATIONS[operation](*unpacked(given, objects.__getitem__)))  # noqa: B023


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


# --- the tests --------------------------------------------------------------------------------------------------------


class Code:
    """The other process."""

    def __init__(self, requests: int, replies: int):
        self.requests, self.replies = requests, open(replies, "rb")  # noqa: SIM115

    def ask(self, operation: str, *given: Any) -> Any:
        """What the operation gives there; its exceptions are raised here."""
        _write(self.requests, json.dumps([operation, packed(given, _number)]).encode() + b"\n")
        return self.answer()

    def answer(self) -> Any:
        line = self.replies.readline(LONGEST)
        if not line.endswith(b"\n"):
            raise RuntimeError("the code ended, or gave more than 16 MB" if line else "the code ended its own process")
        found = json.loads(line)
        if "raise" in found:
            kind = vars(builtins).get(found["raise"])
            raised = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
            raise raised(f"{found['text']}" if raised is kind else f"{found['raise']}: {found['text']}")
        return unpacked(found["value"], lambda number: Remote(self, number))


class Remote:
    """A thing of the code's that is no plain data. Equal to itself only, whatever the code says about equality."""

    def __init__(self, code: Code, number: int):
        self._code, self._number = code, number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._code.ask("get", self, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._code.ask("call", self, given, named)

    def __iter__(self) -> Iterator[Any]:
        return self._code.ask("iter", self)

    def __next__(self) -> Any:
        return self._code.ask("next", self)

    def __len__(self) -> int:
        return self._code.ask("len", self)

    def __getitem__(self, key: Any) -> Any:
        return self._code.ask("item", self, key)

    def __contains__(self, value: Any) -> bool:
        return self._code.ask("has", self, value)

    def __str__(self) -> str:
        return self._code.ask("text", self)

    def __bool__(self) -> bool:
        return True


def _number(value: Any) -> int:
    if not isinstance(value, Remote):
        raise TypeError(f"a {type(value).__name__} of the tests cannot be handed to the code: only plain data can")
    return value._number


def check(text: str, requests: int, replies: int) -> None:
    """Run the tests. Returns where they hold."""
    code = Code(requests, replies)
    names = code.answer()
    library = {name for name in KNOWN if name in text}
    ours = {name: value for name, value in names.items() if name not in vars(builtins) and name not in library}
    solution = ModuleType("solution")
    vars(solution).update(names)
    sys.modules["solution"] = solution
    tests = module_of("tests", text, ours | {name: importlib.import_module(name) for name in library})
    for name, function in list(vars(tests).items()):
        if name.startswith("test") and callable(function) and not isinstance(function, Remote):
            function()


def main() -> None:
    """Take the source, go behind the fence, do one's part. Standard output carries one line: how it went."""
    role, requests, replies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    job = json.loads(sys.stdin.buffer.read())
    verdict, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    fence = ModuleType("fence")
    SourceFileLoader("fence", job["fence"]).exec_module(fence)
    try:
        fence.fence(job["seconds"], job["memory"], job["machine"])
    except (OSError, ValueError) as error:
        _write(verdict, json.dumps({"refused": str(error)}).encode())
        return
    sys.set_int_max_str_digits(0)
    if role == "code":
        os.close(verdict)
        serve(job["source"], requests, replies)
        return
    try:
        check(job["source"], requests, replies)
        outcome = {"passed": True, "why": ""}
    except BaseException as error:  # sys.exit too: tests that did not come to their end did not pass
        outcome = {"passed": False, "why": f"{type(error).__name__}: {error}"[:500]}
    _write(verdict, json.dumps(outcome).encode())


if __name__ == "__main__":
    main()
