"""How hard the readers are tried: a sample by default, the same again and again. `make soak` draws new ones, and more:
TRUELINE_FUZZ says how many."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from trueline import cli

QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
SAMPLE = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=QUIET)
SOAK = settings(max_examples=int(os.environ.get("TRUELINE_FUZZ", "1500")), deadline=None, suppress_health_check=QUIET)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "{", "[1]"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "name", "x"]), inner, max_size=3),
    max_leaves=8,
)
"""Small JSON values, some of which look like messages."""


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few of them changed, left out, doubled or cut off."""
    place = st.integers(0, len(data))
    edit = st.tuples(st.sampled_from(["set", "drop", "double", "cut", "insert"]), place, st.integers(1, 30), st.binary(max_size=6))

    def apply(edits: list[tuple[str, int, int, bytes]]) -> bytes:
        found = data
        for kind, at, size, new in edits:
            middle = {
                "set": new + found[at + len(new) :], "drop": found[at + size :], "double": found[at : at + size] + found[at:],
                "cut": b"", "insert": new + found[at:],
            }  # fmt: skip
            found = found[:at] + middle[kind]
        return found

    return st.lists(edit, min_size=1, max_size=4).map(apply)


def sentence_or_nothing(action: Callable[[], object]) -> str:
    """Do it. What fails is a sentence to the user, in one line; anything else is a defect and passes through."""
    try:
        action()
    except Exception as error:
        said = cli.explain(error)
        if said is None:
            raise
        assert said.strip() and not isinstance(error, MemoryError), said
        return said
    return ""


@pytest.fixture(scope="session")
def spot(tmp_path_factory: pytest.TempPathFactory):
    """A folder for the files of one example after the other."""
    return tmp_path_factory.mktemp("fuzz")
