"""The thread that owns the engine, and how the event loop talks to it.

    event loop                                      engine's thread
    open(ticket) --- commands (as many as open) --> submit --+
    close(ticket) ---------------------------------> cancel  |-> step -> events
    call(function) --------------------------------> between two steps
    ticket.take() <-- at most BATCHES batches of events ------+

Everything but `_run` and what it calls happens on the event loop. A ticket holds what its reader has not fetched yet, at most
`BACKLOG` tokens: who falls behind further is cut off, so a slow reader costs bounded memory and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueline.records import Sampling
from trueline.serve.http.door import Drawing
from trueline.serve.http.errors import Refusal
from trueline.serve.http.meters import Meters
from trueline.serve.request import Event, Options, Statistics

BATCHES = 8
"""Steps whose events the event loop may not have seen yet; then the engine waits."""
BACKLOG = 16384
"""Events that a reader may leave unread."""
NOTHING = Statistics(0, 0, 0, 0, 0, 0, 0)

Arrived = tuple[int, Event]
"""Number of the prompt within its ticket, and what happened to it."""


@dataclass(eq=False)
class Ticket:
    """One HTTP request's prompts at the engine."""

    prompts: list[np.ndarray]
    sampling: Sampling
    options: Options
    arrived: float = field(default_factory=time.monotonic)
    requests: dict[int, int] = field(default_factory=dict)
    """Engine's thread: the engine's number of a prompt that is not done -> its number here."""
    left: dict[int, int] = field(default_factory=dict)
    """Engine's thread: responses of it that have not ended."""
    items: deque[Arrived] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    accepted: bool = False
    is_open: bool = False
    """Counted among those that wait or run."""
    error: Exception | None = None
    last: dict[tuple[int, int], float] = field(default_factory=dict)
    """When the newest token of a response arrived."""

    async def take(self) -> list[Arrived]:
        """What happened since the last call; waits for something to happen. Raises what ended the ticket."""
        while not self.items:
            if self.error is not None:
                raise self.error
            self.news.clear()
            await self.news.wait()
        found = list(self.items)
        self.items.clear()
        return found

    async def wait_accepted(self) -> None:
        """Returns when the engine has taken all prompts; raises its refusal."""
        while not self.accepted:
            if self.error is not None:
                raise self.error
            self.news.clear()
            await self.news.wait()


class Worker:
    """The engine in a thread of its own."""

    def __init__(self, engine: Drawing, meters: Meters, max_open: int) -> None:
        self.engine, self.meters, self.max_open = engine, meters, max_open
        self.open_prompts = 0
        self.statistics = NOTHING
        """Of the engine, as of the last step."""
        self.broken = ""
        """Why the engine cannot be used any more."""
        self._commands: deque[Callable[[], None]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._room = threading.Semaphore(BATCHES)
        self._owner: dict[int, Ticket] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # -- the event loop's side ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins, on the event loop that will ask."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Ends the thread after the step it is in."""
        self._stopping = True
        with self._wake:
            self._wake.notify()
        self._thread.join(seconds)

    def open(self, ticket: Ticket) -> None:
        """Hands the prompts over, or says at once that there is no room."""
        self._check_room(len(ticket.prompts))
        ticket.is_open = True
        self.open_prompts += len(ticket.prompts)
        self.meters.open.set(self.open_prompts)
        self._send(self._commands, lambda: self._submit(ticket))

    def close(self, ticket: Ticket, finished: bool) -> None:
        """Nobody reads the ticket any more. Whatever of it still runs is cancelled."""
        if not ticket.is_open:
            return
        ticket.is_open = False
        ticket.items.clear()
        self.open_prompts -= len(ticket.prompts)
        self.meters.open.set(self.open_prompts)
        if not finished:
            self.meters.cancelled.inc()
            self._send(self._commands, lambda: self._cancel(ticket))

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs a short function in the engine's thread, between two steps."""
        if self.broken or len(self._calls) >= self.max_open:
            raise Refusal(503, f"the engine failed: {self.broken}" if self.broken else "too much waits already: try again later")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result, error = function(), None
            except Exception as raised:
                result, error = None, raised
            self._tell(lambda: answer(result, error))

        def answer(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._send(self._calls, run)
        return await future

    def _check_room(self, more: int) -> None:
        if self.broken:
            raise Refusal(503, f"the engine failed: {self.broken}")
        if more > self.max_open:
            raise Refusal(400, f"{more} prompts in one request are more than the {self.max_open} that this server holds: send fewer")
        if self.open_prompts + more > self.max_open or len(self._commands) > 2 * self.max_open:
            raise Refusal(503, f"{self.open_prompts} prompts wait or run already: try again later")

    def _send(self, queue: deque[Callable[[], None]], command: Callable[[], None]) -> None:
        with self._wake:
            queue.append(command)
            self._wake.notify()

    def _deliver(self, batch: list[tuple[Ticket, int, Event]]) -> None:
        """Puts a step's events where their readers find them."""
        self._room.release()
        now = time.monotonic()
        drawn = 0
        for ticket, number, event in batch:
            if event.token is not None:
                drawn += 1
                place = (number, event.response)
                before = ticket.last.get(place)
                (self.meters.first_token if before is None else self.meters.per_token).observe(now - (before or ticket.arrived))
                ticket.last[place] = now
            if not ticket.is_open:
                continue
            if len(ticket.items) >= BACKLOG:
                self._fail(ticket, Refusal(408, f"{BACKLOG} tokens wait to be read: read faster, or ask for fewer at a time"))
                self.close(ticket, finished=False)
                continue
            ticket.items.append((number, event))
            ticket.news.set()
        self.meters.generated_tokens.inc(drawn)
        if drawn:
            self.meters.batch.observe(drawn)

    def _accept(self, ticket: Ticket) -> None:
        ticket.accepted = True
        self.meters.prompt_tokens.inc(sum(map(len, ticket.prompts)))
        ticket.news.set()

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        ticket.error = ticket.error or error
        ticket.news.set()

    # -- the engine's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._calls or self._stopping or self.engine.busy):
                    self._wake.wait()
                commands = list(self._commands)
                self._commands.clear()
                call = self._calls.popleft() if self._calls else None
            if self._stopping:
                return
            try:
                for command in commands:
                    command()
                if call is not None:
                    call()  # one between two steps: long ones must not hold up those who wait for tokens
                self._hand_over(self.engine.step() if self.engine.busy else [])
                self.statistics = self.engine.statistics()
            except Exception as error:  # broken weights, no memory: whoever runs is told, the server goes on
                self._give_up(error)
                if self.broken:
                    return

    def _submit(self, ticket: Ticket) -> None:
        try:
            for number, ids in enumerate(ticket.prompts):
                request = self.engine.submit(ids, ticket.sampling, ticket.options)
                ticket.requests[request] = number
                ticket.left[request] = ticket.sampling.n
                self._owner[request] = ticket
        except Exception as error:
            self._cancel(ticket)
            refusal = error if isinstance(error, ValueError) else Refusal(503, f"the engine failed: {error}")
            self._tell(lambda: self._fail(ticket, refusal))
            return
        self._tell(lambda: self._accept(ticket))

    def _cancel(self, ticket: Ticket) -> None:
        for request in ticket.requests:
            self._owner.pop(request, None)
            self.engine.cancel(request)
        ticket.requests.clear()

    def _hand_over(self, events: list[Event]) -> None:
        batch = []
        for event in events:
            ticket = self._owner.get(event.request)
            if ticket is None:  # of a request that was cancelled
                continue
            batch.append((ticket, ticket.requests[event.request], event))
            if event.sample is not None:
                ticket.left[event.request] -= 1
                if ticket.left[event.request] == 0:
                    del ticket.requests[event.request], ticket.left[event.request], self._owner[event.request]
        if not batch:
            return
        while not self._room.acquire(timeout=1.0):
            if self._stopping:
                return
        self._tell(lambda: self._deliver(batch))

    def _give_up(self, error: Exception) -> None:
        """After a step that failed: everybody is told, and the engine is emptied."""
        said = f"the engine failed: {' '.join(str(error).split())[:300]}"
        tickets = {id(ticket): ticket for ticket in self._owner.values()}
        for ticket in tickets.values():
            self._tell(lambda ticket=ticket: self._fail(ticket, Refusal(503, said)))  # type: ignore[misc]
        self._tell(self.meters.failures.inc)
        try:
            for ticket in tickets.values():
                self._cancel(ticket)
        except Exception as again:
            self.broken = str(again) or type(again).__name__
            self._owner.clear()

    def _tell(self, what: Callable[[], Any]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)
