"""The nouns that cross stages: frozen, torch-free, enriched with `dataclasses.replace`, never mutated.

    text level   Document  Message  Conversation  Comparison  Rating  Vote      what people write, read and vote on
    id level     Row  Sampling  Sample                                          what models are trained on and produce

Text-level records never hold token ids; id-level records never hold text. `trueline.tokens` turns the first into the second.
A message with the role `TEXT` is plain text: it is tokenised as it stands, without a chat template.

Left out: reading and writing them (`trueline.rows`), rendering them (`trueline.tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TEXT = "text"
"""Role of a message that is plain text (TRL's non-conversational columns): no template is applied to it."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """Raw or clean text of a corpus."""

    text: str
    id: str = ""
    source: str = ""
    """Where it came from: file:line, package, address."""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. `train` says whether its tokens may be trained on (never decides alone: only assistant and TEXT turns are)."""

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    train: bool = True


Messages = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A dialogue, or a prompt and its completion. With no assistant turn at the end it is a prompt only."""

    messages: Messages
    source: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    answer: Any = None
    """What is right, for judges that check it: a text, a number, or another JSON value such as a list of tests. None: not said."""


@dataclass(frozen=True)
class Ranking:
    """One annotator's order: `ranks[k]` is the place of response k, 1 = best; equal places are ties."""

    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Counts:
    """Several annotators: `counts[k]` = how many (possibly fractional) preferred response k."""

    counts: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """K >= 2 responses to one prompt, and how people or a judge ordered them."""

    prompt: Messages
    responses: tuple[Messages, ...]
    judgement: Ranking | Counts
    source: str = ""
    annotator: str = ""
    time: str = ""
    """ISO 8601, or empty."""


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One response judged on its own (KTO, graded data, distributional preferences): exactly one of the three is set."""

    prompt: Messages
    response: Messages
    label: bool | None = None
    score: float | None = None
    counts: tuple[float, ...] | None = None
    """Votes per ordered category, worst first."""
    source: str = ""
    annotator: str = ""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One click in the arena. `winner` is "a", "b", "tie" or "both_bad"."""

    battle: str
    model_a: str
    model_b: str
    winner: str
    voter: str = ""
    time: str = ""


Record = Document | Conversation | Comparison | Rating


@dataclass(frozen=True, kw_only=True)
class Row:
    """K >= 1 rendered sequences that may share a prefix: the unit that every objective trains on.

    A pair is a Row with K = 2 and the preferred sequence first. Sequences are complete (prompt and response, each tokenised
    alone); what they share is found later as the trie of their ids.
    """

    ids: tuple[np.ndarray, ...]
    """K arrays int32 [L_k]."""
    scored: tuple[np.ndarray, ...]
    """K arrays bool [L_k]: True where the token is a target. scored[k][0] is False: nothing predicts the first token."""
    key: str = ""
    """Stable name of the row (a content hash): caches and held-out splits are keyed by it."""
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    """float32 arrays with leading size K that travel with the row: label weights, reference log-probs, rewards, ..."""
    tokens: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """Per sequence a float32 array with one entry per SCORED token, in their order: logps of the policy that drew them,
    reference_logps, values, advantages, ... `objectives.rounds.tokens_of` lays them out for a loss."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, a shared prefix counted once per sequence."""
        return sum(len(ids) for ids in self.ids)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw responses. temperature 0 is greedy."""

    max_new_tokens: int = 128
    """Longest response in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the most likely one."""
    n: int = 1
    """Responses per prompt; they share the prompt's cache."""
    stop: tuple[str, ...] = ()
    """Texts that end a response; they are cut off."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end a response (the end token is kept in `ids`, and it is scored)."""
    seed: int = 0
    """Equal seeds draw equal responses, whatever else is drawn."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of tokens that the prompt or the response holds (CTRL,
    1909.05858, equation 5); 1 changes nothing."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the response holds."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that the response holds it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""

    @property
    def truncates(self) -> bool:
        """True when the drawn distribution is not softmax(logits / temperature); on-policy methods refuse it."""
        return self.temperature == 0 or self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.shifts

    @property
    def shifts(self) -> bool:
        """True when the logits are changed before the temperature."""
        return (
            self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0 or bool(self.logit_bias)
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How a method that learns from its own responses draws them. Always from the whole distribution: no top_k, top_p, min_p."""

    num_generations: int = 2
    """Responses drawn per prompt."""
    max_completion_length: int = 256
    """Longest response in new tokens; what does not end by then is cut there."""
    temperature: float = 1.0
    """Divides the logits; above 0."""
    missing_eos_penalty: float = 0.0
    """Taken from the reward of a response that was cut at max_completion_length."""

    def __post_init__(self) -> None:
        for name, least in (("num_generations", 1), ("max_completion_length", 1), ("missing_eos_penalty", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: it must be above 0, or there is nothing to choose from")

    def sampling(self, seed: int) -> Sampling:
        """What a sampler is asked for."""
        return Sampling(n=self.num_generations, max_new_tokens=self.max_completion_length, temperature=self.temperature, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One drawn response. `logps` are log softmax(logits / temperature), untruncated (temperature 1 is used when greedy)."""

    prompt_ids: np.ndarray
    """int32 [P]."""
    ids: np.ndarray
    """int32 [R], the end token included when finish_reason is "stop"."""
    logps: np.ndarray
    """float32 [R]."""
    mask: np.ndarray
    """bool [R]: False for tokens that the policy did not choose."""
    finish_reason: str
    """"stop", "length" or "cancelled"."""
    group: str = ""
    temperature: float = 1.0
    policy: str = ""
    """name@step of the weights that drew it."""
    reward: float | None = None
