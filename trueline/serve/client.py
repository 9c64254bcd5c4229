"""Talking to an OpenAI-compatible server: the models it has, answers in one piece, answers as they are written. No torch.

    client = Client("http://127.0.0.1:8000/v1", key=os.environ.get("OPENAI_API_KEY", ""))
    client.models()                             -> ["sft"]
    client.ask(body)                            -> the answer's JSON
    for piece in client.stream(body): ...       -> Piece(text, finish reason) from server-sent events; close the iterator to stop the server

A body is made by `chat_body` or `text_body` from messages or a text and a Sampling. The key goes to the address only, is taken out of
whatever is said, and redirects are refused. Every fault is one sentence (ValueError); one that may pass is `Passing`.
Left out: tools, images, audio.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from trueline.records import Message, Sampling

LONGEST = 1 << 24
"""Bytes of an answer, and of one line of a stream."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Codes of faults that pass."""
SHORTEST_KEY = 8
"""Characters; what is shorter, such as EMPTY, is no secret, and a word that an answer may hold."""


class Passing(ValueError):
    """A fault that may be gone when asked again."""


class Piece(NamedTuple):
    """What one event of a stream adds."""

    text: str
    finish_reason: str | None


def chat_body(model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """Of /chat/completions."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return {"model": model, "messages": turns, **_drawing(sampling)}


def text_body(model: str, prompt: str | Sequence[int], sampling: Sampling) -> dict[str, Any]:
    """Of /completions: a text or token ids to be continued."""
    return {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), **_drawing(sampling)}


def _drawing(sampling: Sampling) -> dict[str, Any]:
    """The fields of Sampling in OpenAI's names; those that OpenAI lacks, as vLLM names them, only where they are set."""
    s = sampling
    said: dict[str, Any] = {"max_tokens": s.max_new_tokens, "temperature": s.temperature, "top_p": s.top_p, "n": s.n, "seed": s.seed}
    more = {
        "stop": list(s.stop), "stop_token_ids": list(s.stop_ids), "top_k": s.top_k, "min_p": s.min_p,
        "presence_penalty": s.presence_penalty, "frequency_penalty": s.frequency_penalty,
        "repetition_penalty": 0 if s.repetition_penalty == 1 else s.repetition_penalty,
        "logit_bias": {str(token): bias for token, bias in s.logit_bias},
    }  # fmt: skip
    return said | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class Client:
    """One server. Threads may share it."""

    url: str
    """Up to and with /v1."""
    key: str = ""
    """Sent as a bearer token; empty: none."""
    timeout: float = 120.0
    """Seconds without a byte after which an answer is given up."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no address: write one such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password:
            raise ValueError("an address with a password in it is shown and kept: put the key into an environment variable instead")

    def models(self) -> list[str]:
        """Names of what the server offers."""
        try:
            return [str(one["id"]) for one in self._json("/models", None)["data"]]
        except (KeyError, TypeError):
            raise ValueError(f"{self.url} answers, but not with a list of models: does the address end in /v1?") from None

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a chat or text body."""
        found = self._json(_path(body), dict(body))
        choices = found.get("choices")
        if not isinstance(choices, list) or not choices:
            raise Passing(f"{self.url} answers without choices: {str(found)[:100]}")
        return found

    def stream(self, body: Mapping[str, Any]) -> Iterator[Piece]:
        """The first response, piece by piece as the server sends it."""
        with self._open(_path(body), {**body, "stream": True}) as response:
            try:
                for event in _events(response):
                    yield from self._pieces(event)
            except (OSError, http.client.HTTPException) as error:
                raise Passing(f"{self.url} broke off its answer ({_reason(error)})") from None

    def _pieces(self, event: str) -> Iterator[Piece]:
        try:
            said = json.loads(event)
            if "error" in said:
                raise ValueError(f"{self.url} gave up: {self._clean(_message(said))}")
            for choice in said["choices"][:1]:  # the last chunk of a server that counts tokens has none
                text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
                yield Piece(text or "", choice.get("finish_reason"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise Passing(f"{self.url} streams something that is no completion: {self._clean(event)[:100]!r}") from None

    # -- the wire ----------------------------------------------------------------------------------------------------

    def _json(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._open(path, body) as response:
            try:
                found = response.read(LONGEST + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Passing(f"{self.url} broke off its answer ({_reason(error)})") from None
        if len(found) > LONGEST:
            raise ValueError(f"{self.url} answers with more than {LONGEST >> 20} MB")
        try:
            said = json.loads(found)
            if isinstance(said, dict):
                return said
        except (ValueError, RecursionError):
            pass
        shown = self._clean(found[:60].decode("utf-8", errors="replace"))
        raise Passing(f"{self.url} answers with something that is no JSON object: {shown!r}; does the address end in /v1?")

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": "trueline"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            return urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                said = self._clean(_said(error))
            kind = Passing if error.code in PASSING else ValueError
            hint = "; is the key right?" if error.code in (401, 403) else "; does the address end in /v1?" if error.code == 404 else ""
            raise kind(f"{self.url} refused: {error.code} {said}{hint}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"{self.url} cannot be reached ({_reason(error)})") from None

    def _clean(self, text: str) -> str:
        """Without the key, which a server may repeat, and on one line without what would drive a terminal."""
        text = text.replace(self.key, "***") if len(self.key) >= SHORTEST_KEY else text
        return "".join(c if c.isprintable() else " " for c in text)[:300]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key and the texts go to the address that was named, and nowhere else."""

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> None:
        host = urllib.parse.urlsplit(newurl).netloc
        raise ValueError(f"{req.full_url} redirects to {host[:100]}, which is refused: name that address if you trust it")


def _path(body: Mapping[str, Any]) -> str:
    return "/chat/completions" if "messages" in body else "/completions"


def _events(response: Any) -> Iterator[str]:
    """The data of server-sent events (WHATWG HTML, section 9.2), up to [DONE]: comments and other fields are passed over."""
    data: list[str] = []
    while raw := response.readline(LONGEST):
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            event, data = "\n".join(data), []
            if event == "[DONE]":
                return
            yield event
    if data and data != ["[DONE]"]:
        yield "\n".join(data)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's reason."""
    try:
        found = error.read(LONGEST)
        return " ".join(_message(json.loads(found)).split()) or str(error.reason)
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return str(error.reason)


def _message(said: Any) -> str:
    """OpenAI's {"error": {"message": ...}}, FastAPI's {"detail": ...}, or whatever it is."""
    inner = said.get("error", said.get("detail", said)) if isinstance(said, dict) else said
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__} {reason}".strip()[:200]
