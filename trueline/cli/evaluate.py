"""`trueline eval`: what a language model predicts, or how far a reward model can be believed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trueline.cli.places import BASE, COLUMNS, DATA, FILE, MODEL, column_names, model_folder, say_read
from trueline.evals.calibration import PairCalibration, pair_calibration
from trueline.evals.perplexity import perplexity
from trueline.models.files import load_model, load_scalar_model, read_config
from trueline.models.scorer import PolicyScorer, RewardScorer
from trueline.records import Comparison, Conversation, Document, Row
from trueline.rows import Rows, read_rows
from trueline.store import local_folder, write_atomic
from trueline.tokens import EncodeStats, Tokenizer, load_tokenizer
from trueline.train.data import encode_record


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on rows. Language models: on text perplexity and bits per byte, on conversations the loss of
    the responses, on comparisons how often the preferred response is the likelier one. Reward models: accuracy and
    calibration on comparisons."""

    data: Annotated[tuple[str, ...], DATA]
    """Rows the model was not trained on."""
    model: Annotated[str, MODEL] = BASE
    """A folder, a hub id, or "base", the model that ships with Trueline."""
    max_length: int = 1024
    """Longest sequence in tokens; longer text is cut into windows, longer responses are cut and counted."""
    overlap: int = 1
    """Tokens of context that each further window of a long text sees; half of max_length gives lower figures at
    twice the time."""
    limit: int = 0
    """Read at most so many records; 0 reads all."""
    columns: Annotated[tuple[str, ...], COLUMNS] = ()
    """Other column names: prompt=question chosen=better."""
    out: Annotated[Path | None, FILE] = None
    """Also write the result to this JSON file."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""

    def run(self) -> None:
        """Print a table of the result."""
        console = Console(highlight=False, soft_wrap=True)
        folder = model_folder(self.model)
        tokenizer = load_tokenizer(folder)
        config, classifier = read_config(local_folder(folder, "config"))
        config.refuse_tokenizer(tokenizer.vocab_size)
        measure = self.reward_model if classifier else self.language_model
        result = measure(folder, tokenizer, console)
        table = Table(box=None, show_header=False)
        for name, value in result.items():
            if isinstance(value, int | float | str):
                table.add_row(
                    name, value if isinstance(value, str) else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"
                )
        console.print(table)
        if self.out is not None:
            write_atomic(self.out, json.dumps(result, indent=2) + "\n")

    def reward_model(self, folder: str, tokenizer: Tokenizer, console: Console) -> dict[str, Any]:
        """Accuracy and calibration over all pairs of the comparisons."""
        rows = self.encoded(Comparison, tokenizer, console)
        scorer = RewardScorer(load_scalar_model(folder, device=self.device))
        found = pair_calibration(pair_gaps(rows, scorer.score(rows)))
        return flat_calibration(found) | {"detail": found.to_dict()}

    def language_model(self, folder: str, tokenizer: Tokenizer, console: Console) -> dict[str, Any]:
        """Perplexity of text, loss of responses, or agreement with preferences."""
        kind = read_rows(self.data).record
        scorer = PolicyScorer(load_model(folder, device=self.device))
        if kind is Document:
            return self.text(scorer, tokenizer, console)
        rows = self.encoded(Comparison if kind is Comparison else Conversation, tokenizer, console)
        logps = scorer.score(rows)
        if kind is Comparison:
            return flat_calibration(pair_calibration(pair_gaps(rows, logps)))
        tokens = sum(int(row.scored[0].sum()) for row in rows)
        loss = -float(sum(float(sums_K[0]) for sums_K in logps)) / tokens
        return {"rows": len(rows), "response tokens": tokens, "loss": loss, "perplexity": float(np.exp(loss))}

    def text(self, scorer: PolicyScorer, tokenizer: Tokenizer, console: Console) -> dict[str, Any]:
        """Perplexity and bits per byte."""
        start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if start is None:
            raise ValueError(f"the tokenizer of {self.model} has neither BOS nor EOS to begin a text with")
        rows = self.opened(Document)
        documents = [record for record in rows if isinstance(record, Document)]
        say_read(rows, console)
        found = perplexity(
            documents, encode=tokenizer.encode, score=scorer.score, start_id=start,
            max_length=self.max_length, overlap=self.overlap,
        )  # fmt: skip
        low, high = found.bits_per_byte_interval.low, found.bits_per_byte_interval.high
        return found.to_dict() | {"bits per byte, 95%": f"{low:.4f} to {high:.4f}"}

    def opened(self, kind: type[Any]) -> Rows:
        """The rows that the options name."""
        return read_rows(self.data, kind, limit=self.limit or None, columns=column_names(self.columns))

    def encoded(self, kind: type[Any], tokenizer: Tokenizer, console: Console) -> list[Row]:
        """Rows of this kind as ids; what was cut and left out is said."""
        records = self.opened(kind)
        stats = EncodeStats()
        found = [encode_record(record, tokenizer, self.max_length, stats) for record in records]
        rows = [row for row in found if row is not None]
        say_read(records, console)
        if stats.cut_rows:
            console.print(f"      [yellow]{stats.cut_rows:,} rows cut[/yellow] at --max_length {self.max_length}")
        for reason, number in stats.dropped.most_common():
            console.print(f"      [yellow]{number:,} rows left out[/yellow]: {reason}")
        if not rows:
            raise ValueError(
                f"{', '.join(self.data)} has no row to evaluate on; see trueline data inspect {self.data[0]}"
            )
        return rows


def pair_gaps(rows: Sequence[Row], scores: Sequence[np.ndarray]) -> list[float]:
    """Score of the preferred response minus score of the other, for every pair with a preference. Rows are best
    first."""
    gaps = []
    for row, scores_K in zip(rows, scores, strict=True):
        better_K = -row.numbers["rank"] if "rank" in row.numbers else row.numbers["counts"]
        gaps += [
            float(scores_K[i] - scores_K[j])
            for i in range(len(scores_K))
            for j in range(len(scores_K))
            if better_K[i] > better_K[j]
        ]
    if not gaps:
        raise ValueError("every comparison is a tie: there is no preference to agree with")
    return gaps


def flat_calibration(found: PairCalibration) -> dict[str, Any]:
    """The figures of a calibration that fit a table."""
    accuracy = found.accuracy
    return {
        "pairs": found.reliability.n,
        "accuracy": f"{accuracy.estimate:.1%}, 95% {accuracy.low:.1%} to {accuracy.high:.1%}",
        "negative log-likelihood": found.nll,
        "expected calibration error": found.reliability.ece,
        "of a perfectly calibrated model": found.null_ece,
        "temperature that fits best": found.temperature,
    }
