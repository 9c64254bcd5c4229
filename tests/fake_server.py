"""A server that speaks as much of OpenAI's protocol as the tests of its clients need, on a port of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str | tuple[int, Any]]


@dataclass
class Fake:
    """What it answers, and what it was asked."""

    answer: Answer
    """From the body to a text, or to (status, JSON) of a fault."""
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def fake_server(answer: Answer) -> Iterator[Fake]:
    """Answers with the text whole, or in events of three characters when a stream is asked for."""
    fake = Fake(answer)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def reply(self, code: int, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": "fake"}, {"id": "other"}]} if self.path == "/v1/models" else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(body)
            fake.keys.append(self.headers.get("Authorization", ""))
            said = fake.answer(body)
            if not isinstance(said, str):
                return self.reply(*said)
            chat = self.path.endswith("/chat/completions")
            if not body.get("stream"):
                choice = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
                return self.reply(200, {"choices": [{**choice, "finish_reason": "stop"} for _ in range(body.get("n", 1))]})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            pieces = [said[i : i + 3] for i in range(0, len(said), 3)]
            events: list[Any] = [{"delta": {"role": "assistant"}}] if chat else []
            events += [{"delta": {"content": one}} if chat else {"text": one} for one in pieces]
            self.wfile.write(b": a comment\n\n")
            for number, event in enumerate(events):
                reason = "stop" if number == len(events) - 1 else None
                data = json.dumps({"choices": [{**event, "finish_reason": reason}]})
                self.wfile.write(f"data: {data}\r\n\r\n".encode())
            self.wfile.write(b'data: {"choices": [], "usage": {"total_tokens": 5}}\n\ndata: [DONE]\n\n')

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
