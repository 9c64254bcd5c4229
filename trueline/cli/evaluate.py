"""`trueline eval`: what a language model predicts, how far a reward model can be believed, which prompts are strange to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from trueline.cli.places import BASE, COLUMNS, FILE, MODEL, MORE_DATA, column_names, model_folder, say_read
from trueline.cli.tasks import Tasks, run_tasks
from trueline.evals.calibration import Bin, PairCalibration, Reliability, pair_calibration
from trueline.evals.diagram import calibration_svg
from trueline.evals.distribution import (
    CategoryPairs,
    DistributionQuality,
    category_pair_calibration,
    distribution_quality,
)
from trueline.evals.ood import auroc, fit
from trueline.evals.perplexity import perplexity
from trueline.evals.result import Interval, to_plain
from trueline.models.files import load_model, load_scalar_model, read_config
from trueline.models.scorer import PolicyScorer, RewardScorer, prompt_features
from trueline.objectives.dprm import target_of
from trueline.records import Comparison, Conversation, Document, Rating, Row
from trueline.rows import Rows, read_prompts, read_rows
from trueline.store import local_folder, write_atomic
from trueline.tokens import EncodeStats, Tokenizer, encode_prompt, load_tokenizer
from trueline.train.data import encode_record


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured."""

    figures: dict[str, Any]
    """Numbers and words are printed; all of it is written."""
    detail: Any = None
    """Only written."""
    reliability: Reliability | None = None
    """Where a probability is stated: how often it comes true."""
    by_gap: tuple[Bin, ...] = ()
    """How often the better one has the higher score, by the gap of the two."""
    log_odds: bool = False
    """True: sigmoid(gap) is the stated probability."""
    units: str = "pairs"
    """What the bins count."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on rows. Language models: on text perplexity and bits per byte, on conversations the loss of
    the responses, on comparisons how often the preferred response is the likelier one. Reward models: accuracy, also by
    score gap, and calibration on comparisons; those of categories also on ratings. With --ood_reference: how unlike the prompts of the
    reference those of --data are, by the model's features. With --tasks instead of --data: what lm-evaluation-harness asks."""

    named: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = ""
    """The same as --model."""
    data: Annotated[tuple[str, ...], MORE_DATA] = ()
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
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg", help_behavior_hint="(optional)")] = None
    """Also draw the calibration into this SVG file: confidence against share right, and share right by score gap."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""
    harness: Annotated[Tasks, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=Tasks)
    """Tasks of lm-evaluation-harness."""

    def run(self) -> None:
        """Print a table of the result."""
        if self.named and self.model != BASE:
            raise ValueError(f"two models are named, {self.named} and --model {self.model}: keep one")
        if bool(self.data) == bool(self.harness.tasks):
            both = " and not both" if self.data else ""
            raise ValueError(f"trueline eval needs --data FILE_OR_HUB_ID ... or --tasks NAME ...{both}; see trueline eval --help")
        one = replace(self, named="", model=self.named) if self.named else self
        if self.harness.tasks:
            run_tasks(one.harness, one.model, limit=one.limit, out=one.out, device=one.device)
        else:
            one.on_rows()

    def on_rows(self) -> None:
        """Measure on --data."""
        console = Console(highlight=False, soft_wrap=True)
        folder = model_folder(self.model)
        tokenizer = load_tokenizer(folder)
        config, classifier = read_config(local_folder(folder, "config"))
        config.refuse_tokenizer(tokenizer.vocab_size)
        measure = self.reward_model if classifier else self.language_model
        if self.ood_reference:
            measure = partial(self.strangeness, classifier)
        found = measure(folder, tokenizer, console)
        table = Table(box=None, show_header=False)
        for name, value in found.figures.items():
            if isinstance(value, int | float | str):
                table.add_row(
                    name, value if isinstance(value, str) else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"
                )
        console.print(table)
        for about in (calibration_table(found), gap_table(found)):
            if about.row_count:
                console.print(about)
        if self.out is not None:
            detail = {} if found.detail is None else {"detail": to_plain(found.detail)}
            write_atomic(self.out, json.dumps(to_plain(found.figures | detail), indent=2) + "\n")
        if self.plot is not None:
            if found.reliability is None:
                raise ValueError(f"--plot {self.plot}: nothing here states a probability; draw reward models on rows that people judged")
            drawn = calibration_svg(found.reliability, found.by_gap, log_odds=found.log_odds, units=found.units)
            write_atomic(self.plot, drawn)

    def reward_model(self, folder: str, tokenizer: Tokenizer, console: Console) -> Found:
        """Accuracy and calibration over all pairs of the comparisons, or of shares on ratings."""
        model = load_scalar_model(folder, device=self.device)
        scorer = RewardScorer(model)
        if model.labels > 1 and read_rows(self.data).record is Rating:
            return of_ratings(self.encoded(Rating, tokenizer, console), scorer)
        rows = self.encoded(Comparison, tokenizer, console)
        if model.labels > 1:
            both = [np.stack(pair) for pair in zip(*pair_shares(rows, scorer.shares(rows)), strict=True)]
            pairs = category_pair_calibration(both[0], both[1], model.utilities)
            return Found(figures=flat_calibration(pairs), detail=pairs, reliability=pairs.reliability, by_gap=pairs.by_gap)
        return of_gaps(pair_gaps(rows, scorer.score(rows)))

    def strangeness(self, classifier: bool, folder: str, tokenizer: Tokenizer, console: Console) -> Found:
        """Prompts of --data against those of the reference, a fifth of which is held out to compare with."""
        known, new = (self.prompts(source, tokenizer, console) for source in (self.ood_reference, self.data))
        known = list({ids.tobytes(): ids for ids in known}.values())  # a prompt of many comparisons is one prompt
        apart = [int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8], "big") % 5 == 0 for ids in known]
        parts = [[ids for ids, held in zip(known, apart, strict=True) if held == side] for side in (False, True)]
        if len(parts[0]) < 20 or len(parts[1]) < 5:
            raise ValueError(f"--ood_reference has {len(known)} different prompts: name at least 50, so that a fifth can be held out")
        model = (load_scalar_model if classifier else load_model)(folder, device=self.device)
        layer = None if self.ood_layer == -1 else self.ood_layer
        fitted, held_out, given = (prompt_features(model, prompts, layer=layer) for prompts in (*parts, new))
        if len(fitted) < fitted.shape[1]:
            console.print(
                f"      [yellow]{len(fitted):,} prompts for {fitted.shape[1]:,} features[/yellow]: the distance is a rough guide; "
                "name more prompts with --ood_reference"
            )
        reference = fit(fitted)
        inside, scores = reference.score(held_out), reference.score(given)
        threshold = reference.threshold(held_out)
        detail = [
            {"prompt": tokenizer.decode(ids.tolist())[:200], "score": float(score), "flagged": bool(score > threshold)}
            for ids, score in zip(new, scores, strict=True)
        ]
        figures = {
            "prompts": len(new),
            "reference": f"{len(parts[0]):,} different prompts, {len(parts[1]):,} held out",
            "flagged": f"{(scores > threshold).mean():.1%} (of the reference's held-out prompts {(inside > threshold).mean():.1%})",
            "AUROC against the held-out prompts": auroc(inside, scores),
        }
        return Found(figures=figures, detail={"threshold": threshold, "prompts": detail})

    def prompts(self, source: Sequence[str], tokenizer: Tokenizer, console: Console) -> list[np.ndarray]:
        """The ids of a source's prompts, cut at their left end."""
        rows = read_prompts(source, limit=self.limit or None, columns=column_names(self.columns))
        found = [encode_prompt(one.messages, tokenizer)[-self.max_length :] for one in rows if isinstance(one, Conversation)]
        say_read(rows, console)
        return [ids for ids in found if len(ids)]

    def language_model(self, folder: str, tokenizer: Tokenizer, console: Console) -> Found:
        """Perplexity of text, loss of responses, or agreement with preferences."""
        kind = read_rows(self.data).record
        scorer = PolicyScorer(load_model(folder, device=self.device))
        if kind is Document:
            return self.text(scorer, tokenizer, console)
        rows = self.encoded(Comparison if kind is Comparison else Conversation, tokenizer, console)
        logps = scorer.score(rows)
        if kind is Comparison:
            return of_gaps(pair_gaps(rows, logps))
        tokens = sum(int(row.scored[0].sum()) for row in rows)
        loss = -float(sum(float(sums_K[0]) for sums_K in logps)) / tokens
        return Found(figures={"rows": len(rows), "response tokens": tokens, "loss": loss, "perplexity": float(np.exp(loss))})

    def text(self, scorer: PolicyScorer, tokenizer: Tokenizer, console: Console) -> Found:
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
        return Found(figures=found.to_dict() | {"bits per byte, 95%": f"{low:.4f} to {high:.4f}"})

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


def of_gaps(gaps: Sequence[float]) -> Found:
    """Accuracy and calibration of differences of two scores, taken as log-odds."""
    pairs = pair_calibration(gaps)
    return Found(
        figures=flat_calibration(pairs), detail=pairs, reliability=pairs.reliability, by_gap=pairs.by_gap, log_odds=True
    )


def of_ratings(rows: Sequence[Row], scorer: RewardScorer) -> Found:
    """Predicted against observed shares; where a prompt has several rated responses, also which of two is worth more."""
    worth, shares_NC = scorer.model.utilities, np.concatenate(scorer.shares(rows))
    targets_NC = np.concatenate([target_of(row, worth) for row in rows])
    quality = distribution_quality(shares_NC, targets_NC, worth)
    figures, by_gap = flat_quality(quality), tuple[Bin, ...]()
    better, worse = rated_pairs(rows, targets_NC @ np.array(worth))
    if better:
        pairs = category_pair_calibration(shares_NC[better], shares_NC[worse], worth)
        by_gap = pairs.by_gap
        figures |= {"pairs of one prompt's responses": len(better), "accuracy of the expected utility on them": said(pairs.accuracy)}
    detail = quality.to_dict() | {"by_gap": to_plain(by_gap)}
    return Found(figures=figures, detail=detail, reliability=quality.reliability, by_gap=by_gap, units="responses")


def rated_pairs(rows: Sequence[Row], worth_N: np.ndarray) -> tuple[list[int], list[int]]:
    """Numbers of responses to the same prompt, those that people think more of first. Rows hold one response each."""
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.ids[0][: int(np.argmax(row.scored[0]))].tobytes(), []).append(number)
    pairs = [(i, j) for some in groups.values() for i in some for j in some if worth_N[i] > worth_N[j] + 1e-6]
    return [i for i, _ in pairs], [j for _, j in pairs]


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


def flat_calibration(found: PairCalibration | CategoryPairs) -> dict[str, Any]:
    """The figures of a calibration that fit a table."""
    figures = {
        "pairs": found.reliability.n,
        "accuracy": said(found.accuracy),
        "negative log-likelihood": found.nll,
        "expected calibration error": found.reliability.ece,
        "of a perfectly calibrated model": found.null_ece,
    }
    return figures | ({"temperature that fits best": found.temperature} if isinstance(found, PairCalibration) else {})


def said(share: Interval) -> str:
    """A share and its interval."""
    return f"{share.estimate:.1%}, 95% {share.low:.1%} to {share.high:.1%}"


def calibration_table(found: Found) -> Table:
    """The reliability curve; no rows where no probability was stated."""
    table = Table("it says", found.units, "mean", "right", box=None, title="calibration", title_justify="left")
    for one in found.reliability.bins if found.reliability else ():
        if one.count:
            table.add_row(f"{one.low:.0%} to {one.high:.0%}", f"{one.count:,}", f"{one.confidence:.1%}", f"{one.accuracy:.1%}")
    return table


def gap_table(found: Found) -> Table:
    """Accuracy by size of the score gap; no rows where there are no gaps."""
    name = "score gap" if found.log_odds else "gap of the expected utility"
    table = Table(name, "pairs", "right", box=None, title="accuracy by gap", title_justify="left")
    for one in found.by_gap:
        if one.count:
            table.add_row(f"{one.low:.2f} to {one.high:.2f}", f"{one.count:,}", f"{one.accuracy:.1%}")
    return table
