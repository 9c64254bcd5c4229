"""The text of a response while it is drawn: pieces that a reader may see at once, because nothing that follows changes them. No torch.

    stream = TextStream(tokenizer, stops=("\\n\\n",))
    stream.push(token) -> "pie"      stream.push(token) -> ""        stream.finish() -> "ce"

Held back until it is decided: the first bytes of a character, bytes that only together have a text (see `_open`), and what may
be the beginning of a stop string. All pieces together are the decoded response, cut before its first stop string, exactly.
A token costs the decoding of at most WINDOW tokens, however long the response is, but for a run of open bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trueline.serve.stops import MARGIN, find_stop

if TYPE_CHECKING:
    from trueline.tokens.tokenizer import Tokenizer

WINDOW = 5 * MARGIN
"""Tokens that are decoded again; the last MARGIN of them stay as context when it is full."""
UNKNOWN = "\ufffd"
"""How decoders write bytes that are no character (yet)."""
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""Name of a token that is one byte, in vocabularies that fall back to bytes (SentencePiece)."""


class TextStream:
    """Of one response."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        """`stops` are texts that end the response; they and what follows are not text of it. `before` are the ids that the response
        continues: decoders write the first word of a text without its space, but this one is not the first."""
        self._tokenizer, self._stops = tokenizer, stops
        self._hidden = frozenset(tokenizer.control.values())
        self._window: list[int] = [token for token in before[-MARGIN:] if token not in self._hidden]
        self._decided = len(tokenizer.decode(self._window)) if self._window else 0
        """Characters of the window's text that were taken from it."""
        self._pending = ""
        """Taken, but perhaps the beginning of a stop string."""
        self.stopped = False
        """True after a stop string."""

    def push(self, token: int) -> str:
        """What one more token lets a reader see: often its text, sometimes nothing, sometimes more."""
        if self.stopped or token in self._hidden:
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if self._open(text):
            return ""
        self._take(text)
        if len(self._window) >= WINDOW:
            self._window = self._window[-MARGIN:]
            self._decided = len(self._tokenizer.decode(self._window))
        return self._emit(len(self._pending) - self._held())

    def finish(self) -> str:
        """The rest, once the response has ended."""
        if self.stopped:
            return ""
        self._take(self._tokenizer.decode(self._window))
        return self._emit(len(self._pending))

    def _open(self, text: str) -> bool:
        """True while the next token can change the end of the text: a character lacks bytes, or a run of byte tokens goes on, which
        has a text only if all its bytes together have one (tokenizers' ByteFallback)."""
        return text.endswith(UNKNOWN) or BYTE.fullmatch(self._tokenizer.token(self._window[-1])) is not None

    def _take(self, text: str) -> None:
        self._pending += text[self._decided :]
        self._decided = max(self._decided, len(text))

    def _held(self) -> int:
        """Length of the longest end of the pending text with which a stop string begins."""
        longest = min(len(self._pending), max((len(stop) - 1 for stop in self._stops), default=0))
        for size in range(longest, 0, -1):
            if any(stop.startswith(self._pending[-size:]) for stop in self._stops):
                return size
        return 0

    def _emit(self, size: int) -> str:
        end = find_stop(self._pending, self._stops)
        if end is not None:
            self.stopped, size = True, end
        piece, self._pending = self._pending[:size], self._pending[size:]
        return piece
