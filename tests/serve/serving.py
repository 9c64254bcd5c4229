"""A server in a thread of the test, on a free port; and an engine that says what a test tells it to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from trueline.models.decoder import Decoder
from trueline.records import Sample, Sampling
from trueline.serve.http.limits import Limits
from trueline.serve.http.orders import Served
from trueline.serve.http.server import Server, bind, serve
from trueline.serve.request import Event, Options, PromptScores, Statistics, TopLogps
from trueline.tokens.tokenizer import Tokenizer


@dataclass
class Live:
    """A server that answers."""

    port: int
    server: Server
    thread: threading.Thread
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """A number of /metrics; labels are part of the name."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.rpartition(" ")[0] == name)

    def post(self, route: str, asked: Any, **more: Any) -> httpx.Response:
        """An answer to JSON."""
        return self.http.post(f"/v1/{route}", json=asked, **more)

    def raw(self, request: bytes) -> bytes:
        """What the server answers until it closes the connection, or says no more for a moment."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            found = b""
            while piece := connection.recv(65536):
                found += piece
            return found


@contextmanager
def live(engine: Any, tokenizer: Tokenizer, *, key: str = "", limits: Limits | None = None, loopback: bool = True) -> Iterator[Live]:
    """A server over this engine, until the block ends."""
    sock = bind("127.0.0.1", 0)
    config = engine.model.config
    served = Served(
        tokenizer=tokenizer, names={"tiny": "", "law": "law"}, vocab_size=config.vocab_size, context=config.max_length,
        limits=limits or Limits(drain_seconds=5.0),
    )  # fmt: skip
    opened: list[Server] = []
    is_open = threading.Event()

    def ready(server: Server) -> None:
        opened.append(server)
        is_open.set()

    def run() -> None:
        serve(sock, engine, served, ready, key=key, loopback=loopback)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_open.wait(20)
    port = sock.getsockname()[1]
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=False)  # certificates take a while to load
    found = Live(port, opened[0], thread, http)
    try:
        yield found
    finally:
        http.close()
        found.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Told:
    """An engine that draws the given ids, one per step, while `go` is set. `asked` is what it was asked for."""

    def __init__(self, model: Decoder, ids: list[int], *, stop: bool = False, step: Callable[[], None] | None = None) -> None:
        self.model, self.ids, self.stop, self._before = model, ids, stop, step or (lambda: None)
        self.asked: list[tuple[np.ndarray, Sampling, Options]] = []
        self.cancelled: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self._open: dict[int, tuple[np.ndarray, Sampling, Options, int]] = {}

    def submit(self, ids: np.ndarray, sampling: Sampling, options: Options = Options()) -> int:  # noqa: B008
        self.asked.append((ids, sampling, options))
        number = len(self.asked) - 1
        self._open[number] = (ids, sampling, options, 0)
        return number

    def cancel(self, request: int) -> bool:
        self.cancelled.append(request)
        return self._open.pop(request, None) is not None

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def statistics(self) -> Statistics:
        return Statistics(0, len(self._open), len(self._open), 100, 3, 4, 0)

    def step(self) -> list[Event]:
        self._before()
        if not self.go.wait(0.01):
            return []
        return [event for number in list(self._open) for event in self._advance(number)]

    def _advance(self, number: int) -> list[Event]:
        prompt, sampling, options, done = self._open[number]
        events = []
        if options.prompt_logps and done == 0:
            tops = tuple(top(int(token), options.top_logps) for token in prompt[1:])
            events.append(Event(number, 0, None, 0.0, None, (), PromptScores(-np.arange(1, len(prompt), dtype=np.float32), tops)))
        limit = min(len(self.ids), sampling.max_new_tokens)
        ended = options.beams > 0 or done + 1 == limit
        drawn = self.ids[:limit]
        for response in range(sampling.n):
            sample = None
            if ended:
                shift = float(response != 1)  # the second response is the likeliest, but in a beam search the order is the rank
                logps = -np.arange(1, limit + 1, dtype=np.float32) - shift
                reason = "stop" if self.stop and limit == len(self.ids) else "length"
                sample = Sample(
                    prompt_ids=prompt, ids=np.array(drawn, np.int32), logps=logps, mask=np.ones(limit, bool), finish_reason=reason
                )
            token = None if options.beams else drawn[done]
            logp = -float(done + 1) - float(response != 1)
            events.append(Event(number, response, token, logp, sample, top(drawn[done], options.top_logps)))
        if ended:
            del self._open[number]
        else:
            self._open[number] = (prompt, sampling, options, done + 1)
        return events


def top(token: int, count: int) -> TopLogps:
    """The likeliest tokens of a place: this one's neighbours."""
    return tuple((token + i, -0.5 - i) for i in range(count))
