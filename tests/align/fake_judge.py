"""A server that speaks OpenAI's protocol, on this machine, and does what a test says: it judges, or it misbehaves."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, int], Any]
"""(question, number of the request) -> the text of an answer, (status, body, headers), raw bytes, or a way to misbehave by name."""


class FakeJudge(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.questions: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeJudge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions" and body["temperature"] == 0
        question = body["messages"][-1]["content"]
        server = self.server
        with server.lock:
            server.questions.append(question)
            server.headers.append(dict(self.headers))
            number = len(server.questions)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self.reply(server.answer(question, number))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.at_once -= 1

    def reply(self, said: Any) -> None:
        match said:
            case "hang":
                self.server.ended.wait(30)
            case "close":
                self.close_connection = True
                self.connection.close()
            case "drip":
                self.send_response(200)
                self.end_headers()
                while not self.server.ended.wait(0.05):
                    self.wfile.write(b" ")
            case "huge":
                self.send_response(200)
                self.end_headers()
                for _ in range(1000):
                    self.wfile.write(b"x" * 65536)
            case bytes():
                self.send_response(200)
                self.end_headers()
                self.wfile.write(said)
            case (int() as status, body, dict() as headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())
            case _:
                text, reason = (said, "stop") if isinstance(said, str) else said
                self.reply((200, completion(text, reason), {}))

    def log_message(self, *words: Any) -> None: ...


def completion(text: Any, reason: str = "stop") -> dict[str, Any]:
    """What a server answers with."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 100}}


@contextmanager
def serving(answer: Answer) -> Iterator[FakeJudge]:
    """The server, while it is needed."""
    server = FakeJudge(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


def shown(question: str) -> tuple[str, ...]:
    """The responses of a question, in the order in which the judge sees them."""
    return tuple(found[1] for found in re.findall(r"<(response(?: [AB])? \w+)>\n(.*?)\n</\1>", question, re.DOTALL))


def longer(question: str, number: int) -> str:
    """A judge without bias that likes length."""
    first, second = shown(question)
    verdict = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "C"
    return f"Both are answers. Someone might say [[A]], or [[B]].\n\n[[{verdict}]]"
