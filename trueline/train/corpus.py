"""The corpus of a method that mixes stored text into its own rounds: read once, as windows of at most max_length tokens.

Left out: what is done with the windows (the objective), weights of several sources (mix them into one file first).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import chain
from typing import Protocol, runtime_checkable

from trueline.objectives.base import Objective
from trueline.protocols import Crew
from trueline.records import Document
from trueline.rows import read_rows
from trueline.tokens import EncodeStats, Tokenizer
from trueline.train.config import TrainConfig
from trueline.train.data import encode_records


@runtime_checkable
class Mixes(Objective, Protocol):
    """An objective that mixes a corpus in."""

    @property
    def corpus(self) -> str:
        """A file, folder or hub id of texts."""
        ...


def with_corpus(
    crew: Crew, objective: Objective, tokenizer: Tokenizer | None, config: TrainConfig, say: Callable[[str], None]
) -> Crew:
    """The crew with the corpus that the objective names, if it names one and was not given it."""
    if "corpus" not in objective.needs or crew.corpus:
        return crew
    assert isinstance(objective, Mixes) and tokenizer is not None
    stats = EncodeStats()
    documents = list(read_rows(objective.corpus, Document))
    windows = list(chain.from_iterable(encode_records(documents, tokenizer, config.max_length, stats)))
    if not windows:
        raise ValueError(f"{objective.corpus} has no text that can be learned from")
    say(f"mixed in: {len(documents):,} texts of {objective.corpus} in {len(windows):,} windows of at most {config.max_length} tokens")
    return dataclasses.replace(crew, corpus=windows)
