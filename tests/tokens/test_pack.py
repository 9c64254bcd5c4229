"""Windows over a stream and bins of sequences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueline.tokens.pack import fill_bins, flatten, leftover, windows


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
    with pytest.raises(ValueError, match="sequence 1 has 9 tokens"):
        fill_bins([3, 9], 8)


@given(lengths=st.lists(st.integers(0, 20), max_size=40))
def test_bins_hold_everything_once(lengths: list[int]) -> None:
    """No bin is over-full, nothing is lost, and no two bins would fit into one."""
    bins = fill_bins(lengths, 20)
    assert sorted(i for group in bins for i in group) == list(range(len(lengths)))
    loads = sorted(sum(lengths[i] for i in group) for group in bins)
    assert all(load <= 20 for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > 20 or loads[0] == 0


def test_best_fit() -> None:
    """Longest first, into the fullest bin with room."""
    assert fill_bins([5, 3, 8, 2, 2, 7, 1], 10) == [[2, 3], [5, 1], [0, 4, 6]]
