"""`trueline chat MODEL_OR_URL`: a dialogue in the terminal, or through a pipe.

On a terminal there are a prompt, colours and a line about each answer; in a pipe every line (or block) of the input is a message, only
answers are printed, and what commands say goes to the error stream. Commands: dialogue.py.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text

from trueline.cli import Terminated
from trueline.cli.dialogue import Again, Dialogue, Quit
from trueline.cli.places import BASE
from trueline.cli.precision import Bits, Precision
from trueline.cli.text import Draws, engine_of, first_model
from trueline.cli.voices import LEARNED, Local, Remote, Voice, learned_to_chat
from trueline.records import Sampling
from trueline.serve.client import Client

BLOCK = '"""'
READY, MORE = "> ", "... "


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk with a model: several turns by its chat template, answers as they are drawn, commands that begin with / (/help shows them).
    A model that has not learned a template continues plain text instead. Ctrl-C stops an answer, Ctrl-D ends."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL_OR_URL")] = BASE
    """A folder, a hub id, "base" (the model that ships with Trueline), or an OpenAI-compatible address up to and with /v1."""
    system: str = ""
    """What the model is told first."""
    mode: Literal["auto", "chat", "text"] = "auto"
    """chat: by the chat template; text: plain text is continued; auto: chat where the model has learned to, which is said."""
    served_name: str = ""
    """Of an address: the model's name there; left out, the first that the server lists."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the address's key; where it is not set, none is sent."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    precision: Bits = field(default_factory=Precision)
    """How many bits to compute with."""
    sampling: Draws = field(default_factory=lambda: Sampling(max_new_tokens=512, temperature=0.7))
    """How to draw."""

    def run(self) -> None:
        """Talk until the person has had enough."""
        if self.sampling.n != 1:
            raise ValueError(f"--n is {self.sampling.n}: a chat has one answer at a time; trueline generate draws several")
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        screen = Screen(terminal)
        voice, plain, about = self.voice()
        if self.system and plain:
            raise ValueError(f"--system needs a chat, and {about}: leave it out, or insist with --mode chat")
        voice.check(self.sampling)
        screen.remark(f"{about}. /help shows the commands.", always=plain and self.mode == "auto")
        talk(Dialogue(voice, self.sampling, plain=plain, system=self.system), screen)

    def voice(self) -> tuple[Voice, bool, str]:
        """Who answers, whether in plain text, and what the person should know of it."""
        if self.model.startswith(("http://", "https://")):
            client = Client(self.model, os.environ.get(self.key_variable, "").strip())
            name = self.served_name or first_model(client)
            plain = self.mode == "text"
            return Remote(client, name), plain, f"{name} at {self.model}" + (" continues your text" if plain else "")
        engine = engine_of(self.model, self.device, precision=self.precision)
        if self.mode != "auto":
            plain = self.mode == "text"
            return Local(engine), plain, f"{self.model} " + ("continues your text" if plain else "answers by its chat template")
        closes = learned_to_chat(engine)
        if closes >= LEARNED:
            return Local(engine), False, f"{self.model} answers by its chat template"
        why = f"it closes a finished answer with a probability of {closes:.1g}"
        return Local(engine), True, f"{self.model} has not learned to chat ({why}), so it continues your text; --mode chat insists"


def talk(dialogue: Dialogue, screen: Screen) -> None:
    """Read, answer, again."""
    for text in screen.messages():
        if text.startswith("/") and not text.startswith("//"):
            try:
                screen.remark(dialogue.command(text), always=True)
                continue
            except Quit:
                return
            except Again as again:
                pieces = dialogue.answer(again.before)
            except (ValueError, OSError) as error:
                screen.fault(error)
                continue
        else:
            pieces = dialogue.ask(text.removeprefix("/") if text.startswith("//") else text)
        began = time.monotonic()
        try:
            screen.show(pieces)
        except KeyboardInterrupt as stop:
            pieces.close()
            if isinstance(stop, Terminated) or not screen.terminal:
                raise
            screen.remark("stopped; what was said stays: /retry draws it again, /undo takes it back")
        except ValueError as error:
            screen.fault(error)
        else:
            screen.remark(summary(dialogue, time.monotonic() - began))


def summary(dialogue: Dialogue, seconds: float) -> str:
    """One line about an answer."""
    voice = dialogue.voice
    unit = "tokens" if voice.context else "pieces"
    said = f"{voice.drawn:,} {unit}, {voice.drawn / max(seconds, 1e-9):,.0f} per second"
    if voice.reason == "length":
        limit = dialogue.sampling.max_new_tokens
        return said + (f"; cut at {limit:,}: /set max_new_tokens {2 * limit}" if voice.drawn >= limit else "; the context is full: /reset")
    return said


class Screen:
    """What a person types and sees; without a terminal, what comes and goes through the pipe."""

    def __init__(self, terminal: bool, read: Callable[[str], str] = input) -> None:
        self.terminal, self.read, self.prompt = terminal, read, READY
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        if terminal:
            with contextlib.suppress(ImportError):  # not every system has it
                importlib.import_module("readline")  # arrow keys, and earlier lines

    def messages(self) -> Iterator[str]:
        """What is typed, message by message; empty ones are passed over."""
        lines = self._lines()
        for line in lines:
            text, self.prompt = line, MORE
            if text.strip().startswith(BLOCK):
                text = self._block(text.strip().removeprefix(BLOCK), lines)
            else:
                while text.endswith("\\"):
                    text = text[:-1] + "\n" + next(lines, "")
            self.prompt = READY
            if text.strip():
                yield text

    def _block(self, first: str, lines: Iterator[str]) -> str:
        """Everything up to the closing marks."""
        kept = [first] if first else []
        while not (kept and kept[-1].rstrip().endswith(BLOCK)):
            line = next(lines, None)
            if line is None:
                break
            kept.append(line)
        return "\n".join(kept).rstrip().removesuffix(BLOCK).strip("\n")

    def _lines(self) -> Iterator[str]:
        if not self.terminal:
            yield from (line.rstrip("\r\n") for line in sys.stdin)
            return
        while True:
            try:
                yield self.read(self.prompt)
            except EOFError:
                print()
                return
            except KeyboardInterrupt as stop:
                if isinstance(stop, Terminated):
                    raise
                self.prompt = READY
                print()
                self.remark("Ctrl-D or /quit ends")

    def show(self, pieces: Iterator[str]) -> None:
        """An answer as it comes. On a terminal, characters that would drive it are left out."""
        ended = False
        try:
            for piece in pieces:
                if self.terminal:
                    piece = "".join(c for c in piece if c.isprintable() or c in "\n\t")
                    self.console.print(Text(piece, style="cyan"), end="")
                else:
                    print(piece, end="", flush=True)
                ended = piece.endswith("\n")
        finally:
            if not ended:
                print(flush=True)

    def remark(self, text: str, *, always: bool = False) -> None:
        """About the dialogue rather than of it: on the error stream in a pipe, and there only what has to be said."""
        if self.terminal:
            self.console.print(Text(text, style="dim"))
        elif always:
            print(text, file=sys.stderr)

    def fault(self, error: Exception) -> None:
        """One sentence; in a pipe, where nobody can answer it, the end."""
        if not self.terminal:
            raise error
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        self.console.print(Text(f"error: {' '.join(said.split())}", style="red"))
