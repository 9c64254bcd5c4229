"""The engine: prompts in, responses out, many at a time.

    submit(ids, sampling) -> request id
    step() -> events            schedule (who, in which slot) -> run (one forward) -> commit (draw, stop, free)
    cancel(request id), load(weights, version)
    sample(prompts, sampling)   the Sampler of trueline.protocols: submit all, step until done
    agreement                   how far the first samples of these weights are from the training forward (check)
    generate(texts)             the same from text to text

The key-value cache is contiguous, slots x length; it grows to what the requests need. A prompt is computed once and its keys
and values are copied to its n responses. What a response draws depends on its request alone (`noise`), so neither batch size nor
neighbours change it. Log-probs equal the training forward's to 1e-5.
Legend: B running responses, V vocabulary. Left out: paging, HTTP, threads (one thread owns an engine).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trueline.models.cache import BLOCK_SIZE, Cache
from trueline.models.decoder import Decoder
from trueline.models.layout import Layout
from trueline.records import TEXT, Message, Messages, Sample, Sampling
from trueline.serve.check import WARNING, Agreement, compare
from trueline.serve.noise import noise_key, uniforms
from trueline.serve.request import Event, Request, Running, check_prompt, check_sampling
from trueline.serve.sampling import Knobs, draw
from trueline.serve.scheduler import Plan, Scheduler
from trueline.serve.stops import cut, hits_stop

if TYPE_CHECKING:
    from trueline.tokens.tokenizer import Tokenizer


class Engine:
    """Draws responses from a Decoder with continuous batching."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None = None,
        max_batch: int = 64,
        *,
        prefill_tokens: int = 4096,
        stop_ids: Sequence[int] | None = None,
        version: str = "",
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """`stop_ids` end a response whose Sampling names none: by default the tokenizer's, else the config's end tokens.
        `progress` is told by `sample` how many of its responses have ended."""
        if max_batch < 1 or prefill_tokens < 1:
            raise ValueError(f"max_batch and prefill_tokens must be at least 1, got {max_batch} and {prefill_tokens}")
        if tokenizer is not None:
            model.config.refuse_tokenizer(tokenizer.vocab_size)
        self.model, self.tokenizer, self.version = model, tokenizer, version or model.source
        self._stop_ids = _end_tokens(model, tokenizer) if stop_ids is None else frozenset(stop_ids)
        self._hidden = frozenset() if tokenizer is None else frozenset(tokenizer.control.values())
        self._scheduler = Scheduler(max_batch, prefill_tokens)
        self._cache: Cache | None = None
        self._slot_blocks = 0
        self._knobs: Knobs | None = None
        self._ids = count()
        self._ended: list[Event] = []
        self._progress = progress
        self.agreement: Agreement | None = None
        """Of the first `sample` from this model, once even if it is in training; None before."""

    # -- the door ----------------------------------------------------------------------------------------------------

    def submit(self, ids: Sequence[int] | np.ndarray, sampling: Sampling) -> int:
        """Queues a prompt; its responses arrive as events of `step`."""
        check_sampling(sampling, self.model.config.vocab_size, self.tokenizer is not None)
        return self._queue(ids, sampling, 0, "the prompt")

    def step(self) -> list[Event]:
        """One forward for everybody who can go on, and the tokens it gave. Empty when nothing is left to do."""
        events, self._ended = self._ended, []
        plan = self._scheduler.schedule()
        if plan.starts:
            with _sampling_mode(self.model):
                return events + self._prefill(plan)
        if plan.batch:
            with _sampling_mode(self.model):
                return events + self._decode(plan)
        return events

    def cancel(self, request: int) -> bool:
        """Ends a request. What it drew so far comes with the next step's events, marked "cancelled". False: not running."""
        dropped, stopped = self._scheduler.cancel(request)
        unborn = [Running(part, response, 0) for part in dropped for response in part.responses]
        for running in [*(r for _, r in stopped), *unborn]:
            self._ended.append(Event(request, running.response, None, 0.0, self._sample(running, "cancelled")))
        self._knobs = None
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
        if weights.config != self.model.config or weights.device != self.model.device:
            self._cache = None
        if weights is not self.model:
            self.agreement = None
        self.model, self.version = weights, version

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
        number_of = {self._queue(checked[i], sampling, repeats[i], f"prompt {i}"): i for i in order}
        found: list[list[Sample | None]] = [[None] * sampling.n for _ in checked]
        ended = 0
        try:
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

    # -- run ---------------------------------------------------------------------------------------------------------

    def _prefill(self, plan: Plan) -> list[Event]:
        """One forward over several prompts; the first token of all their responses."""
        starts = plan.starts
        cache = self._roomy(
            1 + max(max(start.slots) for start in starts),
            max(len(start.request.ids) + start.request.limit for start in starts),
        )
        device = self.model.device
        layout = Layout.cached(
            [start.request.ids for start in starts],
            [self._table(start.slots[0]) for start in starts],
            [0] * len(starts),
            device=device,
        )
        hidden_SD = self.model(layout, cache, layout.last_S)
        placed: list[tuple[int, Running]] = []
        for start in starts:
            request = start.request
            if len(start.slots) > 1:
                self._copy(start.slots[0], start.slots[1:], len(request.ids))
            for slot, response in zip(start.slots, request.responses, strict=True):
                key = noise_key(request.sampling.seed, request.ids, request.repeat, response)
                running = Running(request, response, key)
                self._scheduler.place(slot, running)
                placed.append((slot, running))
        owner_B = torch.tensor([number for number, start in enumerate(starts) for _ in start.slots], device=device)
        logits_BV = self._head(hidden_SD)[owner_B]
        knobs = Knobs.of([running.request.sampling for _, running in placed], logits_BV.shape[1], device)
        self._knobs = None
        return self._commit(placed, logits_BV, knobs)

    def _decode(self, plan: Plan) -> list[Event]:
        """One forward with one token for everybody."""
        cache = self._cache
        assert cache is not None
        for move in plan.moves:
            self._copy(move.source, [move.target], move.length)
        batch = [(slot, running) for slot, running in enumerate(self._scheduler.slots) if running is not None]
        assert len(batch) == plan.batch
        device = self.model.device
        newest = [np.array(running.ids[-1:]) for _, running in batch]
        tables = [self._table(slot) for slot in range(plan.batch)]
        layout = Layout.cached(newest, tables, [running.cached for _, running in batch], device=device)
        logits_BV = self._head(self.model(layout, cache))
        if plan.moves or self._knobs is None:
            self._knobs = Knobs.of([running.request.sampling for _, running in batch], logits_BV.shape[1], device)
        return self._commit(batch, logits_BV, self._knobs)

    def _head(self, hidden_BD: Tensor) -> Tensor:
        return self.model.head(hidden_BD).float()

    def _roomy(self, slots: int, length: int) -> Cache:
        """The cache, grown when `slots` or `length` exceed it. What it holds is kept."""
        old, blocks = self._cache, self._slot_blocks
        old_slots = 0 if old is None else old.num_blocks // blocks
        if old is not None and slots <= old_slots and length <= blocks * BLOCK_SIZE:
            return old
        slots, length = max(slots, old_slots), max(length, blocks * BLOCK_SIZE)
        # doubling keeps the number of copies small; the last step stays within what can ever be needed
        slots = min(self._scheduler.max_batch, 1 << (slots - 1).bit_length())
        length = min(self.model.config.max_length, -(-length // 64) * 64)
        self._slot_blocks = -(-length // BLOCK_SIZE)
        new = self.model.new_cache(slots * self._slot_blocks)
        if old is not None and any(running is not None for running in self._scheduler.slots):
            new.copy([(slot * blocks + i, slot * self._slot_blocks + i) for slot in range(old_slots) for i in range(blocks)], old)
        self._cache = new
        return new

    def _table(self, slot: int) -> range:
        return range(slot * self._slot_blocks, (slot + 1) * self._slot_blocks)

    def _copy(self, source: int, targets: Sequence[int], length: int) -> None:
        assert self._cache is not None
        count = -(-length // BLOCK_SIZE)
        self._cache.copy([(self._table(source)[i], self._table(target)[i]) for target in targets for i in range(count)])

    # -- commit ------------------------------------------------------------------------------------------------------

    def _commit(self, batch: list[tuple[int, Running]], logits_BV: Tensor, knobs: Knobs) -> list[Event]:
        """Draws a token for everybody, ends those who are done, and frees their slots."""
        keys_B = np.array([running.key for _, running in batch], dtype=np.uint64)
        steps_B = np.array([len(running.ids) for _, running in batch])
        ids_B, logps_B = draw(logits_BV, knobs, uniforms(keys_B, steps_B))
        if not np.isfinite(logps_B).all():
            raise ValueError(
                f"the model {self.version} gives NaN or infinite logits: its weights are broken, load others"
            )
        events = []
        for (slot, running), token, logp in zip(batch, ids_B.tolist(), logps_B.tolist(), strict=True):
            running.ids.append(token)
            running.logps.append(logp)
            reason = self._ending(running, token)
            sample = None
            if reason is not None:
                self._scheduler.free(slot)
                self._knobs = None
                sample = self._sample(running, reason)
            events.append(Event(running.request.id, running.response, token, logp, sample))
        return events

    def _ending(self, running: Running, token: int) -> str | None:
        request = running.request
        if token in request.stop_ids:
            return "stop"
        if request.sampling.stop:
            assert self.tokenizer is not None
            if hits_stop(running.ids, request.sampling.stop, self.tokenizer.decode, self._hidden):
                return "stop"
        return "length" if len(running.ids) >= request.limit else None

    def _sample(self, running: Running, reason: str) -> Sample:
        request = running.request
        return Sample(
            prompt_ids=request.ids,
            ids=np.array(running.ids, dtype=np.int32),
            logps=np.array(running.logps, dtype=np.float32),
            mask=np.ones(len(running.ids), dtype=bool),
            finish_reason=reason,
            group=blake2b(request.ids.tobytes(), digest_size=8).hexdigest(),
            temperature=request.sampling.temperature,
            policy=self.version,
        )

    # -- requests ----------------------------------------------------------------------------------------------------

    def _checked(self, ids: Sequence[int] | np.ndarray, name: str) -> np.ndarray:
        config = self.model.config
        return check_prompt(ids, config.vocab_size, config.max_length, name)

    def _queue(self, ids: Sequence[int] | np.ndarray, sampling: Sampling, repeat: int, name: str) -> int:
        prompt = self._checked(ids, name)
        number = next(self._ids)
        whole = Request(
            id=number,
            ids=prompt,
            sampling=sampling,
            responses=range(sampling.n),
            limit=min(sampling.max_new_tokens, self.model.config.max_length - len(prompt)),
            stop_ids=frozenset(sampling.stop_ids) or self._stop_ids,
            repeat=repeat,
        )
        size = self._scheduler.max_batch  # more responses than slots: the prompt is computed once per part
        for first in range(0, sampling.n, size):
            self._scheduler.add(replace(whole, responses=whole.responses[first : first + size]))
        return number


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
