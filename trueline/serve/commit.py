"""What a step's logits mean: a token wherever one is ready, prompts shared among their responses, and who has ended.

    turn_of(running, tokens) -> Turn        what a response will get of the forward, for the runner
    Commit.commit(turns, logits_NV) -> events

Legend: N wanted rows of logits, C of them of one chunk, V vocabulary.
Left out: who computes what (scheduler), how a row becomes a token (drawing).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueline.serve.drawing import Drawer, Drawn, Line
from trueline.serve.lookup import Lookup
from trueline.serve.native.decoder import Chunk
from trueline.serve.noise import noise_key
from trueline.serve.penalties import Tally
from trueline.serve.request import Event, PromptScores, Running
from trueline.serve.samples import sample_of
from trueline.serve.sampling import top_logps
from trueline.serve.schedule import Scheduler
from trueline.serve.search import Searches
from trueline.serve.stops import hits_stop

if TYPE_CHECKING:
    from trueline.serve.constraints import Constraints
    from trueline.tokens.tokenizer import Tokenizer


Drawing = list[tuple[Running, list[Line]]]
"""Responses, and the places where their next tokens are drawn."""


class Turn(NamedTuple):
    """What one response does in a step."""

    running: Running
    tokens: int
    """How many are computed, drafts included."""
    wanted: int
    """Rows of logits that it gets, of its last tokens."""
    draws: bool

    @property
    def chunk(self) -> Chunk:
        """The same for the runner."""
        running, start = self.running, self.running.computed
        return Chunk(running.tokens(start, start + self.tokens), running.table, start, self.wanted)


def turn_of(running: Running, tokens: int) -> Turn:
    """What a response does with so many tokens: it draws when they reach its end."""
    draws = running.computed + tokens == running.length + len(running.draft)
    wanted = tokens if running.scores_prompt else draws * (1 + len(running.draft))
    return Turn(running, tokens, wanted, draws)


class Commit:
    """Turns logits into events, and tells the scheduler what follows from them."""

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer | None) -> None:
        self._scheduler, self._tokenizer = scheduler, tokenizer
        self._hidden: Collection[int] = frozenset() if tokenizer is None else frozenset(tokenizer.control.values())
        self._drawer = Drawer()
        self.searches = Searches(scheduler)
        self.constraints: Constraints | None = None
        """Made with the first request that has one."""

    def commit(self, turns: Sequence[Turn], logits_NV: Tensor, version: str) -> list[Event]:
        """Draws a token at every place that is ready for one, shares finished prompts, and ends those who are done."""
        events: list[Event] = []
        drawing: Drawing = []
        offset = 0
        for turn in turns:
            running, rows = turn.running, range(offset, offset + turn.wanted)
            offset += turn.wanted
            if running.scores_prompt:
                events.extend(_score_prompt(turn, logits_NV[rows.start : rows.stop]))
            if not turn.draws:
                self._scheduler.computed(running, turn.tokens)
                continue
            if running.request.options.beams:
                self._scheduler.computed(running, turn.tokens)
                events.extend(self.searches.take(running, logits_NV[rows.stop - 1], version))
                continue
            first = rows.stop - 1 - len(running.draft)
            if not running.ids:
                self._begin(running)
            lines = [Line(running, len(running.ids) + i, first + i) for i in range(len(running.draft) + 1)]
            drawing.append((running, lines))
            if running.siblings:
                self._scheduler.computed(running, turn.tokens)
                drawing.extend((fork, [Line(fork, 0, first)]) for fork in self._forks(running))
        if any(running.matcher is not None for running, _ in drawing):
            drawing = self._constrain(drawing, events, version)
        if not drawing:
            return events
        drawn = self._drawer.draw([line for _, lines in drawing for line in lines], logits_NV)
        if not np.isfinite(drawn.logps).all():
            raise ValueError(
                f"the model {version} gives NaN or infinite logits: its weights are broken, load others"
            )
        at = 0
        for running, lines in drawing:
            events.extend(self._take(running, drawn, at, version))
            at += len(lines)
        return events

    def _take(self, running: Running, drawn: Drawn, at: int, version: str) -> Iterator[Event]:
        """The tokens of one response, from line `at` on: the drafts that the draws confirm, and one more."""
        draft, before, reason = running.draft, running.length, None
        for place in range(len(draft) + 1):
            token, logp = drawn.tokens[at + place], drawn.logps[at + place]
            running.accept(token, logp)
            reason = self._ending(running, token)
            sample = None if reason is None else sample_of(running, reason, version)
            yield Event(running.request.id, running.response, token, logp, sample, drawn.tops[at + place])
            if reason is not None or place == len(draft) or token != draft[place]:
                break
            if running.matcher is not None and place + 1 >= running.matcher.places:  # its text is complete here
                break
        confirmed = running.length - before - 1
        if running.lookup is not None:
            running.lookup.judge(len(draft), confirmed)
        if running.computed < before + confirmed:  # a prompt that was shared has been counted already
            self._scheduler.computed(running, before + confirmed - running.computed)
        running.draft = []
        if reason is not None:
            self._scheduler.finish(running)
        elif running.lookup is not None:
            most = min(running.request.options.lookup, running.request.limit - len(running.ids) - 1)
            running.draft = running.lookup.propose(most)

    def _constrain(self, drawing: Drawing, events: list[Event], version: str) -> Drawing:
        """Masks for the lines of constrained responses. Those whose text is complete and that have no way to say so end here."""
        assert self.constraints is not None
        asked = [(running.matcher, running.draft) for running, _ in drawing if running.matcher is not None]
        masks = iter(self.constraints.masks(asked))
        left: Drawing = []
        for running, lines in drawing:
            if running.matcher is not None:
                lines = [line._replace(mask_W=mask_W) for line, mask_W in zip(lines, next(masks), strict=True)]
                if running.matcher.finished:
                    sample = sample_of(running, "constraint" if running.matcher.error else "stop", version)
                    events.append(Event(running.request.id, running.response, None, 0.0, sample))
                    self._scheduler.finish(running)
                    continue
            left.append((running, lines))
        return left

    def _forks(self, running: Running) -> list[Running]:
        """The other responses of a prompt that is computed."""
        request, siblings = running.request, running.siblings
        forks = []
        for response in siblings:
            key = noise_key(request.sampling.seed, request.ids, request.repeat, response)
            forks.append(self._scheduler.fork(running, response, key))
            self._begin(forks[-1])
        return forks

    def _begin(self, running: Running) -> None:
        """Before its first token."""
        request = running.request
        running.tally = Tally.of(request.sampling, request.ids)
        if request.matcher is not None and self.constraints is not None:
            running.matcher = self.constraints.copy(request.matcher)
        if request.options.lookup:
            running.lookup = Lookup(request.ids)

    def _ending(self, running: Running, token: int) -> str | None:
        request = running.request
        if token in request.stop_ids:
            return "stop"
        if request.sampling.stop:
            assert self._tokenizer is not None
            if hits_stop(running.ids, request.sampling.stop, self._tokenizer.decode, self._hidden):
                return "stop"
        return "length" if len(running.ids) >= request.limit else None


def _score_prompt(turn: Turn, logits_CV: Tensor) -> list[Event]:
    """Notes what the C rows of a chunk say of the prompt's next tokens; the event, once all are known."""
    running, request = turn.running, turn.running.request
    start, count = running.computed, request.options.top_logps
    if start == 0:  # perhaps anew, after a preemption
        running.prompt_logps, running.prompt_tops = [], []
    next_ids = torch.from_numpy(request.ids[start + 1 : start + 1 + turn.tokens].astype(np.int64)).to(logits_CV.device)
    if len(next_ids):
        logps_CV = logits_CV[: len(next_ids)].log_softmax(1)
        running.prompt_logps.extend(logps_CV.gather(1, next_ids[:, None])[:, 0].tolist())
        if count:
            running.prompt_tops.extend(top_logps(logits_CV[: len(next_ids)], [1.0] * len(next_ids), [count] * len(next_ids)))
    if start + turn.tokens < len(request.ids):
        return []
    scores = PromptScores(np.array(running.prompt_logps, np.float32), tuple(running.prompt_tops))
    return [Event(request.id, running.response, None, 0.0, None, (), scores)]
