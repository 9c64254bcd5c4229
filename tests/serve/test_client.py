"""The client of OpenAI's protocol: what it asks, what it reads, and one sentence for whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.fake_server import fake_server
from trueline.records import Message, Sampling
from trueline.serve.client import Client, Passing, chat_body, text_body

HELLO = (Message(role="user", content="Hello"),)


def test_a_stream_is_the_answer_in_pieces() -> None:
    with fake_server(lambda body: "Hello, wörld 😀!") as fake:
        client = Client(fake.url, key="sk-secret-key")
        pieces = list(client.stream(chat_body("m", HELLO, Sampling())))
        assert "".join(piece.text for piece in pieces) == "Hello, wörld 😀!" and len(pieces) > 4
        assert pieces[-1].finish_reason == "stop" and fake.keys == ["Bearer sk-secret-key"]
        assert "".join(piece.text for piece in client.stream(text_body("m", "Once", Sampling()))) == "Hello, wörld 😀!"
        assert fake.asked[0]["messages"] == [{"role": "user", "content": "Hello"}] and fake.asked[1]["prompt"] == "Once"
        assert client.ask(chat_body("m", HELLO, Sampling()))["choices"][0]["message"]["content"] == "Hello, wörld 😀!"
        assert client.models() == ["fake", "other"]


def test_only_what_is_set_goes_beyond_the_protocol() -> None:
    """A server that refuses unknown fields can be talked to with the defaults."""
    assert set(chat_body("m", HELLO, Sampling())) == {"model", "messages", "max_tokens", "temperature", "top_p", "n", "seed"}
    body = text_body("m", (5, 6), Sampling(top_k=4, stop=("x",), logit_bias=((7, -1.5),), repetition_penalty=1.1))
    assert (body["prompt"], body["top_k"], body["stop"], body["repetition_penalty"]) == ([5, 6], 4, ["x"], 1.1)
    assert body["logit_bias"] == {"7": -1.5}


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        ((401, {"error": {"message": "no, sk-secret-key\x1b[2J is wrong"}}), ValueError, r"401 no, \*\*\* \[2J is wrong; is the key right"),
        ((404, {"detail": "Not Found"}), ValueError, "404 Not Found; does the address end in /v1"),
        ((503, {"error": {"message": "full"}}), Passing, "refused: 503 full"),
        ((400, {"error": {"message": "too long"}}), ValueError, "400 too long"),
        ((200, ["x"]), Passing, "no JSON object"),
        ((200, {"choices": []}), Passing, "without choices"),
    ],
)
def test_faults_are_one_sentence(answer: tuple[int, Any], kind: type[ValueError], sentence: str) -> None:
    with fake_server(lambda body: answer) as fake, pytest.raises(ValueError, match=sentence) as raised:
        Client(fake.url, key="sk-secret-key").ask(chat_body("m", HELLO, Sampling()))
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("127.0.0.1:8000", "is no address"), ("ftp://x/v1", "is no address"), ("http://me:secret@x/v1", "with a password"),
     ("http://127.0.0.1:9/v1", "cannot be reached")],
)  # fmt: skip
def test_addresses(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Client(url).models()


def test_it_needs_no_torch() -> None:
    code = "import sys, trueline.serve.client; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
