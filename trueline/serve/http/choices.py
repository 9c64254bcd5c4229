"""Events to what a client reads: one Choice per response, fed event by event, streamed or whole.

    choice.feed(event) -> Delta | None        text that can be shown, and the tokens that it came from
    whole(deltas) -> Delta                    all of it

A Delta's tokens are those drawn since the last one; none is lost, also those whose text is cut (stop strings, end tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from trueline.serve.http.vocabulary import Offsets, Vocabulary
from trueline.serve.request import Event, PromptScores, TopLogps
from trueline.serve.stops import MARGIN
from trueline.serve.text_stream import TextStream


class Delta(NamedTuple):
    """Something new of one response."""

    text: str
    ids: tuple[int, ...]
    logps: tuple[float | None, ...]
    """None: nothing predicts the first token of a prompt."""
    tops: tuple[TopLogps, ...]
    reason: str | None = None
    """"stop" or "length", with the last one."""


class Choice:
    """One response in the making."""

    def __init__(
        self, index: int, prompt: np.ndarray, vocabulary: Vocabulary, stops: Sequence[str], *, echo: bool, drop: bool, chat: bool
    ) -> None:
        """`echo` puts the prompt before the response; with `drop` the one token that is drawn is not shown."""
        self.index, self.prompt = index, prompt
        self._vocabulary, self._drop, self._echo = vocabulary, drop, echo
        self._stream = TextStream(vocabulary.tokenizer, stops, () if chat else prompt[-MARGIN:].tolist())
        self._new: list[tuple[int, float | None, TopLogps]] = []
        self._text = ""
        self.drawn = 0
        """Tokens of the response."""
        self.logp = 0.0
        """Sum of their log-probs."""

    def feed(self, event: Event, scores: PromptScores | None) -> Delta | None:
        """What this event lets a client see. `scores` are the prompt's, where they were asked for."""
        if self._echo:
            self._echo = False
            self._put_prompt(scores)
        if event.token is not None:
            self._put(event.token, event.logp, event.top)
        if event.sample is None:
            return self._take(None) if self._text else None
        for token, logp in zip(event.sample.ids[self.drawn :].tolist(), event.sample.logps[self.drawn :].tolist(), strict=True):
            self._put(token, logp, ())  # beam search tells all at the end
        self._text += "" if self._drop else self._stream.finish()
        return self._take("length" if self._drop else event.sample.finish_reason)

    def _put(self, token: int, logp: float, top: TopLogps) -> None:
        self.drawn += 1
        self.logp += logp
        if not self._drop:
            self._new.append((token, logp, top))
            self._text += self._stream.push(token)

    def _put_prompt(self, scores: PromptScores | None) -> None:
        text = TextStream(self._vocabulary.tokenizer)
        for place, token in enumerate(self.prompt.tolist()):
            known = scores is not None and place > 0
            logp = float(scores.logps[place - 1]) if known and scores is not None else None
            top = scores.tops[place - 1] if known and scores is not None and scores.tops else ()
            self._new.append((token, logp, top))
            self._text += text.push(token)
        self._text += text.finish()

    def _take(self, reason: str | None) -> Delta:
        ids, logps, tops = zip(*self._new, strict=True) if self._new else ((), (), ())
        text, self._text, self._new = self._text, "", []
        return Delta(text, ids, logps, tops, reason)


def whole(deltas: Iterable[Delta]) -> Delta:
    """All deltas of a response as one."""
    found = list(deltas)
    return Delta(
        "".join(delta.text for delta in found),
        tuple(token for delta in found for token in delta.ids),
        tuple(logp for delta in found for logp in delta.logps),
        tuple(top for delta in found for top in delta.tops),
        found[-1].reason,
    )


def completion_logprobs(delta: Delta, vocabulary: Vocabulary, offsets: Offsets, with_tops: bool) -> dict[str, Any]:
    """As /v1/completions gives them."""
    tops: list[dict[str, float] | None] = []
    for token, logp, top in zip(delta.ids, delta.logps, delta.tops, strict=True):
        named = {} if logp is None else {vocabulary.name(i): value for i, value in top} | {vocabulary.name(token): logp}
        tops.append(named or None)
    return {
        "tokens": [vocabulary.name(token) for token in delta.ids],
        "token_logprobs": list(delta.logps),
        "top_logprobs": tops if with_tops else None,
        "text_offset": [offsets.push(token) for token in delta.ids],
    }


def chat_logprobs(delta: Delta, vocabulary: Vocabulary) -> dict[str, Any]:
    """As /v1/chat/completions gives them."""

    def shown(token: int, logp: float | None) -> dict[str, Any]:
        return {"token": vocabulary.name(token), "logprob": logp, "bytes": list(vocabulary.bytes_of(token))}

    places = zip(delta.ids, delta.logps, delta.tops, strict=True)
    return {
        "content": [{**shown(i, logp), "top_logprobs": [shown(*one) for one in top]} for i, logp, top in places],
        "refusal": None,
    }
