"""uvicorn's connection, with an end for those who open one and send nothing, or ask and do not read."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from trueline.serve.http.limits import Limits

TICKS = 4
"""Looks at a connection within each time limit."""


def guarded(limits: Limits) -> type[H11Protocol]:
    """A class of connections that keep these limits."""

    class Guarded(H11Protocol):
        """One connection."""

        def connection_made(self, transport: Any) -> None:
            """Begins to watch."""
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.max_connections:  # the gate refuses with a sentence before
                transport.abort()
            self._idle, self._stalled, self._unread = 0, 0, 0
            self._watch = self.loop.call_later(self._tick, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            """Ends it."""
            self._watch.cancel()
            super().connection_lost(exc)

        @property
        def _tick(self) -> float:
            return min(limits.body_seconds, limits.write_seconds) / TICKS

        def _look(self) -> None:
            unread = self.transport.get_write_buffer_size()
            self._stalled = self._stalled + 1 if unread and unread >= self._unread else 0
            self._unread = unread
            self._idle = self._idle + 1 if self.cycle is None or self.cycle.response_complete else 0
            if self._stalled * self._tick >= limits.write_seconds or (not unread and self._idle * self._tick >= limits.body_seconds):
                self.transport.abort()
                return
            self._watch = asyncio.get_running_loop().call_later(self._tick, self._look)

    return Guarded
