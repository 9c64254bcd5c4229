"""`trueline center`: a reward model's level, so that 0 is as good as a demonstration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from rich.console import Console

from trueline.cli.places import COLUMNS, DATA, MODEL, column_names, model_folder, say_read
from trueline.evals.interval import normal_mean
from trueline.records import Conversation, Rating, Record
from trueline.rows import read_rows
from trueline.store import adapter_base, write_atomic
from trueline.tokens import EncodeStats, encode_rating, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Center:
    """Shift a reward model so that demonstrations average zero, as InstructGPT does before PPO. Preferences leave the
    level open; the order of responses does not change. The mean is kept as reward_shift in the model's config.json."""

    model: Annotated[str, MODEL]
    """Folder of the reward model; it is changed in place."""
    data: Annotated[tuple[str, ...], DATA]
    """Demonstrations: prompts with the answers of people. Of comparisons the best response is taken. Two reward models that are
    to be weighed against each other are centred on the same rows."""
    max_length: int = 1024
    """Longest prompt and response in tokens; what is longer is cut."""
    limit: int = 0
    """Read at most so many records; 0 reads all."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question completion=answer."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""

    def run(self) -> None:
        """Score, write the mean, say it."""
        from trueline.models.files import load_scalar_model, read_config
        from trueline.models.scorer import RewardScorer

        console = Console(highlight=False, soft_wrap=True)
        folder = Path(model_folder(self.model))
        path = folder / "config.json"
        if folder.is_dir() and adapter_base(folder):
            raise ValueError(f"{self.model} is an adapter, which has no place for a shift: merge it first (trueline merge)")
        if not path.is_file():
            raise ValueError(f"{self.model} is no folder with a model: the shift is written there, so name one on this machine")
        config, classifier = read_config(folder)
        if not classifier:
            raise ValueError(f"{self.model} is a language model, not a reward model: train one with trueline reward")
        tokenizer, stats = load_tokenizer(str(folder)), EncodeStats()
        config.refuse_tokenizer(tokenizer.vocab_size)
        records = read_rows(self.data, Conversation, limit=self.limit or None, columns=column_names(self.columns))
        encoded = [encode_rating(one, tokenizer, self.max_length, stats) for one in demonstrations(records)]
        rows = [row for row in encoded if row is not None]
        say_read(records, console)
        for reason, number in stats.dropped.most_common():
            console.print(f"      [yellow]{number:,} rows left out[/yellow]: {reason}")
        if not rows:
            raise ValueError(f"{', '.join(self.data)} has no demonstration: name rows of prompts with answers")
        model = load_scalar_model(folder, device=self.device)
        before, model.reward_shift = model.reward_shift, 0.0
        mean = normal_mean(np.concatenate(RewardScorer(model).score(rows)))
        raw = json.loads(path.read_text(encoding="utf-8")) | {"reward_shift": mean.estimate}
        write_atomic(path, json.dumps(raw, indent=2) + "\n")
        was = f", before {before:.4g}" if before else ""
        console.print(f"{len(rows):,} demonstrations average {mean.estimate:.4g}, standard error {mean.se:.2g}")
        console.print(f"reward_shift is {mean.estimate:.4g}{was}, in {path}", markup=False)


def demonstrations(records: Iterable[Record]) -> Iterator[Rating]:
    """The last answer of each conversation; one that ends without an answer has nothing that is scored."""
    for record in records:
        assert isinstance(record, Conversation)
        yield Rating(prompt=record.messages[:-1], response=record.messages[-1:], score=0.0, source=record.source)
