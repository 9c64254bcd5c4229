"""A storm of requests against a live server: good ones, bad ones, and clients that leave or do not read.

    python -m tests.serve.storm --requests 10000          prints the figures of docs/stages/serving.md

What must hold: no status that the protocol does not name, no 5xx but 503, a good request is answered as it should be, the server lives,
holds no request and no block at the end, uses no more memory than after the first fifth, and ends in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ALLOWED = {200, 400, 404, 405, 408, 413, 503}
FLAGS = {
    "max_waiting": 40, "max_body_bytes": 65536, "max_connections": 512, "body_seconds": 2, "write_seconds": 1, "request_seconds": 30,
    "max_batch": 16, "cache_tokens": 2048,
}  # fmt: skip
WORDS = ("The", "sum", "of", "the", "values,", "naïvely", "—", "the", "café's", "ünïcödé.", "Return")
GROWTH = 16 << 20
"""Bytes that the server's memory may vary by."""


@dataclass
class Storm:
    """What was sent and what came back."""

    port: int
    rng: random.Random
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def one(self, number: int) -> None:
        """One request of a random kind."""
        kind = self.rng.choices(
            (self.whole, self.stream, self.leave, self.leave_stream, self.slow, self.oversized, self.malformed, self.other, self.half),
            (30, 22, 10, 12, 6, 4, 8, 5, 3),
        )[0]
        self.kinds[kind.__name__] += 1
        try:
            await asyncio.wait_for(kind(), 60)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # cut off, as slow ones are; the server's health is asked at the end
        except TimeoutError:
            self.wrong.append(f"request {number} ({kind.__name__}) had no answer within a minute")

    def asked(self) -> tuple[str, dict[str, Any]]:
        """A good request, of any shape."""
        rng = self.rng
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
        more = [
            {}, {"n": 3}, {"stop": ["e", "the sum"]}, {"temperature": 0}, {"top_k": 5, "top_p": 0.9, "min_p": 0.02},
            {"seed": 7, "presence_penalty": 1.0, "repetition_penalty": 1.2}, {"logit_bias": {"17": 5}}, {"priority": -1},
            {"prompt_lookup_num_tokens": 4, "temperature": 0}, {"num_beams": 3, "n": 2}, {"regex": "[a-z]{3,9}"},
            {"response_format": {"type": "json_object"}}, {"return_token_ids": True},
        ]  # fmt: skip
        asked: dict[str, Any] = {"max_tokens": rng.choice((1, 4, 12, 40)), **rng.choice(more)}
        if rng.random() < 0.4:
            return "chat/completions", {**asked, "messages": [{"role": "user", "content": text}], "logprobs": rng.random() < 0.3}
        asked["prompt"] = rng.choice((text, [1, 2, 3] * rng.randint(1, 20), [text, text[:9]]))
        if "num_beams" not in asked:
            asked |= rng.choice(({}, {"logprobs": 2}, {"echo": True, "logprobs": 1}))
        return "completions", asked

    async def whole(self) -> None:
        """A good request, read to its end."""
        route, asked = self.asked()
        status, body = await self.talk(request(route, asked))
        if status == 200:
            answer = json.loads(body)
            prompts = len(asked["prompt"]) if isinstance(asked.get("prompt", ""), list) and isinstance(asked["prompt"][0], str) else 1
            if len(answer["choices"]) != prompts * asked.get("n", 1) or any(not choice["finish_reason"] for choice in answer["choices"]):
                self.wrong.append(f"{asked} got {body[:200]!r}")
        elif status != 503:
            self.wrong.append(f"{asked} got {status} {body[:200]!r}")

    async def stream(self) -> None:
        """The same as a stream."""
        route, asked = self.asked()
        status, body = await self.talk(request(route, {**asked, "stream": True}))
        if status == 200 and b"data: [DONE]" not in body:
            self.wrong.append(f"the stream of {asked} ended with {body[-200:]!r}")
        elif status not in (200, 503):
            self.wrong.append(f"{asked} got {status} {body[:200]!r}")

    async def leave(self) -> None:
        """A client that leaves before the answer."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(*self.asked()))
        await asyncio.sleep(self.rng.random() * 0.05)
        drop(writer)

    async def leave_stream(self) -> None:
        """One that leaves in the middle of a stream."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        route, asked = self.asked()
        writer.write(request(route, {**asked, "stream": True, "max_tokens": 60}))
        for _ in range(self.rng.randint(1, 12)):
            if not await reader.readline():
                break
        drop(writer)

    async def slow(self) -> None:
        """One that reads little by little, some of them nothing at all."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1024)
        writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        route, asked = self.asked()
        writer.write(request(route, {**asked, "stream": True, "n": 4, "num_beams": 0, "max_tokens": 100, "temperature": 1}))
        for _ in range(self.rng.choice((0, 3, 10))):
            if not await reader.read(self.rng.choice((1, 100))):
                break
            await asyncio.sleep(0.1)
        if self.rng.random() < 0.3:
            await asyncio.sleep(1.5)
        drop(writer)

    async def oversized(self) -> None:
        """Too large, with the length said or in chunks."""
        if self.rng.random() < 0.5:
            sent = request("completions", {"prompt": "a" * 70_000})
        else:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"4000\r\n" + b"a" * 0x4000 + b"\r\n") * 5
        status, body = await self.talk(sent)
        if status not in (413, 503, 0):
            self.wrong.append(f"an oversized body got {status} {body[:200]!r}")

    async def malformed(self) -> None:
        """No JSON, wrong types, unknown fields, no HTTP."""
        rng = self.rng
        bodies = (
            b"", b"{", b"[]", b"null", b'"a"', b"[" * 5000, rng.randbytes(50), b'{"prompt": 3}', b'{"prompt": "a", "n": -1}',
            b'{"prompt": [[]]}', b'{"prompt": "a", "max_tokens": 1e9}',
            b'{"prompt": "\\ud800"}', b'{"prompt": "a", "x": 1}', b'{"prompt": [99999]}',
            b'{"prompt": "a", "logit_bias": {"99999": 1}}', b'{"prompt": "a", "regex": "("}', b'{"prompt": "a", "grammar": "("}',
            b'{"messages": [{"role": "evil", "content": ""}]}', b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "model": "x"}',
            b'{"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}}',
        )  # fmt: skip
        route = rng.choice(("completions", "chat/completions", "embeddings"))
        raw = (rng.randbytes(200), b"GET /\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n")
        sent = rng.choice(raw) if rng.random() < 0.15 else wrapped(route, rng.choice(bodies))
        status, body = await self.talk(sent)
        if status == 200:
            self.wrong.append(f"{sent[-100:]!r} was taken: {body[:200]!r}")

    async def other(self) -> None:
        """The smaller routes."""
        route = self.rng.choice(("/health", "/metrics", "/v1/models", "/openapi.json", "/nothing", "embeddings"))
        if route == "embeddings":
            status, _ = await self.talk(request("embeddings", {"input": [" ".join(WORDS)] * 3}))
        else:
            status, _ = await self.talk(f"GET {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        if status not in ((404,) if route == "/nothing" else (200, 503)):
            self.wrong.append(f"{route} got {status}")

    async def half(self) -> None:
        """Half a request, and then nothing, or the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        sent = request(*self.asked())
        writer.write(sent[: self.rng.randrange(len(sent))])
        if self.rng.random() < 0.1:
            await reader.read()
        drop(writer)

    async def talk(self, sent: bytes) -> tuple[int, bytes]:
        """Status and body; 0 when the connection was closed without an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            found = await reader.read(-1)
        except ConnectionError:
            return 0, b""
        finally:
            drop(writer)
        head, _, body = found.partition(b"\r\n\r\n")
        status = int(head[9:12]) if head else 0
        self.statuses[status] += 1
        if status and status not in ALLOWED:
            self.wrong.append(f"{sent[-200:]!r} got {status}: {body[:200]!r}")
        if status == 503 and b"retry-after" not in head.lower():
            self.wrong.append("a 503 without Retry-After")
        return status, body


def request(route: str, asked: dict[str, Any]) -> bytes:
    """A good request as bytes; the server closes the connection behind its answer."""
    return wrapped(route, json.dumps(asked).encode())


def wrapped(route: str, body: bytes) -> bytes:
    """The body as JSON of a request."""
    head = f"POST /v1/{route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def drop(writer: asyncio.StreamWriter) -> None:
    """Leaves at once, without a goodbye."""
    writer.transport.abort()


async def metrics(storm: Storm) -> dict[str, float]:
    """The numbers of /metrics."""
    _, page = await storm.talk(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    lines = [line.rpartition(" ") for line in page.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def rage(storm: Storm, requests: int, together: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """All requests, `together` at a time: the server's numbers after each fifth, and when all is quiet."""
    numbers = iter(range(requests))
    seen = []
    for part in range(1, 6):

        async def client(until: int = requests * part // 5) -> None:
            for number in numbers:
                await storm.one(number)
                if number + 1 >= until:
                    return

        await asyncio.gather(*(client() for _ in range(together)))
        seen.append(await metrics(storm))
    for _ in range(100):
        last = await metrics(storm)
        if not any(last[name] for name in QUIET):
            break
        await asyncio.sleep(0.1)
    return seen, last


QUIET = ("trueline_prompts_open", "trueline_requests_waiting", "trueline_responses_running", "trueline_cache_blocks_used")
"""What must be 0 in the end."""


def run(folder: Path, requests: int, together: int = 32, seed: int = 0) -> tuple[list[str], dict[str, Any]]:
    """What was wrong, and the figures."""
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "trueline", "serve", str(folder), "--port", "0", *flags]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            port = None
            while port is None:
                time.sleep(0.02)
                log.seek(0)
                port = re.search(r"http://127\.0\.0\.1:(\d+)/", log.read())
                assert process.poll() is None and time.monotonic() < began + 120, "the server did not start"
            started = time.monotonic() - began
            storm = Storm(int(port[1]), random.Random(seed))
            before = asyncio.run(metrics(storm))
            seen, last = asyncio.run(rage(storm, requests, together))
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        finally:
            process.kill()
        log.seek(0)
        said = log.read()
    wrong = storm.wrong
    if code != 0:
        wrong.append(f"the server ended with {code}")
    if "Traceback" in said:
        wrong.append(f"the server's log: {said[-3000:]}")
    wrong += [f"{name} is {last[name]:g} in the end" for name in QUIET if last[name]]
    memory = [one["process_resident_memory_bytes"] for one in (*seen, last)]
    if max(memory[1:]) - memory[0] > GROWTH:
        wrong.append(f"memory grew: {[round(one / 2**20) for one in memory]} MiB")
    if last["process_open_fds"] > before["process_open_fds"] + 2:
        wrong.append(f"{last['process_open_fds']:g} files are open, {before['process_open_fds']:g} were at the start")
    return wrong, {
        "requests": sum(storm.kinds.values()), "seconds": round(time.monotonic() - began, 1), "start_seconds": round(started, 1),
        "kinds": dict(storm.kinds.most_common()), "statuses": dict(sorted(storm.statuses.items())),
        "memory_mib": [round(one / 2**20, 1) for one in memory], "tokens": int(last["trueline_generated_tokens_total"]),
        "cancelled": int(last["trueline_cancelled_requests_total"]), "preemptions": int(last["trueline_preemptions"]),
        "server_cpu_seconds": round(last["process_cpu_seconds_total"], 1), **{name: last[name] for name in QUIET},
        "open_files": [before["process_open_fds"], last["process_open_fds"]],
    }  # fmt: skip


def main() -> int:
    """Prints the figures; 1 when something was wrong."""
    from tests.tiny import tiny_model

    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong, figures = run(tiny_model(Path(folder), [" ".join(WORDS)] * 20), given.requests, seed=given.seed)
    for name, value in figures.items():
        print(f"{name}: {value}")
    print("\n".join(["wrong:", *wrong[:20]]) if wrong else "nothing was wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
