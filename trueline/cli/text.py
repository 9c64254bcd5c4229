"""`trueline generate` and `trueline sample`: text out of a model."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from trueline.cli import voices
from trueline.cli.batch import Answers, Ask, Response, answer, asks, identity, paths
from trueline.cli.places import BASE, COLUMNS, DATA, MODEL, column_names, model_folder, say_read
from trueline.cli.precision import Bits, Precision
from trueline.cli.responders import Local, Remote
from trueline.records import TEXT, Conversation, Message, Messages, Sampling
from trueline.rows import read_prompts
from trueline.rows.readers import read_objects
from trueline.run import Bar
from trueline.serve.client import Client
from trueline.serve.request import check_sampling
from trueline.tokens import encode_prompt, load_tokenizer

if TYPE_CHECKING:
    from trueline.serve.engine import Engine

Draws = Annotated[Sampling, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
"""The fields of Sampling as flat flags."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt, printing as the text is drawn; without one, standard input is the prompt. With --data and --out: every
    prompt of a file, one line of JSON each (row, what the row held, prompt, responses, finish_reasons, logps), in the file's order.
    The same command goes on where it was stopped; rows that cannot be used are in OUT.rejects.jsonl."""

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")] = ""
    """Text to continue; with --chat, the user's message. Left out: read from standard input."""
    model: Annotated[str, tyro.conf.arg(metavar="DIR_OR_HUB_ID_OR_URL")] = BASE
    """A folder, a hub id, "base" (the model that ships with Trueline), or with --data an OpenAI-compatible address up to and with /v1."""
    chat: bool = False
    """Put the prompt through the model's chat template."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...", help_behavior_hint="(optional)")] = ()
    """Rows with prompt (a text, messages, or token ids), or messages, prompt_ids or text; a row may have a seed of its own."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl", help_behavior_hint="(optional)")] = None
    """Where the responses to --data go."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question."""
    limit: int = 0
    """Answer at most so many rows of --data; 0 is all."""
    max_batch: int = 64
    """Responses drawn at the same time; of an address, requests."""
    ids: bool = False
    """Also write the token ids of each response."""
    logprobs: bool = False
    """Also write the log-prob of each token (token_logps)."""
    served_name: str = ""
    """Of an address: the model's name there; left out, the first that the server lists."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the address's key; where it is not set, none is sent."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    precision: Bits = field(default_factory=Precision)
    """How many bits to compute with."""
    sampling: Draws = field(default_factory=Sampling)
    """How to draw."""

    def run(self) -> None:
        """Print the responses, or write them."""
        if self.data or self.out is not None:
            if not self.data or self.out is None:
                raise ValueError("--data and --out go together: trueline generate --data prompts.jsonl --out responses.jsonl")
            if self.prompt:
                raise ValueError(f"there is a prompt {self.prompt!r} beside --data: keep one of the two")
            return self.answer_file(self.out)
        prompt = self.prompt or sys.stdin.read()
        if not prompt:
            raise ValueError('there is no prompt: trueline generate "Once upon a time", or pipe a text in')
        engine = engine_of(self.model, self.device, precision=self.precision)
        message = Message(role="user" if self.chat else TEXT, content=prompt)
        voice = voices.Local(engine)
        for number in range(self.sampling.n):
            if self.sampling.n > 1:
                print(f"--- response {number + 1} of {self.sampling.n}")
            for piece in voice.say((message,), replace(self.sampling, n=1, seed=self.sampling.seed + number)):
                print(piece, end="", flush=True)
            print()

    def answer_file(self, out: Path) -> None:
        """Every prompt of --data."""
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = column_names(self.columns)
        total = sum(1 for path in paths(self.data) for _ in read_objects(path))
        total = min(total, self.limit or total)
        about = {
            "data": identity(self.data), "columns": columns, "chat": self.chat, "sampling": asdict(self.sampling),
            "ids": self.ids, "logprobs": self.logprobs, "precision": asdict(self.precision),
        }  # fmt: skip
        remote = self.model.startswith(("http://", "https://"))
        if remote and (self.ids or self.logprobs):
            raise ValueError("--ids and --logprobs are of our own engine: an address gives text")
        responder: Local | Remote
        if remote:
            client = Client(self.model, os.environ.get(self.key_variable, "").strip())
            name = self.served_name or first_model(client)
            responder, about = Remote(client, name, self.max_batch), {"model": f"{name} at {self.model}", **about}
        else:
            engine = engine_of(self.model, self.device, self.max_batch, self.precision)
            check_sampling(self.sampling, engine.model.config.vocab_size, True)  # a wrong flag is no fault of every row
            responder, about = Local(engine), {"model": weights(engine.model), **about}
        window = max(2, 4 * self.max_batch // self.sampling.n)
        tokens, began = 0, time.monotonic()
        with Answers(out, about) as answers, Bar(total, "generate", start=answers.done, console=console) as bar:
            before = answers.before
            if before:
                console.print(f"{before:,} rows are there already in {escape(str(out))}", soft_wrap=True)

            def progress(done: int, new: int) -> None:
                nonlocal tokens
                tokens += new
                bar.update(done, tokens=new)

            try:
                found = islice(asks(self.data, self.sampling, columns, self.chat), total)
                answer(found, answers, responder, window, self.line_of, progress)
            finally:
                if isinstance(responder, Remote):
                    responder.close()
        rows = total - answers.rejected
        drawn = f" of {tokens:,} tokens in {time.monotonic() - began:.1f} s" if tokens else ""
        console.print(f"{rows * self.sampling.n:,} responses{drawn}, in {escape(str(out))}")
        if answers.rejected:
            where = escape(str(answers.rejects))
            console.print(f"      [yellow]{answers.rejected:,} rows cannot be used[/yellow]: with the reason in {where}")

    def line_of(self, ask: Ask, responses: Sequence[Response]) -> dict[str, Any]:
        """What is written for a row: what it held, under our names what we know."""
        known = bool(responses[0].logps)
        return {
            "row": ask.number,
            **{name: value for name, value in ask.row.items() if name != "row"},
            "prompt": messages_json(ask.messages) if ask.messages else list(ask.ids),
            "responses": [one.text for one in responses],
            "finish_reasons": [one.finish_reason for one in responses],
            **({"logps": [round(sum(one.logps), 4) for one in responses]} if known else {}),
            **({"ids": [list(one.ids) for one in responses]} if self.ids else {}),
            **({"token_logps": [[round(logp, 5) for logp in one.logps] for one in responses]} if self.logprobs else {}),
            "model": self.model,
            "temperature": self.sampling.temperature,
            "seed": self.sampling.seed,
        }


def first_model(client: Client) -> str:
    """The name under which a server has its model."""
    names = client.models()
    if not names:
        raise ValueError(f"{client.url} lists no model: name one with --served_name")
    return names[0]


def engine_of(model: str, device: str, max_batch: int = 64, precision: Precision = Precision()) -> Engine:  # noqa: B008
    """An engine with its tokenizer."""
    from trueline.models.files import load_model
    from trueline.serve.engine import Engine

    if model.startswith(("http://", "https://")):
        raise ValueError(f"{model} is an address: trueline chat talks to it, and --data FILE --out FILE.jsonl asks it for a file")
    folder = model_folder(model)
    decoder = precision.apply(load_model(folder, device=device))
    return Engine(decoder, load_tokenizer(folder), max_batch, cache_dtype=precision.cache_dtype)


def weights(model: Any) -> str:
    """A name of the weights, in short."""
    from trueline.models.files import fingerprint

    return fingerprint(model)[:16]


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
