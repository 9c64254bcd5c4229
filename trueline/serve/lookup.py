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

from trueline.serve.request import MAX_LOOKUP

LONGEST, SHORTEST = 3, 2
"""Tokens that must have occurred before: the longer are tried first."""


class Lookup:
    """Where each run of tokens in prompt and response was last followed by another token."""

    def __init__(self, prompt: Iterable[int], ids: Iterable[int] = ()) -> None:
        self._tokens = [int(token) for token in prompt]
        self._follower: dict[tuple[int, ...], int] = {}
        for size in range(SHORTEST, LONGEST + 1):
            runs = zip(*(self._tokens[start:-1] for start in range(size)), strict=False)
            self._follower.update(zip(runs, range(size, len(self._tokens)), strict=False))
        self._size = 2
        for token in ids:
            self.accept(token)

    def accept(self, token: int) -> None:
        """The response holds one more token."""
        tokens = self._tokens
        for size in range(SHORTEST, min(LONGEST, len(tokens)) + 1):
            self._follower[tuple(tokens[-size:])] = len(tokens)
        tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """At most so many tokens that may come next."""
        tokens = self._tokens
        for size in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            place = self._follower.get(tuple(tokens[-size:]))
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


def agreed(draft: Sequence[int], drawn: Sequence[int]) -> int:
    """How many draft tokens were drawn, from the first on; drawn[: agreed + 1] are the response's next tokens."""
    for place, token in enumerate(draft):
        if drawn[place] != token:
            return place
    return len(draft)
