"""A dialogue and the commands that change it. What is printed and read is elsewhere (chat.py).

    dialogue = Dialogue(voice, sampling)
    for piece in dialogue.ask("Hello"): ...        the answer joins the dialogue, also when it was stopped in the middle
    dialogue.command("/set temperature 0.7")  -> what to tell the person
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import shlex
import typing
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trueline.cli.voices import Voice
from trueline.records import TEXT, Conversation, Document, Message, Messages, Sampling
from trueline.rows.reading import read_rows
from trueline.store import write_atomic

SETTINGS = tuple(one.name for one in dataclasses.fields(Sampling) if one.name != "n")
ANSWER = "answer"
"""Name of the model's part of a plain text."""
HELP = """\
/system TEXT     what the model is told first; alone: shows it; /system "" removes it
/set NAME VALUE  how answers are drawn, such as /set temperature 0.7; alone: shows all
/retry           draw the last answer again
/undo            take back the last message and its answer
/reset           begin anew
/save FILE       the dialogue as a row of training data (messages, JSON)
/load FILE       the first dialogue of a file
/tokens          how much of the model's context is used
/quit            end, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next; \"\"\" begins and ends a text of several lines.
A message that begins with / is written with two: //like this."""


class Quit(Exception):
    """The person wants to go."""


class Again(Exception):
    """The last message is to be answered again; `before` are the turns to go back to if nothing comes of it."""

    def __init__(self, before: list[Message]) -> None:
        self.before = before


@dataclass
class Dialogue:
    """What was said, and how answers are drawn."""

    voice: Voice
    sampling: Sampling
    plain: bool = False
    """Text is continued as it stands; there are no roles."""
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    answers: int = 0
    """Drawn so far: each has a seed of its own, so that the same again is not the same."""

    @property
    def messages(self) -> Messages:
        """What the model sees."""
        first = (Message(role="system", content=self.system),) if self.system and not self.plain else ()
        return (*first, *self.turns)

    def ask(self, text: str) -> Generator[str]:
        """The answer to a new message. One that is not answered is not kept."""
        before = list(self.turns)
        if self.plain and self.turns and not self.turns[-1].content.endswith("\n"):
            text = "\n" + text  # the person wrote it on a new line
        self.turns.append(Message(role=TEXT if self.plain else "user", content=text))
        return self.answer(before)

    def answer(self, before: list[Message]) -> Generator[str]:
        """The answer to the last message. What was said of it when it is stopped stays; nothing said leaves `before`."""
        said: list[str] = []
        whole = False
        sampling = replace(self.sampling, seed=self.sampling.seed + self.answers)
        self.answers += 1
        try:
            with closing(self.voice.say(self.messages, sampling)) as pieces:
                for piece in pieces:
                    said.append(piece)
                    yield piece
            whole = True
        finally:
            if said or whole:
                text = "".join(said)
                self.turns.append(Message(role=TEXT, content=text, name=ANSWER) if self.plain else Message(role="assistant", content=text))
            else:
                self.turns = before

    def command(self, line: str) -> str:
        """Does what a line that begins with / says, and tells what was done. ValueError: it cannot, and why."""
        word, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        match word:
            case "help" | "?":
                return HELP
            case "quit" | "exit":
                raise Quit
            case "system":
                return self._system(rest)
            case "set":
                return self._set(rest)
            case "reset":
                self.turns.clear()
                return "the dialogue begins anew"
            case "undo":
                return self._undo()
            case "retry":
                return self._retry()
            case "save":
                return self._save(_path(rest, "save"))
            case "load":
                return self._load(_path(rest, "load"))
            case "tokens":
                return self._tokens()
        names = ("help", "system", "set", "retry", "undo", "reset", "save", "load", "tokens", "quit")
        near = difflib.get_close_matches(word, names, 1)
        near = near or [f"set {one} {rest}".strip() for one in difflib.get_close_matches(word, SETTINGS, 1)]
        raise ValueError(f"there is no command /{word}" + (f"; did you mean /{near[0]}?" if near else "; /help shows those there are"))

    def _system(self, text: str) -> str:
        if self.plain:
            raise ValueError("plain text has no system message: begin with what the model should know")
        if not text:
            return f"system: {self.system}" if self.system else "there is no system message"
        self.system = "" if text in ('""', "''") else text
        return "the model is told this first, from the next answer on" if self.system else "the system message is gone"

    def _set(self, rest: str) -> str:
        if not rest:
            return "\n".join(f"{name} {_shown(value)}" for name, value in asdict(self.sampling).items() if name != "n")
        name, _, value = rest.partition(" ")
        changed = setting(self.sampling, name, value.strip())
        self.voice.check(changed)
        self.sampling = changed
        return f"{name} {_shown(asdict(changed)[name])}"

    def _undo(self) -> str:
        if not self.turns:
            raise ValueError("there is nothing to take back")
        taken = self.turns.pop()
        if self.turns and answers(taken) and not answers(self.turns[-1]):
            self.turns.pop()
        return f"taken back; {len(self.turns):,} messages are left"

    def _retry(self) -> str:
        before = list(self.turns)
        asked = before[:-1] if before and answers(before[-1]) else before
        if not asked:
            raise ValueError("there is no message to answer again")
        self.turns = list(asked)
        raise Again(before)

    def _save(self, path: Path) -> str:
        if not self.turns:
            raise ValueError("there is nothing to save yet")
        row: dict[str, Any] = {"messages": [{"role": one.role, "content": one.content} for one in self.messages]}
        if self.plain:
            row = {"text": "".join(one.content for one in self.turns)}
        write_atomic(path, json.dumps(row, ensure_ascii=False) + "\n")
        return f"{len(self.messages):,} messages in {path}"

    def _load(self, path: Path) -> str:
        found = next((one for one in read_rows(path) if isinstance(one, Conversation | Document)), None)
        if found is None:
            raise ValueError(f"{path} holds no dialogue: it should hold a row with messages, as /save writes it")
        messages = found.messages if isinstance(found, Conversation) else (Message(role=TEXT, content=found.text),)
        if self.plain:
            self.turns = [Message(role=TEXT, content="".join(one.content for one in messages))]
        elif messages[0].role == TEXT:
            raise ValueError(f"{path} holds plain text, which this model is not asked with: trueline chat --mode text continues it")
        else:
            self.system = messages[0].content if messages[0].role == "system" else ""
            self.turns = [one for one in messages if one.role != "system"]
        asked = self.turns and self.turns[-1].role != "assistant"
        return f"{len(self.turns):,} messages from {path}" + ("; /retry answers the last one" if asked else "")

    def _tokens(self) -> str:
        if not self.turns:
            return "nothing was said yet" + (f"; the context holds {self.voice.context:,} tokens" if self.voice.context else "")
        used = self.voice.count(self.messages)
        if used is None:
            return f"the server counts; the last answer came in {self.voice.drawn:,} pieces"
        return f"{used:,} of {self.voice.context:,} tokens, {self.voice.context - used:,} left; the last answer had {self.voice.drawn:,}"


def answers(message: Message) -> bool:
    """Whether the model wrote it."""
    return message.role == "assistant" or message.name == ANSWER


def setting(sampling: Sampling, name: str, value: str) -> Sampling:
    """Sampling with one field changed by what a person typed."""
    hints = typing.get_type_hints(Sampling)
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1)
        raise ValueError(f"there is no setting {name!r}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"))
    if not value:
        raise ValueError(f"{name} needs a value: /set {name} {_shown(asdict(Sampling())[name]) or 'VALUE'}")
    try:
        parsed: Any
        if hints[name] in (int, float):
            parsed = hints[name](value)
        elif name == "stop":
            parsed = tuple(bytes(text, "utf-8").decode("unicode_escape").encode("latin-1").decode("utf-8") for text in shlex.split(value))
        elif name == "stop_ids":
            parsed = tuple(int(text) for text in value.split())
        else:
            words = value.split()
            parsed = tuple((int(token), float(bias)) for token, bias in zip(words[::2], words[1::2], strict=True))
    except ValueError:
        raise ValueError(f"{name} cannot be {value!r}: write {_example(name, hints[name])}") from None
    return replace(sampling, **{name: parsed})


def _example(name: str, kind: Any) -> str:
    examples = {"stop": r'texts such as "\n\n" END', "stop_ids": "token ids such as 5 7", "logit_bias": "pairs such as 5 -1.5 7 2"}
    return examples.get(name, "a whole number" if kind is int else "a number such as 0.7")


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_shown(one) for one in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise ValueError(f"/{command} needs a file: /{command} dialogue.json")
    return Path(rest).expanduser()
