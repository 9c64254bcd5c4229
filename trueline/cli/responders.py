"""Who answers a file of prompts: our engine, or a server that speaks OpenAI's protocol.

    Local(engine)            submit, step, ... : continuous batching over as many rows as are under way
    Remote(client, model)    a thread per row that is under way
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from trueline.cli.batch import Ask, Response
from trueline.records import TEXT
from trueline.serve.client import Client, Passing, chat_body, text_body
from trueline.tokens import encode_prompt

if TYPE_CHECKING:
    from trueline.serve.engine import Engine

TRIES = 6
"""Of a request that fails for a passing reason."""
LONGEST_PAUSE = 30.0


class Local:
    """Our engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._rows: dict[int, tuple[Ask, list[Response | None]]] = {}

    def start(self, ask: Ask) -> None:
        """Encoded and queued; a prompt that does not fit is refused here."""
        assert self.engine.tokenizer is not None
        ids = encode_prompt(ask.messages, self.engine.tokenizer) if ask.messages else ask.ids
        request = self.engine.submit(ids, ask.sampling)
        self._rows[request] = ask, [None] * ask.sampling.n

    def ended(self) -> Iterator[tuple[int, list[Response] | str]]:
        """One step of the engine."""
        for event in self.engine.step():
            if event.sample is None:
                continue
            ask, responses = self._rows[event.request]
            sample = event.sample
            text = self.engine.text(sample, ask.sampling.stop)
            responses[event.response] = Response(text, sample.finish_reason, sample.ids.tolist(), sample.logps.tolist())
            whole = [one for one in responses if one is not None]
            if len(whole) == len(responses):
                del self._rows[event.request]
                yield ask.number, whole


class Remote:
    """A server. Ids are not known: it gives text."""

    def __init__(self, client: Client, model: str, at_once: int, sleep: Callable[[float], object] = time.sleep) -> None:
        self.client, self.model, self.sleep = client, model, sleep
        self._threads = ThreadPoolExecutor(at_once)
        self._rows: dict[Future[list[Response] | str], int] = {}

    def start(self, ask: Ask) -> None:
        self._rows[self._threads.submit(self._ask, ask)] = ask.number

    def ended(self) -> Iterator[tuple[int, list[Response] | str]]:
        """Those that came back since. A server that is gone ends the command; what was written stays."""
        for future in wait(self._rows, return_when=FIRST_COMPLETED).done:
            yield self._rows.pop(future), future.result()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, ask: Ask) -> list[Response] | str:
        if ask.messages and ask.messages[0].role != TEXT:
            body = chat_body(self.model, ask.messages, ask.sampling)
        else:
            body = text_body(self.model, "".join(one.content for one in ask.messages) or ask.ids, ask.sampling)
        for attempt in range(TRIES):
            try:
                return [_response(choice) for choice in self.client.ask(body)["choices"]]
            except Passing:
                if attempt == TRIES - 1:
                    raise
                self.sleep(min(2.0**attempt, LONGEST_PAUSE))
            except ValueError as refused:  # this row's own fault, such as a prompt that is too long
                if any(code in str(refused) for code in (" 400 ", " 413 ", " 422 ")):
                    return str(refused)
                raise
        raise AssertionError


def _response(choice: dict[str, Any]) -> Response:
    try:
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return Response(text or "", choice.get("finish_reason") or "stop")
    except (KeyError, TypeError):
        raise Passing(f"a choice without text: {str(choice)[:100]}") from None
