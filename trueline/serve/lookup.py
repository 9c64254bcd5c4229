"""Prompt lookup: what followed the last tokens before may follow them again, so it is tried at once. No torch.

    lookup = Lookup(prompt)
    draft = lookup.propose(most)                tokens to compute along with the newest one, perhaps none
    drawn = draw(...)                           one token for every place: after ids, after ids + draft[:1], ...
    taken = drawn[: 1 + agreed(draft, drawn)]   each with lookup.accept(token); then lookup.judge(len(draft), agreed)

A place is drawn exactly as it would be without a draft, from the model's distribution and with the noise of its own number; its
token counts while all draft tokens before it were drawn, too. So the response is the same token for token, in fewer forwards.
Drafts are the continuation of the latest earlier occurrence of the last LONGEST to SHORTEST tokens (Saxena 2023, prompt lookup
decoding); a text that repeats itself is continued round and round. Their length follows their success.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trueline.serve.request import MAX_LOOKUP

LONGEST, SHORTEST = 3, 2
"""Tokens that must have occurred before: the longer are tried first."""
BITS = 20
"""A run of tokens is known by one number with so many bits for each; larger ids would only make poor drafts."""


class Lookup:
    """Where each run of tokens in prompt and response was last followed by another token."""

    def __init__(self, prompt: Iterable[int] | np.ndarray, ids: Iterable[int] = ()) -> None:
        tokens_L = np.asarray(prompt, dtype=np.int64)
        self._tokens: list[int] = tokens_L.tolist()
        self._follower: dict[int, int] = {}
        for size in range(SHORTEST, LONGEST + 1):
            starts = range(max(0, len(tokens_L) - size))  # of runs that something follows
            keys_S = np.ones(len(starts), dtype=np.int64)
            for offset in range(size):
                keys_S = keys_S << BITS | tokens_L[offset : offset + len(starts)]
            self._follower.update(zip(keys_S.tolist(), range(size, len(tokens_L)), strict=True))
        self._size = 2
        for token in ids:
            self.accept(token)

    def accept(self, token: int) -> None:
        """The response holds one more token."""
        tokens = self._tokens
        for size in range(SHORTEST, min(LONGEST, len(tokens)) + 1):
            self._follower[_key(tokens[-size:])] = len(tokens)
        tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """At most so many tokens that may come next."""
        tokens = self._tokens
        for size in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            place = self._follower.get(_key(tokens[-size:]))
            if place is not None:
                draft: list[int] = []
                for at in range(place, place + min(most, self._size)):
                    draft.append(tokens[at] if at < len(tokens) else draft[at - len(tokens)])
                return draft
        return []

    def judge(self, proposed: int, agreed: int) -> None:
        """How a draft fared: the next is twice as long after one that was drawn to its end, else about as long as what was right."""
        if proposed:
            self._size = min(2 * self._size, MAX_LOOKUP) if agreed == proposed else 1 + agreed


def _key(run: Sequence[int]) -> int:
    key = 1
    for token in run:
        key = key << BITS | token
    return key


def agreed(draft: Sequence[int], drawn: Sequence[int]) -> int:
    """How many draft tokens were drawn, from the first on; drawn[: agreed + 1] are the response's next tokens."""
    for place, token in enumerate(draft):
        if drawn[place] != token:
            return place
    return len(draft)
