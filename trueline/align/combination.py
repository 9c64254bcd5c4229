"""Several reward models as one: a weighted sum, as for a helpful and a harmless one.

    r(x, y) = sum_m weight_m (r_m(x, y) - centre_m)

    parts_of("runs/helpful=0.7,runs/harmless=0.3")    what people write    -> ((name, weight), ...)
    WeightedScorer(parts, scorers, centres)           on drawn ids, where all read the same tokens
    WeightedJudge(parts, judges, centres)             on text, each with its own tokenizer
    centres_of(scorers, rows)                         each one's mean over the same rows

Scores of two models have no common zero; their means over the same held-out rows are it (Bai et al., 2204.05862).
`trueline center` stores such a mean in a reward model, whose centre is 0 then. Within a prompt a centre changes no choice.
Left out: a common scale. One unit is a log-odd of preference in every Bradley-Terry model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trueline.protocols import Judge, Scorer
from trueline.records import Messages, Row
from trueline.store import fingerprint

Parts = tuple[tuple[str, float], ...]


def parts_of(name: str) -> Parts:
    """Names and weights of "A=0.7,B=0.3"; none where it is not of this form: a single name needs no weight."""
    pieces = [piece.strip().rpartition("=") for piece in name.split(",")]
    if len(pieces) < 2 or not all(head and equals for head, equals, _ in pieces):
        return ()
    found = []
    for head, _, weight in pieces:
        try:
            value = float(weight)
        except ValueError:
            return ()
        if not np.isfinite(value) or value == 0:
            raise ValueError(f"{name!r} weighs {head} with {weight}: give each a finite weight that is not 0")
        found.append((head.strip(), value))
    if len({head for head, _ in found}) < len(found):
        raise ValueError(f"{name!r} names a reward model twice: add its weights up")
    return tuple(found)


def called(parts: Parts) -> str:
    """ "0.7 helpful + 0.3 harmless": for logs."""
    return " + ".join(f"{weight:g} {name}" for name, weight in parts)


def centres_of(scorers: Sequence[Scorer], rows: Sequence[Row]) -> tuple[float, ...]:
    """Each scorer's mean over all sequences of the rows."""
    return tuple(float(np.concatenate(scorer.score(rows)).mean()) for scorer in scorers)


@dataclass
class WeightedScorer:
    """A Scorer: the weighted sum of scorers that read the same ids."""

    parts: Parts
    scorers: Sequence[Scorer]
    centres: Sequence[float] = ()
    """One per scorer; none are zeros."""
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        about = [[weight, scorer.fingerprint] for (_, weight), scorer in zip(self.parts, self.scorers, strict=True)]
        self.fingerprint = fingerprint([about, list(self.centres)])

    @property
    def name(self) -> str:
        """Its parts."""
        return called(self.parts)

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        total = [np.zeros(len(row.ids), dtype=np.float32) for row in rows]
        for (_, weight), scorer, centre in _each(self.parts, self.scorers, self.centres):
            for sum_K, score_K in zip(total, scorer.score(rows), strict=True):
                sum_K += weight * (score_K - centre)
        return total


@dataclass(frozen=True)
class WeightedJudge:
    """A Judge: the weighted sum of judges."""

    parts: Parts
    judges: Sequence[Judge]
    centres: Sequence[float] = ()

    @property
    def name(self) -> str:
        """Its parts."""
        return called(self.parts)

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response."""
        total_K = np.zeros(len(responses))
        for (_, weight), judge, centre in _each(self.parts, self.judges, self.centres):
            total_K += weight * (np.array(judge.judge(prompt, responses)) - centre)
        return [float(score) for score in total_K]


def _each(parts: Parts, members: Sequence, centres: Sequence[float]) -> zip:
    return zip(parts, members, centres or (0.0,) * len(parts), strict=True)
