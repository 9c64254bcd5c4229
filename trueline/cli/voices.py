"""Who answers in a chat: a model in this process, or a server that speaks OpenAI's protocol.

    Local(engine)                 the model's chat template, or plain text for a model that has not learned one (`learned_to_chat`)
    Remote(client, "name")        /chat/completions, or /completions for plain text
    voice.say(messages, sampling) -> pieces of the answer; KeyboardInterrupt at a moment when everything can go on afterwards
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trueline.records import TEXT, Messages, Row, Sampling
from trueline.serve.client import Client, chat_body, text_body
from trueline.serve.request import check_sampling
from trueline.serve.text_stream import TextStream
from trueline.tokens import encode_prompt

if TYPE_CHECKING:
    from trueline.serve.engine import Engine

PROBES = (("Hello", "Hello."), ("What is 2 + 2?", "It is 4."), ("Name a colour.", "Blue."))
"""A question and a finished answer: who has learned a template closes the turn behind it."""
LEARNED = 0.05
"""Probability of the end of a turn behind one of them, from which on a model has learned its template (docs/stages/chat.md has
measured ones: 3e-6 without, 0.5 to 0.9 with)."""


class Voice(Protocol):
    """Answers."""

    context: int
    """Tokens of a dialogue and its answer together; 0: not known."""
    reason: str
    """Why the last answer ended: "stop", "length", ..."""
    drawn: int
    """Tokens (of a server: pieces) of the last answer."""

    def say(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        """The answer in pieces."""
        ...

    def count(self, messages: Messages) -> int | None:
        """Tokens of the prompt that the messages make; None: not known."""
        ...

    def check(self, sampling: Sampling) -> None:
        """ValueError: this cannot be drawn with."""
        ...


class Local:
    """A model in this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.reason, self.drawn = engine, "", 0
        self.context = engine.model.config.max_length

    def say(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        """Ctrl-C is answered between two tokens: the engine is never left in the middle of a step."""
        engine = self.engine
        assert engine.tokenizer is not None
        text, self.drawn = TextStream(engine.tokenizer, sampling.stop), 0
        request = engine.submit(encode_prompt(messages, engine.tokenizer), sampling)
        try:
            with interrupts_later() as pressed:
                while engine.busy:
                    for event in engine.step():
                        if event.token is not None:
                            self.drawn += 1
                            if piece := text.push(event.token):
                                yield piece
                        if event.sample is not None:
                            self.reason = event.sample.finish_reason
                    if pressed():
                        raise KeyboardInterrupt
            if piece := text.finish():
                yield piece
        finally:
            engine.cancel(request)
            while engine.busy:
                engine.step()

    def count(self, messages: Messages) -> int | None:
        assert self.engine.tokenizer is not None
        return len(encode_prompt(messages, self.engine.tokenizer))

    def check(self, sampling: Sampling) -> None:
        check_sampling(sampling, self.engine.model.config.vocab_size, True)


class Remote:
    """A server. A broken connection ends the answer, not the chat."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        self.context, self.reason, self.drawn = 0, "", 0

    def say(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        """Given up in the middle, the connection is closed: the server stops drawing."""
        self.drawn, self.reason = 0, ""
        if messages[0].role == TEXT:
            body = text_body(self.model, "".join(message.content for message in messages), sampling)
        else:
            body = chat_body(self.model, messages, sampling)
        for piece in self.client.stream(body):
            self.reason = piece.finish_reason or self.reason
            if piece.text:
                self.drawn += 1
                yield piece.text

    def count(self, messages: Messages) -> int | None:
        return None

    def check(self, sampling: Sampling) -> None:
        check_sampling(sampling, 1 << 31, True)


def learned_to_chat(engine: Engine) -> float:
    """How likely the model is to close its turn behind a finished answer, at best. A base model that was saved with a template, as most
    are, has never seen its end of a turn, and would answer with anything at all."""
    from trueline.models.scorer import PolicyScorer

    tokenizer = engine.tokenizer
    assert tokenizer is not None
    end = tokenizer.turn_end
    if end is None:
        return 0.0
    rows = []
    for question, said in PROBES:
        text = tokenizer.template.render([{"role": "user", "content": question}, {"role": "assistant", "content": said}])
        ids = np.array(tokenizer.encode(text[: text.rindex(said) + len(said)] + end, allow_special=True), dtype=np.int32)
        rows.append(Row(ids=(ids,), scored=(np.arange(len(ids)) == len(ids) - 1,)))
    return float(np.exp(max(logps_K[0] for logps_K in PolicyScorer(engine.model).score(rows))))


@contextmanager
def interrupts_later() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C is only noted (what is yielded says so); a second one interrupts at once."""
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
