"""A model as lm-evaluation-harness wants it: texts in, log-probabilities and responses out.

    loglikelihood           (context, continuation) -> ids -> rows -> score -> (sum of log-probs, is it the greedy one)
    loglikelihood_rolling   text -> windows of the context -> the same
    generate_until          context -> ids -> sample -> text before the first stop

Texts become ids as in lm_eval's own `hf` model, so that figures are comparable: context and continuation are encoded together,
special tokens in the text are recognised, a BOS is put in front where the model's family expects one, contexts that are too long lose
their left end (`cut` counts them). The choices of one question are one row: their common context is computed once.

Left out: several processes, images, lm_eval's cache of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from trueline.records import Row, Sample, Sampling
from trueline.tokens import Tokenizer

MAX_GEN_TOKS = 256
"""lm_eval's own default for tasks that name no length."""
ROWS = 64
"""Rows between two reports of progress."""
OURS = {field.name for field in fields(Sampling)} - {"n", "stop", "stop_ids", "max_new_tokens"}
"""Fields of Sampling that a task may set by name."""

Encoded = tuple[tuple[str, str], list[int], list[int]]
Scores = Callable[[Sequence[Row]], Sequence[Sequence[np.ndarray]]]
"""For each row and sequence float32 [scored tokens, 2]: the log-prob, and 1 where no token is likelier, else 0."""
Draw = Callable[[Sequence[Sequence[int]], Sampling], list[list[Sample]]]
"""Prompts (ids) and how to draw -> samples per prompt."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the harness drives; the model itself stays with whoever hands these in."""

    tokenizer: Tokenizer
    score: Scores
    sample: Draw
    text: Callable[[Sample, Sequence[str]], str]
    """A sample as text, before the stop string that ended it."""
    context: int
    """Tokens that the model can see at once; one more, behind them, can be predicted."""
    progress: Callable[[str, int, int], object] = lambda kind, done, total: None
    """Told what is being done, how much of it, out of how much."""


class HarnessModel(TemplateLM):
    """The door of lm_eval over a scorer and a sampler."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.tokenizer = parts, parts.tokenizer
        self.cut = 0
        """Requests whose context was too long."""
        if self.tokenizer.bos_id is None and self.tokenizer.eos_id is None:
            raise ValueError(f"the tokenizer of {self.tokenizer.source} has neither BOS nor EOS to begin a text with")

    # -- texts and ids -----------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.prefix_token_id if self.tokenizer.eos_id is None else self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context is conditioned on."""
        found = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
        assert found is not None
        return found

    @property
    def max_length(self) -> int:
        return self.parts.context

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.source.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids, with the BOS in front where the family expects it and the text has none."""
        ids = self.tokenizer.encode(string, allow_special=True)
        wanted = (
            self.tokenizer.adds_bos if add_special_tokens is None else add_special_tokens and self.tokenizer.adds_bos
        )
        bos = self.tokenizer.bos_id
        return [bos, *ids] if wanted and bos is not None and ids[:1] != [bos] else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The dialogue as text; without a generation prompt the last turn is left open, to be continued."""
        if add_generation_prompt:
            return self.tokenizer.template.render(chat_history, add_generation_prompt=True)
        return (
            self.tokenizer.template.render(chat_history[:-1], add_generation_prompt=True) + chat_history[-1]["content"]
        )

    # -- scoring -----------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-prob of the continuation, whether it is the greedy one) of each request."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        rows = list(self._rows(requests))
        for first in range(0, len(rows), ROWS):
            for scores_K in self.parts.score(rows[first : first + ROWS]):
                found += [(float(scores_N2[:, 0].sum()), bool(scores_N2[:, 1].all())) for scores_N2 in scores_K]
            self.parts.progress("scoring", len(found), len(requests))
        return found

    def _rows(self, requests: Sequence[Encoded]) -> Iterator[Row]:
        """Neighbours with one context are one row."""
        longest = self.parts.context + 1
        before: list[int] | None = None
        group: list[tuple[np.ndarray, np.ndarray]] = []
        for (_, text), context, continuation in requests:
            if len(continuation) >= longest:
                raise ValueError(f"a continuation of {len(continuation)} tokens does not fit the model's context of "
                                 f"{self.parts.context}: {text[:60]!r}; choose tasks with shorter texts")  # fmt: skip
            ids = np.array((context + continuation)[-longest:], dtype=np.int32)
            self.cut += len(context) + len(continuation) > longest
            if before is not None and context != before:
                yield _row(group)
                group = []
            before = context
            group.append((ids, np.arange(len(ids)) >= len(ids) - len(continuation)))
        if group:
            yield _row(group)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-prob of each whole text: every token is predicted once, in windows of the model's context."""
        windows: list[Encoded] = []
        counts: list[int] = []
        for (text,) in (request.args for request in requests):
            pieces = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            mine = [((text[:60], text[:60]), *make_disjoint_window(pair)) for pair in pieces]
            windows += mine
            counts.append(len(mine))
        sums = np.array([logp for logp, _ in self._loglikelihood_tokens(windows)])
        return [float(part.sum()) for part in np.split(sums, np.cumsum(counts)[:-1])] if counts else []

    # -- responses ---------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The response to each context, cut before its first stop."""
        found = [""] * len(requests)
        groups: dict[tuple[Sampling, int], list[int]] = {}
        for number, request in enumerate(requests):
            sampling = self._sampling(request.args[1])
            groups.setdefault((sampling, self.max_length - sampling.max_new_tokens), []).append(number)
        done = 0
        for (sampling, room), numbers in groups.items():
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            self.cut += sum(len(ids) > room for ids in prompts)
            for first in range(
                0, len(numbers), ROWS
            ):  # one call per part: equal prompts of a call draw different noise
                drawn = self.parts.sample(
                    [ids[-room:] or [self.prefix_token_id] for ids in prompts[first : first + ROWS]], sampling
                )
                for number, (sample,) in zip(numbers[first : first + ROWS], drawn, strict=True):
                    found[number] = self.parts.text(sample, sampling.stop)
                done += len(drawn)
                self.parts.progress("drawing", done, len(requests))
        return found

    def _sampling(self, asked: dict[str, Any]) -> Sampling:
        """A task's generation_kwargs as ours. A stop that is a control token becomes its id: it has no text."""
        known = normalize_gen_kwargs(asked, MAX_GEN_TOKS)
        length, until, sampled = known.pop("max_gen_toks"), known.pop("until", None) or [], known.pop("do_sample")
        until = [until] if isinstance(until, str) else until
        foreign = sorted(known.keys() - OURS)
        if foreign:
            raise ValueError(
                f"the task sets {foreign[0]} in its generation_kwargs, which is not known here; known are {', '.join(sorted(OURS))}"
            )
        if length >= self.max_length:
            raise ValueError(f"the task asks for {length} new tokens, and the model's context holds {self.max_length}: "
                             "choose tasks with shorter responses, or a model with a longer context")  # fmt: skip
        control = self.tokenizer.control
        return Sampling(
            **known | ({} if sampled else {"temperature": 0.0}),
            max_new_tokens=length,
            stop=tuple(text for text in until if text and text not in control),
            stop_ids=tuple(sorted({*self.tokenizer.stop_ids, *(control[text] for text in until if text in control)})),
        )


def _row(group: Sequence[tuple[np.ndarray, np.ndarray]]) -> Row:
    return Row(ids=tuple(ids for ids, _ in group), scored=tuple(scored for _, scored in group))
