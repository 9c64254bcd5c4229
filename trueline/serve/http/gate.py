"""Who may come in: what every request passes before the app sees it.

    Host and Origin -> key -> draining? -> rate -> size and time of the body -> app

Host: a page in a browser can make a name of its own point to 127.0.0.1 (DNS rebinding); bound to loopback, only loopback's names are
answered. Origin: pages of other origins are refused, and no CORS headers are ever sent. Left out: TLS.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from trueline.serve.http.errors import Refusal, dumps
from trueline.serve.http.limits import Limits
from trueline.serve.http.meters import Meters

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODIES = 32
"""So many bodies of the largest size may be on their way at once."""
CLIENTS = 10_000
"""Addresses whose rate is remembered."""
MONITORS = ("/health", "/metrics")
"""Routes that neither rate nor draining closes."""
ROUTES = (*MONITORS, "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings")


class Rate:
    """Requests per minute and client: a bucket each, full at first, refilled steadily."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._seen: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, now: float) -> float:
        """Seconds until this client may ask again; 0: it may now, and this is counted."""
        if not self.per_minute:
            return 0.0
        level, last = self._seen.pop(client, (float(self.per_minute), now))
        level = min(float(self.per_minute), level + (now - last) * self.per_minute / 60)
        allowed = level >= 1
        self._seen[client] = (level - 1 if allowed else level, now)
        if len(self._seen) > CLIENTS:
            self._seen.popitem(last=False)
        return 0.0 if allowed else (1 - level) * 60 / self.per_minute


@dataclass(eq=False)
class Gate:
    """The app behind its checks."""

    app: App
    limits: Limits
    meters: Meters
    key: str
    """"" asks for none."""
    loopback: bool
    draining: bool = False
    running: int = 0
    """Requests inside."""
    connections: Callable[[], int] = lambda: 0
    """How many are open."""
    body_bytes: int = 0
    """Of bodies on their way or in use."""

    def __post_init__(self) -> None:
        self._rate = Rate(self.limits.requests_per_minute)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.running += 1
        body = bytearray()
        try:
            self._check(scope)
            await self._read(scope, receive, body)
            await self.app(scope, replayed(bytes(body), receive), counted)
        except Refusal as refusal:
            if status == 0:
                await refuse(refusal, counted, close=True)
        except asyncio.CancelledError:  # the time to drain is over; uvicorn would answer 500
            if status == 0:
                await refuse(Refusal(503, "the server has stopped: ask another one", retry_after=10), counted, close=True)
        except ConnectionResetError:
            status = status or 499  # the client left while it was sending
        finally:
            self.running -= 1
            self.body_bytes -= len(body)
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self.meters.answers.labels(route, str(status or 499)).inc()

    def _check(self, scope: Message) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if self.loopback and hostname(host) not in LOOPBACK:
            raise Refusal(403, "this server answers to localhost and 127.0.0.1 only: start it with --host to give it another name")
        if origin and origin.partition("://")[2] != host:
            raise Refusal(403, "pages of other origins are not answered")
        if self.key and not same(headers.get(b"authorization", b""), b"Bearer " + self.key.encode("utf-8")):
            raise Refusal(401, "the key is missing or wrong: send the header Authorization: Bearer KEY", code="invalid_api_key")
        if scope["path"] in MONITORS:
            return
        if self.draining:
            raise Refusal(503, "the server is stopping: ask another one", retry_after=10)
        if self.connections() > self.limits.max_connections:
            raise Refusal(503, f"more than {self.limits.max_connections} connections are open: try again later")
        client = scope["client"][0] if scope.get("client") else ""
        wait = self._rate.wait(client, time.monotonic())
        if wait:
            said = f"more than {self.limits.requests_per_minute} requests in a minute: wait"
            raise Refusal(429, said, code="rate_limit_exceeded", retry_after=int(wait) + 1)

    async def _read(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """The body, into `body`."""
        limits = self.limits
        said = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"0")
        too_large = Refusal(413, f"the body is larger than {limits.max_body_bytes} bytes: send less at a time")
        if len(said) > 15 or int(said) > limits.max_body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    body += piece
                    self.body_bytes += len(piece)
                    if len(body) > limits.max_body_bytes:
                        raise too_large
                    if self.body_bytes > BODIES * limits.max_body_bytes:
                        raise Refusal(503, "too many large requests at once: try again later")
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """What the app receives: the body that was read, then what comes after it (that the client left)."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def refuse(refusal: Refusal, send: Send, *, close: bool = False) -> None:
    """Sends a refusal; with `close` the connection is not used again, since its body may not have been read."""
    body = dumps(refusal.content)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    if close:
        headers["connection"] = "close"
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def hostname(host: str) -> str:
    """Of a Host header: without its port, and an IPv6 address without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def same(given: bytes, expected: bytes) -> bool:
    """Compares in a time that says nothing about either, not even their lengths."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(expected).digest())
