"""Questions to a language model behind an OpenAI-compatible address: asked once, paid once, kept.

    client = ChatClient(Address(url="http://127.0.0.1:8000/v1", model="judge"), cache=Path("verdicts.sqlite"))
    client.ask("Which is better?")        -> Reply(text="...", finished=True)        the same question again: from the cache

A request that fails for a passing reason (429, 5xx, no connection, no answer in time, an answer that is not what the protocol says)
is repeated with growing pauses; any other fault ends at once, with the server's own words. The key comes from an environment variable,
goes to the address only, and is taken out of whatever is said or kept. Redirects are refused, answers are read up to a size and a
time. Many threads may ask at once.
Left out: streaming, several turns, tools; a bound on how slowly a server may send its headers.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trueline.store import fingerprint

LONGEST_ANSWER = 1 << 20
"""Bytes of a response of the server, and PIECE of a read."""
PIECE = 1 << 16
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
"""Codes of faults that pass."""
LONGEST_PAUSE = 60.0
SHORTEST_KEY = 8
"""Characters; what is shorter, such as EMPTY, is no secret, and a word that an answer may hold."""
CHARACTERS_PER_TOKEN = 4
"""For servers that do not say what a question cost."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Whom to ask, and how."""

    url: str
    """Up to and with /v1."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; where it is not set, none is sent."""
    max_tokens: int = 1024
    """Longest answer."""
    timeout: float = 120.0
    """Seconds for an answer."""
    retries: int = 6
    """Repetitions of a request that failed."""
    pause: float = 1.0
    """Seconds before the first repetition; doubled each time, with chance, and never more than a minute."""


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    finished: bool
    """False: cut off at max_tokens."""


class _Fault(Exception):
    """A fault that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, said: str, wait: float = 0.0):
        super().__init__(said)
        self.wait = wait


class ChatClient:
    """Asks, counts, keeps."""

    def __init__(
        self, address: Address, cache: Path | None = None, *, max_requests: int = 0, max_tokens: int = 0, at_once: int = 8
    ):
        """At most so many requests and tokens are spent (0 is without bound), and so many requests are under way at once. Answers
        are kept in `cache`, a SQLite file."""
        parts = urllib.parse.urlsplit(address.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not address.model:
            raise ValueError(
                f"{address.url!r} with the model {address.model!r} is no address of a judge: write one such as http://127.0.0.1:8000/v1 "
                "and --judge_model NAME"
            )
        if parts.username or parts.password:
            raise ValueError(f"an address with a password in it would be kept: put the key into the variable {address.key_variable}")
        self.address, self.max_requests, self.max_tokens = address, max_requests, max_tokens
        self.requests = self.tokens = self.from_cache = 0
        self._stopped: str | None = None
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(at_once)
        self._cache = _Cache(cache)
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, question: str) -> Reply:
        """The answer at temperature 0. ValueError: refused, unreachable, or the bound is reached."""
        address = self.address
        body = {
            "model": address.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": address.max_tokens,
        }
        key = fingerprint([address.url.rstrip("/"), body])
        kept = self._cache.get(key)
        if kept is not None:
            with self._lock:
                self.from_cache += 1
            return kept
        reply = self._repeat(body)
        self._cache.put(key, reply)
        return reply

    def _repeat(self, body: Mapping[str, Any]) -> Reply:
        fault = _Fault("")
        for attempt in range(self.address.retries + 1):
            if attempt:
                pause = self.address.pause * 2 ** (attempt - 1) * (1 + random.random()) / 2
                time.sleep(min(max(pause, fault.wait), LONGEST_PAUSE))
            try:
                with self._places:
                    self._count_request()
                    return self._request(body)
            except _Fault as error:
                fault = error
        raise self._stop(
            f"the judge at {self.address.url} gave no answer in {self.address.retries + 1} tries (the last: {fault}){self._kept()}"
        )

    def _count_request(self) -> None:
        with self._lock:
            if self._stopped is not None:
                raise ValueError(self._stopped)
            spent = 0 < self.max_requests <= self.requests, 0 < self.max_tokens <= self.tokens
            if not any(spent):
                self.requests += 1
                return
        bound = f"{self.max_requests:,} requests (--max_requests)" if spent[0] else f"{self.max_tokens:,} tokens (--max_judge_tokens)"
        raise self._stop(f"the bound of {bound} for the judge is reached{self._kept()}")

    def _stop(self, sentence: str) -> ValueError:
        """No thread asks after the first has failed."""
        with self._lock:
            self._stopped = self._stopped or sentence
            return ValueError(self._stopped)

    def _kept(self) -> str:
        where = self._cache.path
        return f"; what was judged is in {where}, and the same command asks only for the rest" if where else ""

    def _request(self, body: Mapping[str, Any]) -> Reply:
        secret = os.environ.get(self.address.key_variable, "").strip()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "trueline"}
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        url = self.address.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode("utf-8"), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.address.timeout) as response:
                found = _read(response, self.address.timeout)
            if len(secret) >= SHORTEST_KEY:
                found = found.replace(secret.encode("utf-8"), b"***")  # a server may repeat what it was sent
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error, self.address.timeout).replace(secret or "\0", "***")
            if error.code in PASSING:
                raise _Fault(f"{error.code} {said}", _seconds(error.headers.get("Retry-After"))) from None
            raise self._stop(f"the judge at {self.address.url} refused the request: {error.code} {said}{self._kept()}") from None
        except (OSError, http.client.HTTPException) as error:  # no connection, time over, closed in the middle
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _Fault(f"{type(reason).__name__} {reason}".strip()[:200]) from None
        return self._reply(found, body)

    def _reply(self, found: bytes, body: Mapping[str, Any]) -> Reply:
        try:
            answer = json.loads(found)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError("no text")
            usage = answer.get("usage") or {}
            spent = usage.get("total_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Fault(f"an answer that is no chat completion: {found[:60]!r}") from None
        if not isinstance(spent, int) or spent < 0:
            spent = (len(text) + len(str(body["messages"]))) // CHARACTERS_PER_TOKEN
        with self._lock:
            self.tokens += spent
        return Reply(text, choice.get("finish_reason") != "length")

    def close(self) -> None:
        self._cache.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key and the texts go to the address that was named, and nowhere else."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        host = urllib.parse.urlsplit(newurl).netloc
        raise ValueError(
            f"the judge at {req.full_url} redirects to {host[:100]}, which is refused: name that address if you trust it"
        )


def _read(response: Any, seconds: float) -> bytes:
    """The body, up to a size and a time."""
    end, found = time.monotonic() + seconds, b""
    while piece := response.read1(PIECE):
        found += piece
        if len(found) > LONGEST_ANSWER:
            raise _Fault(f"an answer of more than {LONGEST_ANSWER >> 20} MB")
        if time.monotonic() > end:
            raise _Fault(f"an answer that was not over after {seconds:g} s")
    return found


def _said(error: urllib.error.HTTPError, seconds: float) -> str:
    """The server's reason, on one line."""
    try:
        found = _read(error, seconds)
    except (_Fault, OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        value = json.loads(found)
        inner = value.get("error", value) if isinstance(value, dict) else value
        text = inner.get("message", inner) if isinstance(inner, dict) else inner
    except (ValueError, RecursionError):
        text = found.decode("utf-8", errors="replace")
    return " ".join(str(text).split())[:200] or str(error.reason)


def _seconds(value: str | None) -> float:
    """Retry-After as seconds; its other form, a date, is passed over."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


class _Cache:
    """Question -> reply, in a SQLite file that several threads and processes may use."""

    def __init__(self, path: Path | None):
        self.path = path
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(path or ":memory:", timeout=60, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (question TEXT PRIMARY KEY, text TEXT, finished INTEGER)")
        except sqlite3.Error as error:
            raise ValueError(f"{path} is no cache of verdicts ({error}): name another file, or remove it") from None

    def get(self, key: str) -> Reply | None:
        with self._lock:
            found = self._file.execute("SELECT text, finished FROM replies WHERE question = ?", (key,)).fetchone()
        return None if found is None else Reply(found[0], bool(found[1]))

    def put(self, key: str, reply: Reply) -> None:
        text = reply.text.encode("utf-8", errors="replace").decode("utf-8")  # SQLite takes no half surrogates
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, text, int(reply.finished)))

    def close(self) -> None:
        with self._lock:
            self._file.close()
