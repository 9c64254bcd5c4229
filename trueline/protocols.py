"""What rooms promise each other, so that they need not import one another. No torch here.

    train  is handed a Crew: frozen helpers that an objective may ask for
    train  is handed Rollouts: what draws, judges and selects the rows of methods that learn from their own responses
    align  is handed a Sampler and a Judge
    serve.Engine is a Sampler; models.scorer has the scorers; align.judges the judges
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from trueline.records import Messages, RolloutConfig, Row, Sample, Sampling


class Sampler(Protocol):
    """Draws responses from a policy."""

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        """For each prompt (token ids) its `sampling.n` samples."""
        ...

    def load(self, weights: Any, version: str) -> None:
        """Use these weights from now on; `version` is written into Sample.policy."""
        ...

    @property
    def agreement(self) -> object:
        """How far the log-probs of what was drawn are from the training forward's, as str() says it; None before."""
        ...


class Scorer(Protocol):
    """Gives every sequence of a row a number: a reward model, or a frozen policy's log-probability of the scored tokens."""

    fingerprint: str
    """Names the weights; caches of scores are keyed by it."""

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """For each row a float32 array [K]."""
        ...


class Judge(Protocol):
    """Gives the responses to one prompt a number each; more is better, equal is a tie."""

    @property
    def name(self) -> str:
        """Who judged; written into what is made from it."""
        ...

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]: ...


@runtime_checkable
class KnownJudge(Judge, Protocol):
    """A Judge that says what it judges by: a run goes on with that one only."""

    @property
    def fingerprint(self) -> str:
        """Of a rule's file, a model's weights, votes, answers; empty where nothing is known of it."""
        ...


@runtime_checkable
class ManyJudge(Judge, Protocol):
    """A Judge that is faster with many prompts at once."""

    def judge_all(self, asked: Sequence[tuple[Messages, Sequence[Messages]]]) -> list[list[float]]:
        """What `judge` says of each (prompt, responses)."""
        ...


@runtime_checkable
class UnsureJudge(Judge, Protocol):
    """A Judge that may have no verdict; a response without one has a score that says nothing."""

    def take_unjudged(self) -> set[str]:
        """Keys of the prompts, since the last call, with such a response."""
        ...

    def lines(self) -> list[str]:
        """What was judged so far and what was not, a sentence each."""
        ...


@runtime_checkable
class TokenScorer(Scorer, Protocol):
    """A Scorer that tells single tokens, too: a frozen policy."""

    def token_logps(self, rows: Sequence[Row], temperature: float = 1.0) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence a float32 array: log softmax(logits / temperature) of each scored token, in their order."""
        ...


class Critic(Protocol):
    """Says of every scored token what the response is still worth where it is predicted."""

    def token_values(self, rows: Sequence[Row]) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence a float32 array, one number per scored token."""
        ...


@dataclass(frozen=True)
class Drawn:
    """What one round of rollouts gave."""

    rows: Sequence[Row]
    """What was selected: numbers["reward"], ["temperature"], ["finished"] and tokens["logps"] are there."""
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """name -> (sum, count), over all that was drawn."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """name -> seconds: "sampling", "scoring"."""
    samples: Sequence[Mapping[str, Any]] = ()
    """A few responses as text, to show."""
    remark: str = ""
    """How far sampler and trainer are apart, in a sentence."""


class Rollouts(Protocol):
    """Prompts in, rows to train on out. `align.rollouts.Rollouts` is it."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a run to go on: who judges, and by what."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What people should know of it before the first round, in sentences."""
        ...

    def sampler(self, model: Any, tokenizer: Any) -> Sampler:
        """One that draws from this model, live."""
        ...

    def draw(
        self, prompts: Sequence[tuple[Messages, np.ndarray]], sampler: Sampler, config: RolloutConfig, *,
        decode: Callable[[np.ndarray], str], select: str, options: Mapping[str, Any], seed: int,
    ) -> Drawn:
        """One round: responses to each prompt (messages, ids) drawn with this seed, judged, and selected from."""
        ...


@dataclass(frozen=True)
class Crew:
    """Frozen helpers of a run. An objective that needs a missing one says so before the first step."""

    reference: Scorer | None = None
    reward: Scorer | None = None
    sampler: Sampler | None = None
    critic: Critic | None = None
    """The live value model, of methods that need one."""
    corpus: Sequence[Row] = ()
    """Stored rows that are learned from beside drawn ones, of methods that mix some in."""
    memory: MutableMapping[str, float] = field(default_factory=dict)
    """What an objective remembers from round to round; part of every checkpoint."""

    def refresh(self, model: Any, version: str) -> None:
        """Let the sampler draw from the live weights."""
        if self.sampler is not None:
            self.sampler.load(model, version)
