"""What the engine is asked for, what it answers, and the checks in between. No torch.

    submit(ids, sampling) -> Request --scheduler--> Running x n --commit--> Event ... Event(sample=Sample)

Left out: text (the engine's `generate` encodes and decodes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trueline.records import Sample, Sampling


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


@dataclass
class Running:
    """One response in the making."""

    request: Request
    response: int
    key: int
    """Of its noise."""
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens in the cache: prompt and response but for the newest token, which the next step feeds in."""
        return len(self.request.ids) + len(self.ids) - 1


class Event(NamedTuple):
    """One new token of one response; the last one carries the finished sample. A cancelled response ends with token None."""

    request: int
    response: int
    token: int | None
    logp: float
    sample: Sample | None


def check_sampling(sampling: Sampling, vocab_size: int, has_tokenizer: bool) -> None:
    """Refuses values that cannot be meant."""
    s = sampling
    problems = (
        (s.max_new_tokens < 1, f"max_new_tokens must be at least 1, got {s.max_new_tokens}"),
        (s.n < 1, f"n must be at least 1 response per prompt, got {s.n}"),
        (
            not (s.temperature >= 0 and math.isfinite(s.temperature)),
            f"temperature must be 0 (greedy) or a positive number, got {s.temperature}",
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
