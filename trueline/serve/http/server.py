"""From a model folder to an open port, and to an end in good order.

bind (nobody can connect yet) -> load, check -> listen -> ... -> SIGTERM: refuse new, finish running -> close
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn

from trueline.serve.http.app import make_app
from trueline.serve.http.connection import guarded
from trueline.serve.http.door import Drawing
from trueline.serve.http.gate import LOOPBACK, Gate
from trueline.serve.http.limits import Limits
from trueline.serve.http.meters import Meters
from trueline.serve.http.orders import Served
from trueline.serve.http.worker import Worker

BACKLOG = 512
WIDE_RATE = 600
"""Requests per minute and client where the limits name none and others than this machine can connect."""


class Server(uvicorn.Server):
    """uvicorn's, which goes on answering while it drains."""

    gate: Gate
    drain_seconds: float

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends at once."""
        if self.gate.draining:
            self.should_exit = self.force_exit = True
            return
        self.gate.draining = True
        self._deadline = time.monotonic() + self.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        ended = await super().on_tick(counter)
        drained = self.gate.draining and (self.gate.running == 0 or time.monotonic() >= self._deadline)
        return ended or drained


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address but does not listen yet; port 0 takes a free one."""
    if not 0 <= port < 65536:  # the system would take what is left after dividing
        raise ValueError(f"--port is {port}: ports go from 1 to 65535, and 0 takes a free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port} is no address of this machine ({error}): use 127.0.0.1 and a port") from error
    found = socket.socket(family[0], socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(family[4])
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use: choose another --port, or --port 0 for any free one") from error
        raise ValueError(f"--host {host} --port {port} cannot be opened ({error.strerror}): use 127.0.0.1 and a port above 1023") from error
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect."""
    try:
        return host in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def access(host: str, key: str) -> tuple[str, bool]:
    """The key that requests must bring, and whether it was made now."""
    if key or is_loopback(host):
        return key, False
    return secrets.token_urlsafe(32), True


def limits_for(host: str, limits: Limits) -> Limits:
    """The limits; others than this machine are not served without a rate."""
    if limits.requests_per_minute or is_loopback(host):
        return limits
    return replace(limits, requests_per_minute=WIDE_RATE)


def serve(
    sock: socket.socket, engine: Drawing, served: Served, ready: Callable[[Server], None], *, key: str = "", loopback: bool = True
) -> None:
    """Answers on the socket until a signal says to stop. `ready` is told when the port is open."""
    asyncio.run(_serve(sock, engine, served, ready, key, loopback))


async def _serve(sock: socket.socket, engine: Drawing, served: Served, ready: Callable[[Server], None], key: str, loopback: bool) -> None:
    limits = served.limits
    worker = Worker(engine, Meters(), limits.max_waiting)
    gate = make_app(served, worker, key=key, loopback=loopback)
    config = uvicorn.Config(
        gate,
        http=guarded(limits), ws="none", lifespan="off", interface="asgi3", log_level="error", access_log=False, server_header=False,
        timeout_graceful_shutdown=1, backlog=BACKLOG, proxy_headers=False,
    )  # fmt: skip
    server = Server(config)
    gate.connections = lambda: len(server.server_state.connections)
    server.gate, server.drain_seconds = gate, limits.drain_seconds
    worker.start()
    opening = asyncio.ensure_future(_when_open(server, ready))
    try:
        await server.serve(sockets=[sock])
    finally:
        opening.cancel()
        worker.stop()


async def _when_open(server: Server, ready: Callable[[Server], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    ready(server)
