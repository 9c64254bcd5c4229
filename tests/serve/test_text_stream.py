"""Text in pieces: together they are the decoded response, each comes as early as it may, and none is ever taken back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trueline.serve.stops import cut
from trueline.serve.text_stream import WINDOW, TextStream
from trueline.tokens.tokenizer import Tokenizer

TEXT = "The sum of the values, naïvely — the café's: 世界 😀😀.\n\nclass Sum:\n    pass\n"


@pytest.fixture(scope="module")
def fallback() -> Tokenizer:
    """As SentencePiece models do it: words begin with a visible space, what has no token is spelled in bytes."""
    words = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz.,:'", "▁the", "▁sum", "▁of"]
    joins = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    vocab = {word: i for i, word in enumerate([*words, "▁t", "▁th"])}
    spec = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": 1, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": joins},
    }  # fmt: skip
    return Tokenizer(spec, names={"eos_token": "</s>"})


@pytest.fixture(params=["byte-level", "fallback"])
def either(request: pytest.FixtureRequest, tokenizer: Tokenizer, fallback: Tokenizer) -> Tokenizer:
    return tokenizer if request.param == "byte-level" else fallback


def pieces(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    """One piece per token, and the rest."""
    stream = TextStream(tokenizer, stops)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("stops", [(), ("\n\nclass",), ("é", "um of"), ("s", "sum", "\n"), ("values, naïvely — the", "zzz"), ("😀😀",)])
def test_all_pieces_are_the_text(either: Tokenizer, stops: tuple[str, ...]) -> None:
    """Real text, the same shuffled (half characters anywhere), random tokens, special ones in between."""
    rng = np.random.default_rng(0)
    ids = either.encode(TEXT)
    streams = [ids, ids * 3, either.encode("  the  sum") + [either.eos_id or 0] * 20 + ids]
    streams += [rng.permutation(ids).tolist() for _ in range(10)]
    streams += [rng.integers(0, either.vocab_size, 2 * WINDOW).tolist() for _ in range(10)]
    for one in streams:
        assert "".join(pieces(either, one, stops)) == cut(either.decode(one), stops)


def test_plain_text_is_shown_token_by_token(either: Tokenizer) -> None:
    ids = either.encode("the sum of the sum")
    shown = pieces(either, ids)
    assert all(shown[:-1]) and shown[-1] == ""


def test_a_character_waits_for_its_last_byte(either: Tokenizer) -> None:
    shown = pieces(either, either.encode("the 😀 the"))
    assert "".join(shown) == "the 😀 the" and not any("\ufffd" in piece for piece in shown)
    assert sum("😀" in piece for piece in shown) == 1


def test_only_what_may_become_a_stop_waits(tokenizer: Tokenizer) -> None:
    """Not a fixed number of characters: a stop that nothing points to delays nothing."""
    ids = tokenizer.encode("The sum of the values")
    assert all(pieces(tokenizer, ids, ("Zebra" * 20,))[:-1])
    stream = TextStream(tokenizer, ("of them",))
    shown = "".join(stream.push(token) for token in tokenizer.encode("The sum of the"))
    assert shown == "The sum " and not stream.stopped and stream.finish() == "of the"


def test_nothing_follows_a_stop(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, (" of",))
    shown = "".join(stream.push(token) for token in tokenizer.encode("The sum of the values"))
    assert shown == "The sum" and stream.stopped and stream.finish() == ""


def test_a_long_response_decodes_a_window(tokenizer: Tokenizer) -> None:
    longest = 0

    class Counting(TextStream):
        def push(self, token: int) -> str:
            nonlocal longest
            longest = max(longest, len(self._window) + 1)
            return super().push(token)

    stream = Counting(tokenizer)
    ids = tokenizer.encode(TEXT) * 20
    assert "".join(stream.push(token) for token in ids) + stream.finish() == tokenizer.decode(ids)
    assert longest <= WINDOW + 4


def test_it_needs_no_torch() -> None:
    code = "import sys, trueline.serve.text_stream; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
