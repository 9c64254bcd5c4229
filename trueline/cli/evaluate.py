"""`trueline eval`: what a language model predicts, how far a reward model can be believed, which prompts are strange to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trueline.cli.places import BASE, COLUMNS, DATA, FILE, MODEL, MORE_DATA, column_names, model_folder, say_read
from trueline.evals.calibration import PairCalibration, pair_calibration
from trueline.evals.distribution import DistributionQuality, category_pair_calibration, distribution_quality
from trueline.evals.ood import auroc, fit
from trueline.evals.perplexity import perplexity
from trueline.evals.result import to_plain
from trueline.models.files import load_model, load_scalar_model, read_config
from trueline.models.scorer import PolicyScorer, RewardScorer, prompt_features
from trueline.objectives.dprm import target_of
from trueline.records import Comparison, Conversation, Document, Rating, Row
from trueline.rows import Rows, read_prompts, read_rows
from trueline.store import local_folder, write_atomic
from trueline.tokens import EncodeStats, Tokenizer, encode_prompt, load_tokenizer
from trueline.train.data import encode_record


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on rows. Language models: on text perplexity and bits per byte, on conversations the loss of
    the responses, on comparisons how often the preferred response is the likelier one. Reward models: accuracy and
    calibration on comparisons; those of categories also on ratings. With --ood_reference: how unlike the prompts of the
    reference those of --data are, by the model's features."""

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
    ood_reference: Annotated[tuple[str, ...], MORE_DATA] = ()
    """Rows with the prompts that the model was trained on: flag those of --data that differ."""
    ood_layer: int = -1
    """The layer whose features are compared, counted from 0; -1 is the one in the middle."""
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
        if self.ood_reference:
            measure = partial(self.strangeness, classifier)
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
        """Accuracy and calibration over all pairs of the comparisons, or of shares on ratings."""
        model = load_scalar_model(folder, device=self.device)
        scorer = RewardScorer(model)
        if model.labels > 1 and read_rows(self.data).record is Rating:
            rows = self.encoded(Rating, tokenizer, console)
            targets_NC = np.concatenate([target_of(row, model.utilities) for row in rows])
            quality = distribution_quality(np.concatenate(scorer.shares(rows)), targets_NC, model.utilities)
            return flat_quality(quality) | {"detail": quality.to_dict()}
        rows = self.encoded(Comparison, tokenizer, console)
        if model.labels > 1:
            both = [np.stack(pair) for pair in zip(*pair_shares(rows, scorer.shares(rows)), strict=True)]
            found, reliability = category_pair_calibration(both[0], both[1], model.utilities)
            by_gaps, flat = ("pairs", "accuracy", "accuracy by gap, small to large"), flat_calibration(found)
            kept = {name: flat[name] for name in by_gaps} | {"expected calibration error": reliability.ece}
            return kept | {"detail": {"by_gap": to_plain(found.by_gap), "reliability": reliability.to_dict()}}
        found = pair_calibration(pair_gaps(rows, scorer.score(rows)))
        return flat_calibration(found) | {"detail": found.to_dict()}

    def strangeness(self, classifier: bool, folder: str, tokenizer: Tokenizer, console: Console) -> dict[str, Any]:
        """Prompts of --data against those of the reference, a fifth of which is held out to compare with."""
        known, new = (self.prompts(source, tokenizer, console) for source in (self.ood_reference, self.data))
        apart = [int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8], "big") % 5 == 0 for ids in known]
        parts = [[ids for ids, held in zip(known, apart, strict=True) if held == side] for side in (False, True)]
        if len(parts[0]) < 20 or len(parts[1]) < 5:
            raise ValueError(f"--ood_reference has {len(known)} prompts: name at least 50, so that a fifth can be held out")
        model = (load_scalar_model if classifier else load_model)(folder, device=self.device)
        layer = None if self.ood_layer == -1 else self.ood_layer
        fitted, held_out, given = (prompt_features(model, prompts, layer=layer) for prompts in (*parts, new))
        reference = fit(fitted)
        inside, scores = reference.score(held_out), reference.score(given)
        threshold = reference.threshold(held_out)
        detail = [
            {"prompt": tokenizer.decode(ids.tolist())[:200], "score": float(score), "flagged": bool(score > threshold)}
            for ids, score in zip(new, scores, strict=True)
        ]
        return {
            "prompts": len(new),
            "reference": f"{len(parts[0]):,} prompts, {len(parts[1]):,} held out",
            "flagged": f"{(scores > threshold).mean():.1%} (of the reference's held-out prompts {(inside > threshold).mean():.1%})",
            "AUROC against the held-out prompts": auroc(inside, scores),
            "detail": {"threshold": threshold, "prompts": detail},
        }

    def prompts(self, source: Sequence[str], tokenizer: Tokenizer, console: Console) -> list[np.ndarray]:
        """The ids of a source's prompts, cut at their left end."""
        rows = read_prompts(source, limit=self.limit or None, columns=column_names(self.columns))
        found = [encode_prompt(one.messages, tokenizer)[-self.max_length :] for one in rows if isinstance(one, Conversation)]
        say_read(rows, console)
        return [ids for ids in found if len(ids)]

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


def pair_shares(rows: Sequence[Row], shares: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Shares of the preferred and of the other response [C], for every pair with a preference."""
    pairs = []
    for row, shares_KC in zip(rows, shares, strict=True):
        better_K = -row.numbers["rank"] if "rank" in row.numbers else row.numbers["counts"]
        K = range(len(shares_KC))
        pairs += [(shares_KC[i], shares_KC[j]) for i in K for j in K if better_K[i] > better_K[j]]
    if not pairs:
        raise ValueError("every comparison is a tie: there is no preference to agree with")
    return pairs


def flat_quality(found: DistributionQuality) -> dict[str, Any]:
    """The figures of predicted distributions that fit a table."""
    shares = "  ".join(f"{p:.3f}/{o:.3f}" for p, o in zip(found.predicted, found.observed, strict=True))
    return {
        "responses": found.reliability.n,
        "cross-entropy": f"{found.cross_entropy.estimate:.4f} (the targets' own entropy is {found.entropy:.4f})",
        "distance in categories": str(found.wasserstein),
        "error of the expected utility": str(found.utility_error),
        "bias of the expected utility": str(found.utility_bias),
        "accuracy of the likeliest category": str(found.accuracy),
        "expected calibration error": found.reliability.ece,
        "predicted/observed shares, worst first": shares,
    }


def flat_calibration(found: PairCalibration) -> dict[str, Any]:
    """The figures of a calibration that fit a table."""
    accuracy = found.accuracy
    return {
        "pairs": found.reliability.n,
        "accuracy": f"{accuracy.estimate:.1%}, 95% {accuracy.low:.1%} to {accuracy.high:.1%}",
        "accuracy by gap, small to large": ", ".join(f"{one.accuracy:.1%}" for one in found.by_gap if one.count),
        "negative log-likelihood": found.nll,
        "expected calibration error": found.reliability.ece,
        "of a perfectly calibrated model": found.null_ece,
        "temperature that fits best": found.temperature,
    }
