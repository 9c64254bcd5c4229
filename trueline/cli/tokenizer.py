"""`trueline tokenizer train` and `trueline tokenizer lint`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from trueline.cli.places import DATA, model_folder
from trueline.records import Comparison, Conversation, Document, Rating
from trueline.rows import Rows, read_rows
from trueline.tokens import load_tokenizer, train_tokenizer
from trueline.tokens.lint import lint_template


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a byte-level BPE tokenizer on the text of rows of any kind. It is written in the Hugging Face layout,
    with the ChatML template; any text survives encoding and decoding."""

    data: Annotated[tuple[str, ...], DATA]
    """Files, folders or hub ids: rows with text, messages, prompts and responses."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for tokenizer.json and its companions."""
    vocab_size: int = 4096
    """Tokens in all: special ones, the 256 bytes, and merges."""
    split_digits: bool = True
    """Every digit is a token of its own."""
    normalizer: Literal["none", "NFC", "NFKC"] = "none"
    """Unicode normalisation before splitting; anything but none loses the exact round trip."""
    add_prefix_space: bool = False
    """Put a space before the text, so that its first word is spelled like all others."""
    max_token_length: int = 16
    """Longest token in characters."""
    min_frequency: int = 2
    """Merge only what occurs at least so often."""
    limit: int = 0
    """Read at most so many records; 0 reads all."""

    def run(self) -> None:
        """Train and save."""
        rows = read_rows(self.data, limit=self.limit or None)
        tokenizer = train_tokenizer(
            texts(rows),
            vocab_size=self.vocab_size,
            split_digits=self.split_digits,
            normalizer=None if self.normalizer == "none" else self.normalizer,
            add_prefix_space=self.add_prefix_space,
            max_token_length=self.max_token_length,
            min_frequency=self.min_frequency,
        )
        tokenizer.save(self.out)
        sample = "".join(text for text, _ in zip(texts(rows), range(1000), strict=False))
        per_token = len(sample.encode("utf-8")) / max(1, len(tokenizer.encode(sample)))
        print(f"{tokenizer.vocab_size:,} tokens in {self.out}; {per_token:.2f} bytes per token on the first rows")


def texts(rows: Rows) -> Iterator[str]:
    """All text that people or models wrote, a piece at a time."""
    for record in rows:
        match record:
            case Document():
                yield record.text
            case Conversation():
                yield from (message.content for message in record.messages)
            case Comparison():
                yield from (m.content for part in (record.prompt, *record.responses) for m in part)
            case Rating():
                yield from (m.content for part in (record.prompt, record.response) for m in part)


@dataclass(frozen=True, kw_only=True)
class Lint:
    """Check whether a tokenizer's chat template is fit for training: is the loss mask exact, is the stop token
    trained, is BOS doubled, are earlier turns rewritten? Exit code 2 when training on chats would go wrong."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR_OR_HUB_ID")] = "base"
    """A tokenizer or model: a folder, a hub id, or "base", the model that ships with Trueline."""

    def run(self) -> None:
        """Print one line per check."""
        console = Console(highlight=False)
        findings = lint_template(load_tokenizer(model_folder(self.model)))
        colours = {"ok": "green", "warning": "yellow", "error": "red"}
        for finding in findings:
            console.print(f"[{colours[finding.level]}]{finding.level:<8}[/] [bold]{finding.check}[/]: ", end="")
            console.print(finding.message, finding.advice, markup=False)
        errors = [finding.check for finding in findings if finding.level == "error"]
        if errors:
            raise ValueError(f"the chat template of {self.model} is not fit for training: {', '.join(errors)}")
