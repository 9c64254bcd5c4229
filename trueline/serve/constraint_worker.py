"""The process in which constraints are compiled and followed. Started by constraints.py; no torch, no numpy.

    stdin   {"new": [[id, kind, text, tokens]], "drop": [id], "rows": [[id, tokens, draft]]}       one line of JSON per request
    stdout  {"errors": {id: message}, "places": [per row]}                                         one line, then all bit masks

Why a process: schemas and grammars come from the network, and a grammar of one line can keep a parser busy for ever, or overflow
its stack. This process ends itself when a request takes too long or too much memory; the other side starts a new one.
Left out: what the masks are used for, and everything about text and control tokens (constraints.py).
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
from base64 import b64decode
from functools import partial
from typing import Any

OPTIONS = '\n%llguidance {"no_forcing": true}\n'
"""Every spelling of the text by tokens is allowed, not only the tokenizer's own: the choice is the model's. At the end of a
grammar, where it overrules the grammar's own."""
PROTOTYPES = 32
"""Compiled constraints that are kept for the next request with the same one."""


class Vocabulary:
    """What llguidance asks of a tokenizer. The id after the last stands for the end: its bit says that the text is complete."""

    def __init__(self, tokens: list[bytes], special: list[int]) -> None:
        # a control token without a name would be the beginning of all others
        self.tokens = [*(token or f"<|none {i}|>".encode() for i, token in enumerate(tokens)), b"<|complete|>"]
        self.eos_token_id, self.bos_token_id = len(tokens), None
        self.special_token_ids = [*special, len(tokens)]

    def __call__(self, text: bytes) -> list[int]:
        raise AssertionError("nothing is forced, so nothing is tokenised")


class Worker:
    """Matchers by their number."""

    def __init__(self, vocabulary: Vocabulary, limits: dict[str, Any]) -> None:
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary))
        self._limits = LLParserLimits(**limits)
        self._compile = LLMatcher
        self._ascii = partial(regex_to_lark, use_ascii="dws")
        self._matchers: dict[int, LLMatcher] = {}
        self._prototypes: dict[tuple[str, str], LLMatcher] = {}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The head of an answer and the masks that follow it."""
        errors: dict[int, str] = {}
        for number in request.get("drop", ()):
            self._matchers.pop(number, None)
        for number, kind, text, tokens in request.get("new", ()):
            self._new(number, kind, text, tokens)
        places: list[int] = []
        masks: list[bytes] = []
        for number, tokens, draft in request.get("rows", ()):
            matcher = self._matchers[number]
            if tokens:
                matcher.consume_tokens(tokens)
            found = [] if matcher.is_error() else [matcher.compute_bitmask()]
            taken = 0
            for token in draft if found else ():
                if not found[-1][token >> 3] >> (token & 7) & 1 or not matcher.consume_token(token):
                    break
                taken += 1
                found.append(matcher.compute_bitmask())
            if taken:
                matcher.rollback(taken)
            errors[number] = matcher.get_error()
            places.append(len(found))
            masks += found
        return {"errors": {n: e for n, e in errors.items() if e}, "places": places}, masks

    def _new(self, number: int, kind: str, text: str, tokens: list[int]) -> None:
        prototype = self._prototypes.get((kind, text))
        if prototype is None:
            prototype = self._compile(self._tokenizer, self._grammar(kind, text), log_level=0, limits=self._limits)
            if len(self._prototypes) == PROTOTYPES:
                self._prototypes.pop(next(iter(self._prototypes)))
            self._prototypes[kind, text] = prototype
        matcher = self._matchers[number] = prototype.deep_copy()
        if tokens:
            matcher.consume_tokens(tokens)

    def _grammar(self, kind: str, text: str) -> str:
        if kind == "regex":
            text = f"start: /{self._ascii(text)}/"
        elif kind == "json_schema":
            text = f"start: %json {text}"
        return self._compile.grammar_from_lark(text + OPTIONS)


def main() -> None:
    """Serves until stdin ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = json.loads(source.readline())
    try:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
    except (ImportError, ValueError, OSError):  # a system without such limits, or a lower one is set already
        pass
    worker = Worker(Vocabulary([b64decode(token) for token in setup["tokens"]], setup["special"]), setup["limits"])
    sink.write(b"ready\n")
    sink.flush()
    for line in source:
        _end_after(setup["seconds"])
        head, masks = worker.answer(json.loads(line))
        sink.write(json.dumps(head).encode() + b"\n" + b"".join(masks))
        sink.flush()
        _end_after(0)


def _end_after(seconds: float) -> None:
    """Ends this process then, whatever it is busy with: neither way needs Python's lock. 0: not any more."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles SIGALRM: it ends the process
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
