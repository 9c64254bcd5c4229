"""What the engine is asked for, what it answers, and the checks in between. No torch.

    submit(ids, sampling) -> Request --scheduler--> Running x n --commit--> Event ... Event(sample=Sample)

Left out: text (the engine's `generate` encodes and decodes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trueline.records import Sample, Sampling
from trueline.serve.penalties import Tally

if TYPE_CHECKING:
    from trueline.serve.constraints import Matcher
    from trueline.serve.lookup import Lookup
MAX_LOOKUP = 64
"""Tokens that speculative decoding tries at once: more are rarely accepted, and each is computed."""


@dataclass(frozen=True)
class Constraint:
    """What the text of a response must follow from its first to its last character."""

    kind: str
    """json_schema (a JSON schema), json (any JSON object), regex, or grammar (Lark)."""
    text: str = ""
    """The schema as JSON, the expression, or the grammar."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a request asks for beyond how its tokens are drawn. The defaults ask for nothing."""

    top_logps: int = 0
    """Also the log-probs of the so many likeliest tokens at every place."""
    prompt_logps: bool = False
    """Also the log-probs of the prompt's own tokens."""
    constraint: Constraint | None = None
    """Tokens that would leave it cannot be drawn."""
    beams: int = 0
    """Width of a beam search (then n is at most as large, and nothing is drawn); 0: none."""
    length_penalty: float = 1.0
    """Beam search ranks by sum of log-probs / length ** length_penalty."""
    lookup: int = 0
    """Speculative decoding: the so many tokens that followed an earlier occurrence of the last ones are tried at once; 0: none."""
    priority: int = 0
    """Requests of higher priority start first and are preempted last."""
    client: str = ""
    """Who asks: waiting requests of several clients take turns."""
    adapter: str = ""
    """Name of the adapter that answers; "" is the base model."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and some of its responses (all of them, unless n exceeds the batch)."""

    id: int
    ids: np.ndarray
    """int32 [P]."""
    sampling: Sampling
    responses: range
    """Numbers of the responses drawn together: they share the prompt's cache."""
    limit: int
    """New tokens at most: max_new_tokens, or what the context leaves."""
    stop_ids: frozenset[int]
    repeat: int = 0
    """How many equal prompts came before in the same call: equal prompts get different noise."""
    options: Options = Options()
    matcher: Matcher | None = None
    """Of its constraint, before the first token; each response follows a copy."""


TopLogps = tuple[tuple[int, float], ...]
"""(token id, log-prob) of the likeliest tokens of one place, likeliest first."""


@dataclass(eq=False)
class Running:
    """One response in the making."""

    request: Request
    response: int
    key: int
    """Of its noise."""
    ids: list[int] = field(default_factory=list)
    """Drawn so far."""
    logps: list[float] = field(default_factory=list)
    computed: int = 0
    """Tokens of prompt and `ids` whose keys and values lie in its blocks."""
    table: list[int] = field(default_factory=list)
    """Its blocks of the cache, in order."""
    draft: list[int] = field(default_factory=list)
    """Tokens that may follow `ids`: the next step tries them."""
    siblings: tuple[int, ...] = ()
    """Responses that will share the prompt's blocks once it is computed."""
    tally: Tally | None = None
    """Penalties and biases, where the request has any."""
    matcher: Matcher | None = None
    """Where it stands in its constraint."""
    lookup: Lookup | None = None
    """What it may repeat, where drafts are asked for."""
    prompt_logps: list[float] = field(default_factory=list)
    """Of the prompt's tokens that are computed, where they were asked for."""
    prompt_tops: list[TopLogps] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.request.ids)

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return self.prompt_length + len(self.ids)

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probs of its prompt's tokens are still to be told."""
        return not self.ids and self.request.options.prompt_logps and self.request.responses[0] == 0

    def tokens(self, start: int, stop: int) -> list[int]:
        """Some of prompt, response and draft."""
        if start == self.length - 1 and stop == start + 1 and self.ids:
            return self.ids[-1:]  # a step of decoding
        prompt = self.request.ids
        if start >= len(prompt):
            drawn = self.ids[start - len(prompt) : stop - len(prompt)]
        else:
            drawn = [*prompt[start:stop].tolist(), *self.ids[: max(0, stop - len(prompt))]]
        return drawn + self.draft[max(0, start - self.length) : max(0, stop - self.length)]

    def accept(self, token: int, logp: float) -> None:
        """It holds one more token."""
        self.ids.append(token)
        self.logps.append(logp)
        if self.tally is not None:
            self.tally.accept(token)
        if self.matcher is not None:
            self.matcher.accept(token)
        if self.lookup is not None:
            self.lookup.accept(token)


class PromptScores(NamedTuple):
    """What the model makes of a prompt's own tokens, from the second one on."""

    logps: np.ndarray
    """float32 [P - 1]: log softmax of the logits (temperature 1)."""
    tops: tuple[TopLogps, ...]
    """[P - 1]; empty where no `top_logps` were asked for."""


class Event(NamedTuple):
    """One new token of one response; the last one carries the finished sample. A cancelled response ends with token None."""

    request: int
    response: int
    token: int | None
    logp: float
    sample: Sample | None
    top: TopLogps = ()
    prompt: PromptScores | None = None
    """Sent alone (token None, sample None) before the first token, where it was asked for."""


class Statistics(NamedTuple):
    """What an engine holds at the moment, and what it did since it was made."""

    waiting: int
    """Requests that have not started."""
    running: int
    """Responses in the making."""
    blocks_used: int
    """Blocks that responses hold."""
    blocks_total: int
    hit_tokens: int
    """Prompt tokens found in the cache, of `asked_tokens`."""
    asked_tokens: int
    preemptions: int


def check_sampling(sampling: Sampling, vocab_size: int, has_tokenizer: bool) -> None:
    """Refuses values that cannot be meant."""
    s = sampling
    problems = (
        (s.max_new_tokens < 1, f"max_new_tokens must be at least 1, got {s.max_new_tokens}"),
        (s.n < 1, f"n must be at least 1 response per prompt, got {s.n}"),
        (
            not (s.temperature == 0 or 1e-4 <= s.temperature <= 1e4),
            f"temperature must be 0 (greedy) or lie between 0.0001 and 10000, got {s.temperature}",
        ),
        (s.top_k < 0, f"top_k must be 0 (keep all tokens) or more, got {s.top_k}"),
        (not 0 < s.top_p <= 1, f"top_p must lie in (0, 1], got {s.top_p}: 1 keeps all tokens"),
        (not 0 <= s.min_p <= 1, f"min_p must lie in [0, 1], got {s.min_p}: 0 keeps all tokens"),
        (
            s.n > 1 and s.temperature == 0,
            f"n={s.n} greedy responses would all be equal: set temperature above 0, or n to 1",
        ),
        (any(text == "" for text in s.stop), "a stop string is empty: remove it, it would end every response at once"),
        (
            bool(s.stop) and not has_tokenizer,
            "stop strings need a tokenizer: pass one to Engine(model, tokenizer), or use stop_ids",
        ),
        (
            any(not 0 <= i < vocab_size for i in s.stop_ids),
            f"stop_ids {s.stop_ids} must be token ids between 0 and {vocab_size - 1}",
        ),
        (
            not 0.01 <= s.repetition_penalty <= 100,
            f"repetition_penalty must lie between 0.01 and 100, got {s.repetition_penalty}: 1 changes nothing",
        ),
        (
            not (abs(s.presence_penalty) <= 1000 and abs(s.frequency_penalty) <= 1000),
            f"presence_penalty and frequency_penalty must lie between -1000 and 1000, got {s.presence_penalty} and {s.frequency_penalty}",
        ),
        (
            any(not (0 <= i < vocab_size and abs(bias) <= 1e6) for i, bias in s.logit_bias),
            f"logit_bias must give token ids between 0 and {vocab_size - 1} numbers of at most a million",
        ),
        (len(dict(s.logit_bias)) < len(s.logit_bias), "logit_bias names a token id twice: give each one number"),
    )
    for wrong, sentence in problems:
        if wrong:
            raise ValueError(sentence)


def check_options(options: Options, sampling: Sampling, vocab_size: int, has_tokenizer: bool) -> None:
    """Refuses values that cannot be meant, and what cannot go together. A constraint's own text is checked where it is compiled."""
    o, s = options, sampling
    beams = o.beams > 0
    problems = (
        (not 0 <= o.top_logps <= vocab_size, f"top_logps must lie between 0 and {vocab_size}, got {o.top_logps}"),
        (not 0 <= o.lookup <= MAX_LOOKUP, f"lookup must lie between 0 (none) and {MAX_LOOKUP} tokens, got {o.lookup}"),
        (
            not 0 <= 2 * o.beams <= vocab_size,
            f"beams must lie between 0 (none) and half the vocabulary, {vocab_size // 2}, got {o.beams}",
        ),
        (not math.isfinite(o.length_penalty), f"length_penalty must be finite, got {o.length_penalty}"),
        (
            o.constraint is not None and not has_tokenizer,
            "a constraint is on text and needs a tokenizer: pass one to Engine(model, tokenizer)",
        ),
        (beams and s.n > o.beams, f"n={s.n} hypotheses need as many beams, got {o.beams}: raise beams, or lower n"),
        (
            beams and (s.temperature not in (0, 1) or s.top_k > 0 or s.top_p < 1 or s.min_p > 0 or s.shifts),
            "beam search ranks by the model's own log-probs: leave temperature, top_k, top_p, min_p, the penalties and logit_bias out",
        ),
        (
            beams and (o.constraint is not None or o.lookup > 0 or o.top_logps > 0 or bool(s.stop)),
            "beam search goes without constraint, lookup, top_logps and stop strings: leave these out, or beams",
        ),
    )
    for wrong, sentence in problems:
        if wrong:
            raise ValueError(sentence)


def check_prompt(
    ids: Sequence[int] | np.ndarray, vocab_size: int, context: int, name: str = "the prompt"
) -> np.ndarray:
    """The prompt as int32 [P], refused when it is empty, holds foreign ids, or leaves no room for one new token."""
    prompt = np.asarray(ids)
    if prompt.ndim != 1 or len(prompt) == 0:
        raise ValueError(
            f"{name} is empty or not a flat list of token ids: give at least one id, such as the BOS token"
        )
    if prompt.dtype.kind not in "iu":
        raise ValueError(f"{name} holds {prompt.dtype} instead of token ids: encode text with the tokenizer first")
    if prompt.min() < 0 or prompt.max() >= vocab_size:
        bad = prompt[(prompt < 0) | (prompt >= vocab_size)][0]
        raise ValueError(f"{name} holds token id {bad}, but the model's vocabulary ends at {vocab_size - 1}: "
                         "use the model's own tokenizer")  # fmt: skip
    if len(prompt) >= context:
        raise ValueError(f"{name} has {len(prompt)} tokens, but the model's context holds {context}, one of them "
                         "at least for the response: shorten the prompt, or use a model with a longer context")  # fmt: skip
    return prompt.astype(np.int32)
