"""Windows over a stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueline.tokens.pack import flatten, leftover, windows


@given(length=st.integers(0, 60), context=st.integers(2, 9))
def test_every_token_is_a_target_once(length: int, context: int) -> None:
    """Windows and what they leave over hold every token but the first behind its predecessor, without copying."""
    stream = np.arange(length, dtype=np.int32)
    planned = windows(stream, context)
    rest = leftover(stream, context)
    targets = [*planned[:, 1:].ravel().tolist(), *rest[1:].tolist()]
    assert targets == list(range(1, length))
    assert len(rest) < context
    assert len(planned) == 0 or np.shares_memory(planned, stream)


def test_flatten_and_errors() -> None:
    """One stream in order; a window needs two tokens."""
    joined = flatten([np.array([1, 2]), np.array([3])], dtype=np.uint16)
    assert joined.tolist() == [1, 2, 3] and joined.dtype == np.uint16 and len(flatten([])) == 0
    with pytest.raises(ValueError, match="at least 2"):
        windows(joined, 1)
