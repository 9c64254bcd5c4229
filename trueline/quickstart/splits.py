"""Held-out packages, and the proof that nothing of them is trained on.

    functions -> test: functions of TEST_PACKAGES
              -> train: all others whose path, body, name with summary, and summary meet no test function
    texts     -> `HeldOut.holds(text)`: True for a piece of corpus that carries a test function's body or docstring

Bodies are compared by shingles: SHINGLE consecutive code tokens, hashed. Two bodies meet when the smaller shares at
least OVERLAP of its shingles.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trueline.quickstart.functions import Function, normalised
from trueline.quickstart.words import STOP_WORDS
from trueline.run import Bar

TEST_PACKAGES = (
    "rich", "fsspec",
    "asyncio", "configparser", "email", "http", "json", "shutil", "tarfile", "urllib", "zipfile",
)  # fmt: skip
"""Terminal rendering, file systems, event loops, mail, web, archives: on every machine that runs Trueline, and unlike one another."""

DISTINCTIVE = frozenset({"rich", "fsspec"})
"""Test packages whose name, as a folder or file anywhere, means a copy or an adapter of them; `http` or `json` may be anything."""

SHINGLE = 6
OVERLAP = 0.5
MIN_SHINGLES = 8
"""Bodies with fewer shingles say nothing of their origin: they are compared whole, under the same name."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Functions to train on and functions to test on, each in the order of the harvest."""

    train: tuple[Function, ...]
    test: tuple[Function, ...]
    removed: dict[str, int]
    """Functions kept out of both, by reason."""


def code_tokens(text: str) -> list[str]:
    """Identifiers, numbers and operators; white space and quotes do not count."""
    return re.findall(r"\w+|[^\w\s\"']", text)


def shingles(text: str, size: int = SHINGLE) -> set[int]:
    """Hashes of every `size` consecutive code tokens."""
    tokens = code_tokens(text)
    return {zlib.crc32(" ".join(tokens[i : i + size]).encode()) for i in range(len(tokens) - size + 1)}


class HeldOut:
    """An index of the test functions that answers whether a text or a function meets one of them."""

    def __init__(self, test: Sequence[Function]) -> None:
        self.test = tuple(test)
        self.bodies = [shingles(f.body) for f in self.test]
        self.index: dict[int, list[int]] = defaultdict(list)
        for number, body in enumerate(self.bodies):
            if len(body) >= MIN_SHINGLES:
                for shingle in sorted(body):
                    self.index[shingle].append(number)
        self.named = {(f.name.lower(), normalised(f.summary)) for f in self.test}
        self.short = {
            (f.name.lower(), " ".join(code_tokens(f.body)))
            for f, body in zip(self.test, self.bodies, strict=True)
            if len(body) < MIN_SHINGLES
        }
        self.summaries = {said for _, said in self.named if _telling(said)}
        self.openings: dict[str, list[str]] = defaultdict(list)
        for said in sorted(self.summaries):
            self.openings[" ".join(said.split()[:3])].append(said)

    def reason(self, function: Function) -> str:
        """Why a function may not be trained on, or ""."""
        if function.package in TEST_PACKAGES:
            return "held-out package"
        if carries_test_package(function.path):
            return "copy of or adapter to a held-out package"
        said = normalised(function.summary)
        if (function.name.lower(), said) in self.named:
            return "name and summary of a test function"
        if said in self.summaries:
            return "summary of a test function"
        if (function.name.lower(), " ".join(code_tokens(function.body))) in self.short:
            return "name and body of a test function"
        body = shingles(function.body)
        if len(body) >= MIN_SHINGLES and self._meets(body, len(body)):
            return "near-duplicate body of a test function"
        return ""

    def holds(self, text: str) -> bool:
        """True when a piece of corpus carries the body or the telling summary of a test function."""
        if self._meets(shingles(text), None):
            return True
        words = re.findall(r"[a-z0-9]+", text.lower())
        for at in range(len(words) - 2):
            for said in self.openings.get(f"{words[at]} {words[at + 1]} {words[at + 2]}", ()):
                if " ".join(words[at : at + said.count(" ") + 1]) == said:
                    return True
        return False

    def overlap(self, function: Function) -> float:
        """The largest share of shingles that a test function has in common with this one, of the smaller of the two."""
        body = shingles(function.body)
        shared = self._shared(body)
        return max((count / min(len(body), len(self.bodies[number])) for number, count in shared.items()), default=0.0)

    def _shared(self, body: set[int]) -> Counter[int]:
        return Counter(number for shingle in body if shingle in self.index for number in self.index[shingle])

    def _meets(self, body: set[int], size: int | None) -> bool:
        for number, count in self._shared(body).items():
            smaller = len(self.bodies[number]) if size is None else min(size, len(self.bodies[number]))
            if count >= OVERLAP * smaller:
                return True
        return False


def _telling(said: str) -> bool:
    """Whether a normalised summary is too particular to be met by chance: at least six words, four of them content."""
    words = said.split()
    return len(words) >= 6 and sum(w not in STOP_WORDS for w in words) >= 4


def carries_test_package(path: str) -> bool:
    """Whether a path names a distinctive test package below its top level (vendored copies, adapters)."""
    parts = re.split(r"[/\\]", path.split(":")[0].removesuffix(".py"))
    return any(part.lower().lstrip("_") in DISTINCTIVE for part in parts)


def split(functions: Iterable[Function]) -> Split:
    """Test functions of the named packages, and everything else that does not meet them."""
    functions = list(functions)
    test = [f for f in functions if f.package in TEST_PACKAGES]
    held_out = HeldOut(test)
    removed: Counter[str] = Counter()
    train = []
    with Bar(len(functions), "kept apart from the test packages: functions") as bar:
        for number, function in enumerate(functions, 1):
            bar.update(number)
            if function.package in TEST_PACKAGES:
                continue
            why = held_out.reason(function)
            if why:
                removed[why] += 1
            else:
                train.append(function)
    return Split(train=tuple(train), test=tuple(test), removed=dict(sorted(removed.items())))
