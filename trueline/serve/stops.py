"""Stop strings: a response ends where one of them first appears in its text, across token boundaries. No torch.

    tokens  | "def" | " f():\\n" | "\\n" | "cl" | "ass" |       stop "\\n\\nclass" ends after "ass"
    text    "def f():"                                         what comes before the stop

The text is what a reader sees, without special tokens; to end at one of those, use stop_ids.
The tokens that spell the stop stay in `Sample.ids` with their log-probs: the policy chose them. `cut` takes them off the text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

MARGIN = 8
"""Tokens decoded before the longest possible stop: decoders treat the start of a text specially (a leading space goes,
the first bytes of a character may be missing)."""


def hits_stop(
    ids: Sequence[int], stops: Sequence[str], decode: Callable[[Sequence[int]], str], hidden: Collection[int]
) -> bool:
    """True when the newest token completes a stop string. `hidden` are the ids without text: special tokens.

    Every other token holds at least one byte, so a stop that ends in the newest token lies within as many tokens as it has
    bytes: decoding that many is enough, however long the response.
    """
    if ids[-1] in hidden:
        return False
    size = MARGIN + max(len(stop.encode("utf-8")) for stop in stops)
    window: list[int] = []
    for token in reversed(ids):
        if token not in hidden:
            window.append(token)
            if len(window) == size:
                break
    if find_stop(decode(window[::-1]), stops) is None:
        return False
    return len(window) < size or find_stop(decode(ids), stops) is not None


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins in the text."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return min(places) if places else None


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: find_stop(text, stops)]
