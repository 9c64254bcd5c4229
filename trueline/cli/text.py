"""`trueline generate` and `trueline sample`: text out of a model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from trueline.cli.places import BASE, COLUMNS, DATA, MODEL, column_names, model_folder, say_read
from trueline.records import TEXT, Conversation, Message, Messages, Sampling
from trueline.rows import read_prompts
from trueline.run import Bar
from trueline.tokens import encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from trueline.serve.engine import Engine

Draws = Annotated[Sampling, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
"""The fields of Sampling as flat flags."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt, printing as the text is drawn. Without a prompt, standard input is the prompt."""

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")] = ""
    """Text to continue; with --chat, the user's message. Left out: read from standard input."""
    model: Annotated[str, MODEL] = BASE
    """A folder, a hub id, or "base", the model that ships with Trueline."""
    chat: bool = False
    """Put the prompt through the model's chat template."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    sampling: Draws = field(default_factory=Sampling)
    """How to draw."""

    def run(self) -> None:
        """Print the responses."""
        prompt = self.prompt or sys.stdin.read()
        if not prompt:
            raise ValueError('there is no prompt: trueline generate "Once upon a time", or pipe a text in')
        engine = engine_of(self.model, self.device)
        message = Message(role="user" if self.chat else TEXT, content=prompt)
        for number in range(self.sampling.n):
            if self.sampling.n > 1:
                print(f"--- response {number + 1} of {self.sampling.n}")
            for piece in stream(engine, (message,), replace(self.sampling, n=1, seed=self.sampling.seed + number)):
                print(piece, end="", flush=True)
            print()


def engine_of(model: str, device: str) -> Engine:
    """An engine with its tokenizer."""
    from trueline.models.files import load_model
    from trueline.serve.engine import Engine

    folder = model_folder(model)
    return Engine(load_model(folder, device=device), load_tokenizer(folder))


def stream(engine: Engine, prompt: Messages, sampling: Sampling) -> Iterator[str]:
    """The response in pieces. A piece is held back while it may be part of a character or of a stop string."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    engine.submit(encode_prompt(prompt, tokenizer), sampling)
    longest_stop = max((len(text) for text in sampling.stop), default=0)
    ids: list[int] = []
    shown = 0
    while engine.busy:
        for event in engine.step():
            if event.sample is not None:
                yield engine.text(event.sample, sampling.stop)[shown:]
            elif event.token is not None:
                ids.append(event.token)
                text = tokenizer.decode(ids)
                safe = len(text) - longest_stop
                if safe > shown and not text.endswith("\ufffd"):
                    yield text[shown:safe]
                    shown = safe


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw several responses to every prompt of a file, into JSON lines: prompt, responses, logps, finish_reasons,
    model, sampling, and answer where the prompt's row says what is right."""

    data: Annotated[tuple[str, ...], DATA]
    """Prompts: rows with prompt, or dialogues whose last assistant turn is left out."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")]
    """Where the responses go."""
    model: Annotated[str, MODEL] = BASE
    """A folder, a hub id, or "base", the model that ships with Trueline."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question."""
    limit: int = 0
    """Use at most so many prompts; 0 uses all."""
    max_batch: int = 64
    """Responses drawn at the same time."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    sampling: Draws = field(default_factory=lambda: Sampling(n=4))
    """How to draw."""

    def run(self) -> None:
        """Write one line per prompt."""
        from trueline.models.files import load_model
        from trueline.serve.engine import Engine

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        folder = model_folder(self.model)
        tokenizer = load_tokenizer(folder)
        rows = read_prompts(self.data, limit=self.limit or None, columns=column_names(self.columns))
        prompts = [record for record in rows if isinstance(record, Conversation)]
        say_read(rows, console)
        if not prompts:
            raise ValueError(f"{', '.join(self.data)} has no prompt; see trueline data inspect {self.data[0]}")
        engine = Engine(load_model(folder, device=self.device), tokenizer, self.max_batch)
        about = {"model": self.model, "temperature": self.sampling.temperature, "seed": self.sampling.seed}
        tokens, began = 0, time.monotonic()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(self.out, "w", encoding="utf-8", newline="\n") as file,
            Bar(len(prompts), "sample", console=console) as bar,
        ):
            for start in range(0, len(prompts), self.max_batch):
                some = prompts[start : start + self.max_batch]
                drawn = engine.sample([encode_prompt(one.messages, tokenizer).tolist() for one in some], self.sampling)
                for prompt, samples in zip(some, drawn, strict=True):
                    line = {
                        "prompt": messages_json(prompt.messages),
                        "responses": [engine.text(sample, self.sampling.stop) for sample in samples],
                        "logps": [round(float(sample.logps.sum()), 4) for sample in samples],
                        "finish_reasons": [sample.finish_reason for sample in samples],
                        **({} if prompt.answer is None else {"answer": prompt.answer}),
                        **about,
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                new = sum(len(sample.ids) for samples in drawn for sample in samples)
                tokens += new
                bar.update(min(start + self.max_batch, len(prompts)), tokens=new)
        seconds = time.monotonic() - began
        console.print(f"{len(prompts) * self.sampling.n:,} responses of {tokens:,} tokens in {seconds:.1f} s, in {self.out}; "
                      f"next: trueline judge --data {self.out} --out pairs.jsonl --judge JUDGE")  # fmt: skip
        console.print(str(engine.agreement))


def messages_json(messages: Messages) -> str | list[dict[str, Any]]:
    """Plain text as a string, a dialogue as TRL's list of messages."""
    if all(message.role == TEXT for message in messages):
        return "".join(message.content for message in messages)
    return [{"role": message.role, "content": message.content} for message in messages]


def messages_of(value: str | Sequence[dict[str, Any]], *, train: bool = False) -> Messages:
    """The reverse of `messages_json`."""
    if isinstance(value, str):
        return (Message(role=TEXT, content=value, train=train),)
    return tuple(Message(role=item["role"], content=item["content"], train=train) for item in value)
