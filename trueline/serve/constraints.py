"""Output that must follow a JSON schema, a regular expression or a grammar: which tokens may come next. No torch.

    constraints = Constraints(tokenizer)
    matcher = constraints.matcher(Constraint("regex", "[0-9]+"), stop_ids)     one per response; ValueError: it cannot be followed
    constraints.masks([(matcher, draft), ...])                                 for all rows of a step at once
    matcher.accept(token)                                                      after every drawn token

The parsing is llguidance's (extra `serve`), in a process of its own (constraint_worker.py): a schema from the network that keeps
the parser busy for more than SECONDS, or brings it down, costs its own request only. Everything is counted in bytes of text:
control tokens are never allowed, a stop id exactly when the text is complete, and every spelling of a text is. Expressions are
those of Rust's regex, in which \\d, \\w and \\s mean ASCII here (as in JSON schemas), and the whole text must match.
Legend: W = bytes of a bit mask over the vocabulary, lowest bit first.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import weakref
from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from trueline.serve.request import Constraint
from trueline.tokens.tokenizer import Tokenizer

SECONDS = 2.0
"""One step of all running constraints, or compiling one, takes at most so long."""
LENGTH = 65_536
"""Characters of a schema, expression or grammar."""
MEMORY = 4 << 30
"""Bytes of address space that the parser may use."""
LIMITS = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""llguidance's own limits: about 10 ms to compile, 7 ms a step, and 40 MB for each constraint."""
SCHEMA = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\r\n]{1,64}"}
"""White space between tokens ends: a model that likes it would go on for ever. In place of options in the schema itself, which
could have keywords ignored."""
NAMES = {"json_schema": "JSON schema", "json": "JSON schema", "regex": "regular expression", "grammar": "Lark grammar"}


class Matcher:
    """Where one response stands in its constraint."""

    def __init__(self, number: int, kind: str, text: str, stop_ids: frozenset[int], allowed_W: np.ndarray) -> None:
        self.number, self.kind, self.text, self.stop_ids = number, kind, text, stop_ids
        self.taken: list[int] = []
        """Tokens accepted so far, without a stop id."""
        self.sent = 0
        """How many of them the worker knows."""
        self.finished = False
        """Nothing can be drawn any more: the text is complete and there is no stop id to say so, or `error` is set."""
        self.places = 1
        """Of the latest masks: so many of the newest token and its draft's have a token that may follow. None may be drawn at others."""
        self.error = ""
        """Why it could not be followed to its end: it took too long or grew too large. The engine ends the response."""
        self._stop_W = _bits(stop_ids, 8 * len(allowed_W))
        self._allowed_W = allowed_W & ~self._stop_W

    def accept(self, token: int) -> None:
        """The response holds one more token, which its mask allowed."""
        if token not in self.stop_ids:
            self.taken.append(token)

    def mask(self, found_W: np.ndarray, complete: bool) -> np.ndarray:
        """uint8 [W] of one place from what the worker found: a stop id is allowed exactly when the text is complete."""
        mask_W = found_W & self._allowed_W
        return mask_W | self._stop_W if complete else mask_W


class Constraints:
    """Follows the constraints of an engine's responses. The worker starts with the first one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if importlib.util.find_spec("llguidance") is None:
            raise ValueError("constrained output needs llguidance: pip install 'trueline[serve]'")
        tokens = token_bytes(tokenizer)
        self._special = sorted({*tokenizer.control.values(), *(i for i, token in enumerate(tokens) if not token)})
        self._tokens = tokens
        self._bytes = -(-(len(tokens) + 1) // 32) * 4  # llguidance fills whole words of 32 bits
        self._allowed_W = ~_bits([*self._special, len(tokens)], 8 * self._bytes)
        self._first_W = ~_bits(_dropped_at_the_start(tokenizer, tokens), 8 * self._bytes)
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[int] = set()
        self._dropped: list[int] = []
        self._numbers = count()
        self._lock = Lock()

    def matcher(self, constraint: Constraint, stop_ids: Collection[int]) -> Matcher:
        """At the start of a response. ValueError in one sentence: malformed, too large, or nothing follows it."""
        kind, text = _checked(constraint)
        matcher = self._new(kind, text, frozenset(stop_ids))
        self.masks([(matcher, ())])
        if matcher.error:
            raise ValueError(f"the {NAMES[kind]} cannot be followed: {matcher.error}")
        return matcher

    def copy(self, matcher: Matcher) -> Matcher:
        """For another response that holds the same tokens so far."""
        other = self._new(matcher.kind, matcher.text, matcher.stop_ids)
        other.taken, other.finished, other.error = list(matcher.taken), matcher.finished, matcher.error
        return other

    def masks(self, asked: Sequence[tuple[Matcher, Sequence[int]]]) -> list[list[np.ndarray]]:
        """For each matcher, and the draft that may follow its tokens, one mask uint8 [W] for every place: 1 + len(draft).

        Behind a draft token that is not allowed (it can never be accepted) the last mask is repeated. Sets `finished`.
        """
        open_rows = [(matcher, draft) for matcher, draft in asked if not matcher.finished]
        with self._lock:
            found = dict(zip((matcher.number for matcher, _ in open_rows), self._follow(open_rows), strict=True))
        rows = [found.get(matcher.number) or [np.full(self._bytes, 255, dtype=np.uint8)] for matcher, _ in asked]
        return [row + row[-1:] * (1 + len(draft) - len(row)) for row, (_, draft) in zip(rows, asked, strict=True)]

    def close(self) -> None:
        """Ends the worker; it ends with this process, too."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
        self._known.clear()

    def _new(self, kind: str, text: str, stop_ids: frozenset[int]) -> Matcher:
        matcher = Matcher(next(self._numbers), kind, text, stop_ids, self._allowed_W)
        weakref.finalize(matcher, self._dropped.append, matcher.number)
        return matcher

    def _follow(self, asked: Sequence[tuple[Matcher, Sequence[int]]]) -> list[list[np.ndarray]]:
        """The worker's masks; when it ends over them, one by one to find out whose fault it is."""
        if not asked:
            return []
        dropped, self._dropped[:] = list(self._dropped), []
        self._known.difference_update(dropped)
        new = [matcher for matcher, _ in asked if matcher.number not in self._known]
        for matcher in new:
            matcher.sent = len(matcher.taken)
        request = {
            "drop": dropped,
            "new": [[matcher.number, matcher.kind, matcher.text, matcher.taken] for matcher in new],
            "rows": [[matcher.number, matcher.taken[matcher.sent :], list(draft)] for matcher, draft in asked],
        }
        answer = self._ask(request)
        if answer is None and len(asked) > 1:
            return [self._follow([one])[0] for one in asked]
        matcher = asked[0][0]
        if answer is None:
            matcher.finished = True
            matcher.error = (
                f"it takes more than {SECONDS:g} s or {MEMORY >> 30} GiB, or is nested too deeply: simplify it"
            )
            return [[np.full(self._bytes, 255, dtype=np.uint8)]]
        head, places = answer
        self._known.update(matcher.number for matcher in new)
        found = []
        at = 0
        for (matcher, _), number in zip(asked, head["places"], strict=True):
            matcher.sent = len(matcher.taken)
            matcher.error = _reason(head["errors"].get(str(matcher.number), ""))
            found.append(self._masks(matcher, places[at : at + number * (not matcher.error)]))
            at += number
        return found

    def _masks(self, matcher: Matcher, found_PW: np.ndarray) -> list[np.ndarray]:
        """Those of a matcher's places, up to the first where nothing can be drawn; when it is the first of all, it has finished."""
        end = len(self._tokens)
        masks = []
        for place, found_W in enumerate(found_PW):
            complete = bool(found_W[end >> 3] >> (end & 7) & 1)
            at_the_start = not matcher.taken and place == 0
            masks.append(matcher.mask(found_W & self._first_W if at_the_start else found_W, complete))
            if not masks[-1].any():
                masks.pop()
                if place == 0 and not (complete and not matcher.stop_ids):
                    matcher.error = matcher.error or "the constraint allows no token of this tokenizer here"
                break
        matcher.places = len(masks)
        matcher.finished = not masks
        return masks or [np.full(self._bytes, 255, dtype=np.uint8)]

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray] | None:
        """Head and masks uint8 [places, W]; None when the worker ended, a new one starts with the next request."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            head = json.loads(process.stdout.readline())
            size = sum(head["places"]) * self._bytes
            masks = process.stdout.read(size)
        except (OSError, ValueError):
            masks, size = b"", 1
        if len(masks) < size:
            self.close()
            return None
        return head, np.frombuffer(masks, dtype=np.uint8).reshape(-1, self._bytes)

    def _start(self) -> subprocess.Popen[bytes]:
        setup = {
            "tokens": [b64encode(token).decode() for token in self._tokens],
            "special": self._special,
            "limits": LIMITS,
            "memory": MEMORY,
            "seconds": SECONDS,
        }
        command = [
            sys.executable,
            "-P",
            str(Path(__file__).with_name("constraint_worker.py")),
        ]  # -P: it sees no module of this folder
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(setup).encode() + b"\n")
            process.stdin.flush()
            ready = process.stdout.readline()
        except OSError:
            ready = b""
        if not ready:
            process.kill()
            raise RuntimeError(f"the process that follows constraints did not start: see what {' '.join(command)} says")
        self._process = process
        weakref.finalize(self, process.kill)
        return process


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What each id adds to a text, from the vocabulary and its decoder; b"" for ids without a token.

    Byte-level BPE, and SentencePiece with or without byte fallback. ValueError: a decoder that does not join tokens byte by byte.
    """
    decoder = tokenizer.spec.get("decoder") or {"type": "none"}
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    fused = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    trims = [step for place, step in enumerate(steps) if step["type"] == "Strip" and (place < fused or step["stop"])]
    if not {"ByteLevel", "Metaspace", "Replace"} & set(kinds) or trims or set(kinds) - set(STEPS):
        raise ValueError(
            f"constrained output needs a tokenizer whose tokens are joined byte by byte, not one with the decoder {', '.join(kinds)}: "
            "use byte-level BPE or SentencePiece"
        )
    letters = _letters()
    found = []
    for index in range(tokenizer.vocab_size):
        token = tokenizer.piece(index)
        found.append(b"" if token is None else _piece_bytes(token, steps, letters))
    return found


STEPS = ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")


def _piece_bytes(token: str, steps: Iterable[dict[str, Any]], letters: dict[str, int]) -> bytes:
    for step in steps:
        if step["type"] == "ByteLevel":
            known = all(letter in letters for letter in token)
            return bytes(letters[letter] for letter in token) if known else token.encode()
        if step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
        if step["type"] == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
        if step["type"] == "ByteFallback" and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
    return token.encode()


def _letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level BPE: itself where it is printable, else one from 256 on (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _dropped_at_the_start(tokenizer: Tokenizer, tokens: Sequence[bytes]) -> list[int]:
    """Tokens that begin with a space, where the decoder takes the first one off a text: the text would not be what was matched."""
    spaced = [index for index, token in enumerate(tokens) if token.startswith(b" ")]
    probe = next((index for index in spaced if len(tokens[index]) > 1 and tokens[index].isascii()), None)
    return spaced if probe is not None and tokenizer.decode([probe]) != tokens[probe].decode() else []


def _bits(ids: Iterable[int], size: int) -> np.ndarray:
    """uint8 [size / 8] with these bits set."""
    flags = np.zeros(size, dtype=bool)
    flags[[index for index in ids if index < size]] = True
    return np.packbits(flags, bitorder="little")


def _checked(constraint: Constraint) -> tuple[str, str]:
    """Kind and text as the worker takes them."""
    if constraint.kind not in NAMES:
        raise ValueError(
            f"a constraint of kind {constraint.kind!r} is unknown: use json_schema, json, regex or grammar"
        )
    name, text = NAMES[constraint.kind], constraint.text
    if len(text) > LENGTH:
        raise ValueError(f"the {name} has {len(text):,} characters, at most {LENGTH:,} are read: shorten it")
    if constraint.kind == "json":
        text = '{"type": "object"}'
    if constraint.kind in ("regex", "grammar"):
        if not text:
            raise ValueError(f"the {name} is empty: write one, or ask for no constraint")
        return constraint.kind, text
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"the JSON schema is not valid JSON{where}: write it as json.dumps does") from None
    if not isinstance(schema, dict | bool):
        raise ValueError(f"the JSON schema is a {type(schema).__name__}: it should be an object, {{...}}")
    return "json_schema", json.dumps({**schema, "x-guidance": SCHEMA} if isinstance(schema, dict) else schema)


def _reason(message: str) -> str:
    """llguidance's message without its excerpts of the grammar, in one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "")
    return said.removeprefix("error: ").rpartition("failed to compile JSON schema: ")[2][:200]
