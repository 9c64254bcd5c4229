"""The engine: prompts in, responses out, many at a time, over a paged cache.

    submit(ids, sampling, options) -> request id
    step() -> events            schedule (who computes how many tokens) -> run (one forward) -> commit (draw, stop, share, free)
    cancel(request id), load(weights, version), statistics()
    sample(prompts, sampling)   the Sampler of trueline.protocols: submit all, step until done
    agreement                   how far the first samples of these weights are from the training forward (check)
    generate(texts)             the same from text to text

What a response draws depends on its request alone (`noise`), so neither batch size nor neighbours, chunks, preemption or shared
blocks change it; in C++ not one bit of its logits depends on them. Log-probs equal the training forward's to 1e-5.
Left out: HTTP, threads (one thread owns an engine), who runs (schedule), which block is whose (blocks), the forward (runner),
what follows from its logits (commit).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trueline.models.cache import BLOCK_SIZE
from trueline.models.decoder import Decoder
from trueline.records import TEXT, Message, Messages, Sample, Sampling
from trueline.serve.blocks import Blocks
from trueline.serve.check import WARNING, Agreement, compare
from trueline.serve.commit import Commit, turn_of
from trueline.serve.request import (
    Event,
    Options,
    Request,
    Running,
    Statistics,
    check_options,
    check_prompt,
    check_sampling,
)
from trueline.serve.runner import Runner
from trueline.serve.samples import sample_of
from trueline.serve.schedule import Scheduler
from trueline.serve.stops import cut

if TYPE_CHECKING:
    from trueline.serve.constraints import Constraints
    from trueline.tokens.tokenizer import Tokenizer


@dataclass
class Open:
    """A request that has not ended."""

    blocks: int
    """That one of its responses may come to."""
    slots: int
    """Responses, or beams, that run at once."""
    left: int
    """Responses that have not ended."""


class Engine:
    """Draws responses from a Decoder with continuous batching."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer | None = None, max_batch: int = 64, *,
        max_tokens_per_step: int = 2048, block_size: int = BLOCK_SIZE, cache_tokens: int | None = None,
        cache_dtype: torch.dtype | None = None, swap_tokens: int = 0, max_waiting: int | None = None, adapters: Sequence[str] = (),
        native: bool = True, batch_invariant: bool = False, stop_ids: Sequence[int] | None = None, version: str = "",
        progress: Callable[[int], object] | None = None,
    ) -> None:  # fmt: skip
        """`max_batch` responses run at once, and a step computes at most `max_tokens_per_step` tokens. The cache grows with
        what is asked for; with `cache_tokens` it keeps prefixes beside it and grows up to that many tokens, then responses are
        preempted, and up to `swap_tokens` of theirs are kept on the host. `cache_dtype` torch.int8 stores keys and values in 8
        bits. More than `max_waiting` requests in the queue are refused. `adapters` on the model that requests may name; without
        them the model is used as it is.

        `native=False` computes on torch even where C++ could. `batch_invariant` refuses a model that C++ does not compute: there
        logits are equal bit for bit in any company (at no cost), on torch to rounding. `stop_ids` end a response whose Sampling
        names none: by default the tokenizer's, else the config's end tokens. `progress` is told by `sample` how many of its
        responses have ended."""
        least = min(max_batch, max_tokens_per_step, block_size)
        if least < 1:
            raise ValueError(
                f"max_batch, max_tokens_per_step and block_size must be at least 1, got {max_batch}, {max_tokens_per_step} and {block_size}"
            )
        if cache_tokens is not None and cache_tokens < 2 * block_size:
            raise ValueError(f"cache_tokens is {cache_tokens}: a cache of fewer than {2 * block_size} tokens holds no request; raise it")
        if tokenizer is not None:
            model.config.refuse_tokenizer(tokenizer.vocab_size)
        self.model, self.tokenizer, self.version = model, tokenizer, version or model.source
        self._stop_ids = _end_tokens(model, tokenizer) if stop_ids is None else frozenset(stop_ids)
        self._adapters = tuple(adapters)
        self._runner = Runner(model, block_size, cache_dtype, tuple(adapters), native)
        self._batch_invariant = batch_invariant
        self._refuse_torch()
        self._limit = None if cache_tokens is None else cache_tokens // block_size
        self._blocks = Blocks(0, block_size)
        self._scheduler = Scheduler(
            self._blocks, max_batch=max_batch, max_tokens_per_step=max(max_tokens_per_step, max_batch), max_waiting=max_waiting,
            swap_blocks=swap_tokens // block_size,
        )  # fmt: skip
        self._commit = Commit(self._scheduler, tokenizer)
        self._ids = count()
        self._ended: list[Event] = []
        self._open: dict[int, Open] = {}
        self._needs: Counter[int] = Counter()
        """Blocks that one response may come to -> how many open ones there are (or beams)."""
        self._progress = progress
        self.agreement: Agreement | None = None
        """Of the first `sample` from this model, once even if it is in training; None before."""

    # -- the door ----------------------------------------------------------------------------------------------------

    def submit(self, ids: Sequence[int] | np.ndarray, sampling: Sampling, options: Options = Options()) -> int:  # noqa: B008
        """Queues a prompt; its responses arrive as events of `step`."""
        check_sampling(sampling, self.model.config.vocab_size, self.tokenizer is not None)
        check_options(options, sampling, self.model.config.vocab_size, self.tokenizer is not None)
        if options.beams > self._scheduler.max_batch:
            raise ValueError(f"{options.beams} beams do not fit a batch of {self._scheduler.max_batch}: lower beams, or raise max_batch")
        self._refuse_adapter(options.adapter)
        return self._queue(ids, sampling, options, 0, "the prompt")

    def step(self) -> list[Event]:
        """One forward for everybody who can go on, and the tokens it gave. Empty when nothing is left to do."""
        events, self._ended = self._ended, []
        plan = self._scheduler.schedule()
        if not (plan.chunks or plan.swap_out or plan.swap_in):
            return events
        try:
            with _sampling_mode(self.model):
                self._runner.move(plan.swap_out, plan.copies, plan.swap_in)
                if not plan.chunks:  # blocks move even when nobody computes
                    return events
                self._runner.use(plan.adapter)
                turns = [turn_of(running, tokens) for running, tokens in plan.chunks]
                news = self._commit.commit(turns, self._runner.run([turn.chunk for turn in turns]), self.version)
        except BaseException:  # half a step is no state to go on from
            for request in {running.request.id for running, _ in plan.chunks}:
                self.cancel(request)
            if not self._scheduler.busy:
                self._runner.cache.clear()
            self._runner.forget()
            raise
        self._close(news)
        return events + news

    def cancel(self, request: int) -> bool:
        """Ends a request. What it drew so far comes with the next step's events, marked "cancelled". False: not running."""
        dropped, stopped = self._scheduler.cancel(request)
        self._commit.searches.forget(request)
        parts = [*dropped, *(running.request for running in stopped)]
        if parts and parts[0].options.beams:
            found = [Running(parts[0], response, 0) for response in range(parts[0].sampling.n)]
        else:
            found = [*stopped, *(Running(part, response, 0) for part in dropped for response in part.responses)]
            found += [Running(r.request, response, 0) for r in stopped for response in r.siblings]
        ended = [Event(request, running.response, None, 0.0, sample_of(running, "cancelled", self.version)) for running in found]
        self._ended += ended
        self._close(ended)
        return bool(dropped or stopped)

    @property
    def busy(self) -> bool:
        """True while requests wait or run, or events wait to be fetched."""
        return self._scheduler.busy or bool(self._ended)

    def load(self, weights: Decoder, version: str) -> None:
        """Draws from this model from now on. It is used as it is, not copied: a model in training is read live."""
        if self._scheduler.busy:
            raise ValueError(
                "requests are running on the old weights: finish them with step() or cancel() them, then load"
            )
        if self.tokenizer is not None:
            weights.config.refuse_tokenizer(self.tokenizer.vocab_size)
        if weights is not self.model:
            self.agreement = None
            self._runner.replace(weights)
            self._refuse_torch()
        self._runner.forget()
        self.model, self.version = weights, version

    @property
    def backend(self) -> str:
        """Who computes the forward, in words."""
        return f"torch ({self._runner.why_torch})" if self._runner.why_torch else "C++"

    def statistics(self) -> Statistics:
        """Counts, now."""
        blocks, scheduler = self._blocks, self._scheduler
        return Statistics(
            scheduler.waiting, len(scheduler.running), blocks.used, blocks.num_blocks, blocks.hit_tokens, blocks.asked_tokens,
            scheduler.preemptions,
        )  # fmt: skip

    # -- in one call -------------------------------------------------------------------------------------------------

    def sample(self, prompts: Sequence[Sequence[int] | np.ndarray], sampling: Sampling) -> list[list[Sample]]:
        """For each prompt (token ids) its `sampling.n` samples, in order.

        One seed serves all prompts: the noise depends on seed, prompt and response, and equal prompts of a call differ.
        """
        if self.busy:
            raise ValueError("sample() needs the engine for itself: finish the submitted requests with step() first")
        check_sampling(sampling, self.model.config.vocab_size, self.tokenizer is not None)
        checked = [self._checked(ids, f"prompt {number}") for number, ids in enumerate(prompts)]
        seen: Counter[bytes] = Counter()
        repeats = []
        for prompt in checked:
            repeats.append(seen[prompt.tobytes()])
            seen[prompt.tobytes()] += 1
        # longest first: neighbours in the batch are of similar length, and the cache has its final size at once
        order = sorted(range(len(checked)), key=lambda number: -len(checked[number]))
        number_of: dict[int, int] = {}
        found: list[list[Sample | None]] = [[None] * sampling.n for _ in checked]
        ended = 0
        try:
            needs = Counter(self._need(ids, sampling) for ids in checked)
            self._reserve(Counter({need: sampling.n * times for need, times in needs.items()}))
            for i in order:
                number_of[self._queue(checked[i], sampling, Options(), repeats[i], f"prompt {i}")] = i
            with _sampling_mode(self.model):  # here once: a model in training changes its mode module by module
                while self.busy:
                    for event in self.step():
                        if event.sample is not None:
                            found[number_of[event.request]][event.response] = event.sample
                            ended += 1
                    if self._progress is not None:
                        self._progress(ended)
        finally:  # an interrupt leaves a clean engine
            for request in number_of if self._scheduler.busy else ():
                self.cancel(request)
            self._ended = []
        groups = [[sample for sample in group if sample is not None] for group in found]
        if self.agreement is None and any(groups):
            with _sampling_mode(self.model):
                self.agreement = compare(self.model, (group[0] for group in groups if group))
            if not self.agreement.holds:
                warnings.warn(f"sampler vs trainer log-probs: {WARNING}", stacklevel=2)
        return groups

    def generate(self, prompts: str | Messages | Sequence[str | Messages], **sampling: Any) -> list[str]:
        """Responses as text, stop strings and what follows cut. A prompt is a text, or messages (rendered by the template).

        Keywords are the fields of Sampling. With n > 1 the n responses of a prompt follow one another.
        """
        if self.tokenizer is None:
            raise ValueError("generate needs a tokenizer: Engine(model, tokenizer), or call sample with token ids")
        from trueline.tokens.encode import encode_prompt  # ids in, ids out: only text needs templates

        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Message))
        asked: list[Any] = [prompts] if single else list(prompts)
        wanted = Sampling(**sampling)
        ids = [encode_prompt(_messages(prompt), self.tokenizer) for prompt in asked]
        return [self.text(sample, wanted.stop) for group in self.sample(ids, wanted) for sample in group]

    def text(self, sample: Sample, stop: Sequence[str] = ()) -> str:
        """A sample's response as text, without special tokens, cut before the stop string that ended it."""
        if self.tokenizer is None:
            raise ValueError("text needs a tokenizer: Engine(model, tokenizer)")
        text = self.tokenizer.decode(sample.ids.tolist())
        return cut(text, stop) if stop and sample.finish_reason == "stop" else text

    # -- requests ----------------------------------------------------------------------------------------------------

    def _checked(self, ids: Sequence[int] | np.ndarray, name: str) -> np.ndarray:
        config = self.model.config
        return check_prompt(ids, config.vocab_size, config.max_length, name)

    def _queue(
        self, ids: Sequence[int] | np.ndarray, sampling: Sampling, options: Options, repeat: int, name: str
    ) -> int:
        prompt = self._checked(ids, name)
        if not self._scheduler.busy and self._runner.changed():
            self._scheduler.reset()
        number = next(self._ids)
        whole = Request(
            id=number,
            ids=prompt,
            sampling=sampling,
            responses=range(1 if options.beams else sampling.n),
            limit=min(sampling.max_new_tokens, self.model.config.max_length - len(prompt)),
            stop_ids=frozenset(sampling.stop_ids) or self._stop_ids,
            repeat=repeat,
            options=options,
        )
        if options.constraint is not None:
            whole = replace(whole, matcher=self._constraints().matcher(options.constraint, whole.stop_ids))
        self._scheduler.refuse_full(1)
        need = self._need(prompt, sampling)
        self._open[number] = Open(need, options.beams or sampling.n, sampling.n)
        self._needs[need] += options.beams or sampling.n
        try:
            self._reserve()
            # more responses than can run together: the prompt is shared through the cache
            size = max(1, min(self._scheduler.max_batch, self._scheduler.room(len(prompt), whole.limit)))
            parts = [whole.responses[first : first + size] for first in range(0, len(whole.responses), size)]
            self._scheduler.refuse_full(len(parts))
            for responses in parts:
                self._scheduler.add(replace(whole, responses=responses))
        except BaseException:
            self._forget(number)
            raise
        return number

    def _close(self, events: Sequence[Event]) -> None:
        """Counts the responses that have ended."""
        for event in events:
            if event.sample is not None:
                entry = self._open[event.request]
                entry.left -= 1
                if entry.left == 0:
                    self._forget(event.request)

    def _forget(self, request: int) -> None:
        entry = self._open.pop(request)
        self._needs[entry.blocks] -= entry.slots
        self._needs += Counter()  # what is 0 goes

    def _need(self, prompt: np.ndarray, sampling: Sampling) -> int:
        """Blocks that one response may come to."""
        return self._blocks.needed(min(len(prompt) + sampling.max_new_tokens, self.model.config.max_length))

    def _reserve(self, needs: Counter[int] | None = None) -> None:
        """Grows the cache, so that as many responses as run at once fit, the longest of them: of the open ones, or of `needs`."""
        needs = self._needs if needs is None else needs
        left, wanted = self._scheduler.max_batch, 0
        for blocks in sorted(needs, reverse=True):
            taken = min(left, needs[blocks])
            left, wanted = left - taken, wanted + taken * blocks
        if self._limit is not None:  # a bounded cache keeps prefixes until it is full, one without grows no further than it must
            wanted = min(max(wanted, self._blocks.cached + self._blocks.used + max(needs, default=0)), self._limit)
        if wanted > self._blocks.num_blocks:
            wanted = min(self._limit or wanted, max(wanted, self._blocks.num_blocks * 3 // 2))  # few copies, little too much
            self._runner.grow(wanted)
            self._blocks.grow(wanted)

    def _constraints(self) -> Constraints:
        if self._commit.constraints is None:
            from trueline.serve.constraints import Constraints  # an extra

            assert self.tokenizer is not None
            self._commit.constraints = Constraints(self.tokenizer)
        return self._commit.constraints

    def _refuse_torch(self) -> None:
        if self._batch_invariant and self._runner.why_torch:
            raise ValueError(f"batch_invariant needs the forward in C++, and this model runs on torch: {self._runner.why_torch}")

    def _refuse_adapter(self, name: str) -> None:
        if name and name not in self._adapters:
            there = ", ".join(self._adapters) or "none"
            raise ValueError(f"there is no adapter {name!r} to answer: this engine has {there}")


@contextmanager
def _sampling_mode(model: Decoder) -> Iterator[None]:
    """No gradients, and no training-time noise; a model in training is handed back as it was."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()


def _end_tokens(model: Decoder, tokenizer: Tokenizer | None) -> frozenset[int]:
    if tokenizer is not None:
        return frozenset(tokenizer.stop_ids)
    end = model.config.eos_token_id
    return frozenset(() if end is None else (end,) if isinstance(end, int) else end)


def _messages(prompt: str | Messages) -> Messages:
    return (Message(role=TEXT, content=prompt),) if isinstance(prompt, str) else prompt
