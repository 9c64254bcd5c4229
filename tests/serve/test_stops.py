"""Stop strings: the window that is decoded at each token finds what decoding everything would find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from trueline.serve.stops import cut, find_stop, hits_stop
from trueline.tokens.tokenizer import Tokenizer


def test_find_and_cut() -> None:
    assert find_stop("a b c", ("c", "b")) == 2
    assert find_stop("abc", ("x",)) is None
    assert cut("one\n\ntwo", ("\n\n",)) == "one" and cut("one", ("\n",)) == "one" and cut("\nx", ("\n",)) == ""


@pytest.mark.parametrize(
    "stops", [("é",), ("e s",), ("\n", "values"), ("um of the valu",), ("sum of",), ("naïv", " — ")]
)
def test_the_window_misses_nothing(tokenizer: Tokenizer, stops: Sequence[str]) -> None:
    """Token by token over real text, random bytes and special tokens: stops at the same token as full decoding."""

    hidden = frozenset(tokenizer.control.values())
    rng = np.random.default_rng(0)
    text = "The sum of the values, naïvely — the café's.\n"
    streams = [
        tokenizer.encode(text),
        tokenizer.encode(text * 3)[::-1],
        tokenizer.encode("the sum<|im_end|><|pad|>" + "<|im_end|>" * 30 + " of", allow_special=True),
    ]
    streams += [rng.integers(0, tokenizer.vocab_size, 120).tolist() for _ in range(10)]
    streams += [
        np.concatenate([rng.permutation(tokenizer.encode(text)), tokenizer.encode(text)]).tolist() for _ in range(10)
    ]
    hits = 0
    for ids in streams:
        for end in range(1, len(ids) + 1):
            expected = any(stop in tokenizer.decode(ids[:end]) for stop in stops)
            assert hits_stop(ids[:end], stops, tokenizer.decode, hidden) == expected, (stops, end)
            if expected:
                hits += 1
                break
    assert hits
