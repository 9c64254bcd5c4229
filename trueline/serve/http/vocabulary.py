"""What single tokens spell: log-probs are given token by token, in text and in bytes. No torch."""

from __future__ import annotations

import codecs
import re

from trueline.tokens.tokenizer import Tokenizer

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
"""A token that is one byte, in vocabularies that fall back to bytes."""


class Vocabulary:
    """The tokens of a tokenizer as bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.hidden = frozenset(tokenizer.control.values())
        decoder = tokenizer.spec.get("decoder") or {}
        chain = decoder.get("decoders", ()) if decoder.get("type") == "Sequence" else (decoder,)
        self._byte_level = any(one.get("type") == "ByteLevel" for one in chain)
        self._byte_of = byte_characters()

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; of a control token, its name's."""
        name = self.tokenizer.token(token)
        if token not in self.hidden and self._byte_level:
            known = [self._byte_of.get(character) for character in name]
            return name.encode("utf-8") if None in known else bytes(byte for byte in known if byte is not None)
        byte = BYTE_TOKEN.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode("utf-8")

    def name(self, token: int) -> str:
        """The same as text; of a token that is part of a character, as OpenAI writes it: bytes:\\xe2\\x82."""
        spelled = self.bytes_of(token)
        try:
            return spelled.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


class Offsets:
    """Where in a text its tokens begin, in characters; a token that only ends a character begins behind it."""

    def __init__(self, vocabulary: Vocabulary, start: int = 0) -> None:
        self._vocabulary, self.place = vocabulary, start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> int:
        """The place of the next token."""
        here = self.place
        if token not in self._vocabulary.hidden:
            self.place += len(self._utf8.decode(self._vocabulary.bytes_of(token)))
        return here


def byte_characters() -> dict[str, int]:
    """GPT-2's visible character of each byte: itself where it is visible, else one from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}
