"""How a function is put to the model: lower-case words separated by spaces, so that prompt and prose share tokens,
then a little of the body.

    name: read config file
    class: config reader
    arguments: path encoding
    calls: open json load
    body:
    <at most max_body_tokens tokens of source>

Lines without content (no class, no arguments, no calls) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from trueline.quickstart.functions import Function
from trueline.quickstart.words import split_name

MAX_CALLED_WORDS = 24


class Cutter(Protocol):
    """The part of a tokenizer that cutting needs."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


def prompt_text(function: Function, max_body_tokens: int, tokenizer: Cutter | None) -> str:
    """Content of the user message. Without a tokenizer a token counts as three characters."""
    lines = [f"name: {spaced([function.name])}"]
    if function.owner:
        lines.append(f"class: {spaced([function.owner])}")
    if function.arguments:
        lines.append(f"arguments: {spaced(function.arguments)}")
    called = spaced(function.calls, unique=True).split()[:MAX_CALLED_WORDS]
    if called:
        lines.append(f"calls: {' '.join(called)}")
    body = cut_body(function.body, max_body_tokens, tokenizer)
    return "\n".join([*lines, "body:", body]) if body else "\n".join(lines)


def spaced(names: Iterable[str], unique: bool = False) -> str:
    """The words of identifiers, separated by spaces; with `unique` each word once."""
    words = [word for name in names for word in split_name(name)]
    return " ".join(dict.fromkeys(words) if unique else words)


def cut_body(body: str, max_tokens: int, tokenizer: Cutter | None) -> str:
    """The first lines of the body that fit into `max_tokens`; the line that does not fit is cut."""
    if max_tokens <= 0:
        return ""
    if tokenizer is None:
        return body[: 3 * max_tokens].rstrip()
    ids = tokenizer.encode(body)
    return body if len(ids) <= max_tokens else tokenizer.decode(ids[:max_tokens]).rstrip("\ufffd").rstrip()
