"""Who may come in, how much, for how long; and what happens when somebody leaves, does not read, or the server ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.serve.serving import Live, Told, live
from trueline.models.decoder import Decoder
from trueline.serve.http.gate import Rate, hostname, same
from trueline.serve.http.limits import Limits
from trueline.serve.http.server import access, bind, is_loopback, limits_for
from trueline.tokens.tokenizer import Tokenizer

ASKED = {"prompt": "The sum", "max_tokens": 40}


@pytest.fixture
def engine(model: Decoder, tokenizer: Tokenizer) -> Told:
    return Told(model, tokenizer.encode("The sum of the values. ") * 8)


def eventually(check: Callable[[], bool]) -> None:
    """Within ten seconds."""
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def held(engine: Told, tokenizer: Tokenizer) -> Iterator[Live]:
    """A server whose engine draws nothing until `engine.go` is set."""
    engine.go.clear()
    with live(engine, tokenizer, limits=Limits(max_waiting=2, drain_seconds=10)) as found:
        yield found


def post(server: Live, asked: dict[str, object], **more: object) -> httpx.Response:
    return server.post("completions", asked, **more)


def test_the_key_is_asked_for_on_every_route(engine: Told, tokenizer: Tokenizer) -> None:
    with live(engine, tokenizer, key="s3cret", loopback=False) as server:
        for route in ("health", "metrics", "openapi.json", "v1/models", "v1/completions", "nothing"):
            for given in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}, {"authorization": "Bearer é"}):
                answer = server.http.get(f"/{route}", headers={k: v.encode() for k, v in given.items()})
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert server.http.get("/health", headers={"authorization": "Bearer s3cret"}).status_code == 200
        description = server.http.get("/openapi.json", headers={"authorization": "Bearer s3cret"}).json()
        assert description["security"] == [{"key": []}]


def test_names_and_origins(engine: Told, tokenizer: Tokenizer) -> None:
    """DNS rebinding: a foreign name that leads here is not answered; nor are pages of other origins; no CORS headers."""
    with live(engine, tokenizer) as server:
        for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80"):
            assert server.http.get("/health", headers={"host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            assert server.http.get("/health", headers={"host": host}).status_code == 403
        answer = server.http.options("/v1/completions", headers={"origin": "http://evil.example", "access-control-request-method": "POST"})
        assert answer.status_code == 403
        answer = post(server, ASKED, headers={"origin": f"http://127.0.0.1:{server.port}"})
        assert answer.status_code == 200 and not [name for name in answer.headers if name.startswith("access-control")]


def test_when_a_key_is_made() -> None:
    assert (
        access("127.0.0.1", "") == ("", False) and access("::1", "mine") == ("mine", False) and access("0.0.0.0", "mine") == ("mine", False)
    )
    key, made = access("0.0.0.0", "")
    assert made and len(key) >= 40 and key != access("0.0.0.0", "")[0]
    assert [is_loopback(host) for host in ("localhost", "127.0.0.5", "0.0.0.0", "example.org", "::")] == [True, True, False, False, False]
    assert limits_for("0.0.0.0", Limits()).requests_per_minute > 0 == limits_for("localhost", Limits()).requests_per_minute
    assert same(b"Bearer a", b"Bearer a") and not same(b"", b"Bearer a")
    assert [hostname(host) for host in ("a:1", "[::1]:8", "LocalHost", "")] == ["a", "::1", "localhost", ""]


def test_bodies_that_are_too_large_or_too_slow(engine: Told, tokenizer: Tokenizer) -> None:
    limits = Limits(max_body_bytes=1000, body_seconds=0.2)
    with live(engine, tokenizer, limits=limits) as server:
        assert post(server, {"prompt": "a" * 2000}).status_code == 413
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunk = b"3e8\r\n" + b"a" * 1000 + b"\r\n"
        assert server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + chunk).startswith(b"HTTP/1.1 413")
        assert server.raw(head + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")
        assert server.raw(head + b"Content-Length: 9999999999999999999\r\n\r\n{").startswith(b"HTTP/1.1 413")
        assert server.raw(b"GET / HT") == b""  # half a request: the connection is closed
        assert server.raw(b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert server.http.get("/health").status_code == 200


def test_limits_on_tokens(engine: Told, tokenizer: Tokenizer) -> None:
    with live(engine, tokenizer, limits=Limits(max_prompt_tokens=5, max_tokens=10, max_responses=3, max_logprobs=60)) as server:
        assert "takes 5" in post(server, {"prompt": [1] * 6}).json()["error"]["message"]
        echo = {"prompt": [[1] * 5] * 3, "max_tokens": 10, "echo": True}
        assert post(server, {**echo, "logprobs": 0}).status_code == 200
        assert "90 log-probs are more than 60" in post(server, {**echo, "logprobs": 1}).json()["error"]["message"]
        assert "at most 10" in post(server, {"prompt": "a", "max_tokens": 11}).json()["error"]["message"]
        assert post(server, {"prompt": [[1], [2]], "n": 2}).status_code == 400
        chat = server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": ""}]})
        assert chat.status_code == 400  # the template alone is longer than 5
        assert post(server, {"prompt": "a", "max_tokens": None}).json()["usage"]["completion_tokens"] == 10


def test_too_many_connections(engine: Told, tokenizer: Tokenizer) -> None:
    """Requests on them are refused with a sentence; twice as many are cut off."""
    with live(engine, tokenizer, limits=Limits(max_connections=3)) as server:
        server.http.get("/v1/models")  # keeps its connection
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        eventually(lambda: server.http.get("/v1/models").status_code == 503)
        answer = server.http.get("/v1/models")
        assert answer.headers["retry-after"] and "3 connections" in answer.json()["error"]["message"]
        idle += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        with pytest.raises(ConnectionError):
            idle[-1].settimeout(5)
            idle[-1].sendall(b"GET /health HTTP/1.1\r\n")
            if idle[-1].recv(1) == b"":
                raise ConnectionError
        for one in idle:
            one.close()
        eventually(lambda: server.http.get("/v1/models").status_code == 200)


def test_rate() -> None:
    rate = Rate(60)
    assert [rate.wait("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.wait("a", 0.0) == pytest.approx(1.0) and rate.wait("b", 0.0) == 0.0
    assert rate.wait("a", 1.0) == 0.0 and rate.wait("a", 1.0) > 0
    assert [Rate(0).wait("a", 0.0) for _ in range(3)] == [0.0] * 3


def test_rate_over_the_wire(engine: Told, tokenizer: Tokenizer) -> None:
    with live(engine, tokenizer, limits=Limits(requests_per_minute=2)) as server:
        answers = [server.http.get("/v1/models") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 31
        assert server.http.get("/health").status_code == 200


def test_a_full_queue_answers_at_once(held: Live, engine: Told) -> None:
    threads = [threading.Thread(target=post, args=(held, ASKED)) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(engine.asked) == 2)
    answer = post(held, ASKED)
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "server_overloaded"
    assert "3 prompts in one request" in post(held, {"prompt": ["a"] * 3}).json()["error"]["message"]
    assert held.metric("trueline_prompts_open") == 2
    engine.go.set()
    for thread in threads:
        thread.join()
    assert post(held, ASKED).status_code == 200 and held.metric("trueline_prompts_open") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_cancelled(held: Live, engine: Told, stream: bool) -> None:
    body = json.dumps({**ASKED, "stream": stream, "n": 2}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", held.port)) as connection:
        connection.sendall(head.encode() + body)
        eventually(lambda: len(engine.asked) == 1)
    eventually(lambda: engine.cancelled == [0] and not engine.busy)
    eventually(lambda: held.metric("trueline_prompts_open") == 0)
    assert held.metric("trueline_cancelled_requests_total") == 1


def test_a_request_that_takes_too_long(engine: Told, tokenizer: Tokenizer) -> None:
    engine.go.clear()
    with live(engine, tokenizer, limits=Limits(request_seconds=0.1)) as server:
        answer = post(server, ASKED)
        assert answer.status_code == 408 and answer.headers["x-should-retry"] == "false"
        with server.http.stream("POST", "/v1/completions", json={**ASKED, "stream": True}) as streamed:
            events = streamed.read().decode()
        assert "took longer" in events and "[DONE]" not in events
        eventually(lambda: not engine.busy)


@pytest.mark.slow
@pytest.mark.sample
def test_a_client_that_does_not_read_is_cut_off(model: Decoder, tokenizer: Tokenizer) -> None:
    """It blocks nobody, and its request is cancelled."""
    engine = Told(model, tokenizer.encode("The sum of the values. ") * 20_000)
    with live(engine, tokenizer, limits=Limits(write_seconds=0.4)) as server:
        body = json.dumps({"prompt": "a", "max_tokens": 100_000, "stream": True, "logprobs": 20, "n": 16}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head.encode() + body)
            eventually(lambda: len(engine.asked) == 1)
            assert post(server, ASKED).status_code == 200
            eventually(lambda: engine.cancelled == [0])
        assert server.metric("trueline_prompts_open") == 0


def test_the_end_is_orderly(engine: Told, tokenizer: Tokenizer) -> None:
    """What runs is finished; what comes is refused; health says so; then the port closes."""
    engine.go.clear()
    answers: list[httpx.Response] = []
    with live(engine, tokenizer, limits=Limits(drain_seconds=10)) as server:
        thread = threading.Thread(target=lambda: answers.append(post(server, ASKED)))
        thread.start()
        eventually(lambda: len(engine.asked) == 1)
        server.server.handle_exit(15, None)
        time.sleep(0.3)  # it looks ten times a second whether to end
        refused = post(server, ASKED)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert server.http.get("/health").status_code == 503
        assert server.http.get("/metrics").status_code == 200
        engine.go.set()
        thread.join(10)
        server.thread.join(10)
        assert not server.thread.is_alive()
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 40


@pytest.mark.slow
@pytest.mark.sample
def test_the_end_has_a_deadline(engine: Told, tokenizer: Tokenizer) -> None:
    engine.go.clear()
    answers: list[httpx.Response] = []
    with live(engine, tokenizer, limits=Limits(drain_seconds=0.2)) as server:
        thread = threading.Thread(target=lambda: answers.append(post(server, ASKED)))
        thread.start()
        eventually(lambda: len(engine.asked) == 1)
        server.server.handle_exit(15, None)
        server.thread.join(10)
        assert not server.thread.is_alive()
        thread.join(10)
    assert answers[0].status_code == 503 and answers[0].headers["retry-after"]


def test_a_port_in_use() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is in use: choose another --port"):
            bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="no address of this machine"):
        bind("nowhere.invalid", 80)
