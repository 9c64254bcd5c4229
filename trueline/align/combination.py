"""Several reward models as one: a weighted sum, as for a helpful and a harmless one.

    r(x, y) = sum_m weight_m (r_m(x, y) - centre_m)  +  weight of "spread" x std_m (r_m(x, y) - centre_m)

    parts_of("runs/helpful=0.7,runs/harmless=0.3")    what people write    -> ((name, weight), ...)
    parts_of("runs/a=0.5,runs/b=0.5,spread=-1")       the pessimistic form: less where the models disagree
    WeightedScorer(parts, scorers, centres)           on drawn ids, where all read the same tokens
    WeightedJudge(parts, judges, centres)             on text, each with its own tokenizer
    centres_of(scorers, rows)                         each one's mean over the same rows

Scores of two models have no common zero; their means over the same held-out rows are it (Bai et al., 2204.05862).
`trueline center` stores such a mean in a reward model, whose centre is 0 then. Within a prompt a centre changes no choice of a sum.

The spread is the reward's uncertainty: Xiong et al., 2312.11456, algorithm 1, option II, is r - beta ||phi(x, y) - nu||_{Sigma^-1} for
a reward that is linear in features phi. Of models theta_m with mean theta and covariance Sigma^-1 that norm is the spread, when nu, the
mean of phi over the compared responses, is what the models are centred at. So center them all on those rows first: the spread is to
count how far a response is from what was compared, not shifts that no comparison tells anything about. docs/recipes/gshf.md measures it.
Left out: a common scale (one unit is a log-odd of preference in every Bradley-Terry model); a nu for every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trueline.protocols import Judge, KnownJudge, ManyJudge, Scorer, UnsureJudge
from trueline.records import Messages, Row
from trueline.store import fingerprint

Parts = tuple[tuple[str, float], ...]
SPREAD = "spread"
"""The part that stands for how far the others disagree; a folder of this name is ./spread."""


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
    others = [weight for _, weight in members(found)]
    if len(others) < len(found) and (len(others) < 2 or min(others) < 0):
        raise ValueError(f"{name!r} asks for a spread: name two or more reward models beside it, with weights above 0")
    return tuple(found)


def members(parts: Sequence[tuple[str, float]]) -> Parts:
    """The parts that are models."""
    return tuple(part for part in parts if part[0] != SPREAD)


def combined(scores_MK: np.ndarray, parts: Parts) -> np.ndarray:
    """The sum over models, and over their spread where that is a part, of centred scores [M, K]: float64 [K]."""
    weights_M = np.array([weight for _, weight in members(parts)])
    total_K = weights_M @ scores_MK
    for name, weight in parts:
        if name == SPREAD:
            share_M = weights_M / weights_M.sum()
            total_K = total_K + weight * np.sqrt(share_M @ (scores_MK - share_M @ scores_MK) ** 2)
    return total_K


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
    """One per part that is a model."""
    centres: Sequence[float] = ()
    """One per scorer; none are zeros."""
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        about = [[weight, scorer.fingerprint] for (_, weight), scorer in zip(members(self.parts), self.scorers, strict=True)]
        about += [[weight, name] for name, weight in self.parts if name == SPREAD]
        self.fingerprint = fingerprint([about, list(self.centres)])

    @property
    def name(self) -> str:
        """Its parts."""
        return called(self.parts)

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row float32 [K]."""
        found = [scorer.score(rows) for scorer in self.scorers]
        centres_M1 = _centres(self.scorers, self.centres)
        return [
            combined(np.stack(scores_MK).astype(np.float64) - centres_M1, self.parts).astype(np.float32)
            for scores_MK in zip(*found, strict=True)
        ]


@dataclass(frozen=True)
class WeightedJudge:
    """A Judge: the weighted sum of judges."""

    parts: Parts
    judges: Sequence[Judge]
    """One per part that judges."""
    centres: Sequence[float] = ()

    @property
    def name(self) -> str:
        """Its parts."""
        return called(self.parts)

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response."""
        return self.judge_all([(prompt, responses)])[0]

    def judge_all(self, asked: Sequence[tuple[Messages, Sequence[Messages]]]) -> list[list[float]]:
        """The same of many prompts."""
        found = [
            judge.judge_all(asked) if isinstance(judge, ManyJudge) else [judge.judge(*one) for one in asked] for judge in self.judges
        ]
        centres_M1 = _centres(self.judges, self.centres)
        return [combined(np.array(scores_MK) - centres_M1, self.parts).tolist() for scores_MK in zip(*found, strict=True)]

    @property
    def fingerprint(self) -> str:
        """Of all judges, where they have one."""
        known = [judge.fingerprint if isinstance(judge, KnownJudge) else judge.name for judge in self.judges]
        return fingerprint([self.parts, known, list(self.centres)])

    def take_unjudged(self) -> set[str]:
        """Keys of prompts since the last call on which one of the judges has no verdict."""
        return {key for judge in self.judges if isinstance(judge, UnsureJudge) for key in judge.take_unjudged()}

    def lines(self) -> list[str]:
        """What each judge has to say."""
        return [line for judge in self.judges if isinstance(judge, UnsureJudge) for line in judge.lines()]


def _centres(models: Sequence, centres: Sequence[float]) -> np.ndarray:
    """[M, 1]."""
    assert not centres or len(centres) == len(models)
    return np.array(centres or (0.0,) * len(models))[:, None]
