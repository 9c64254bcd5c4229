"""Who runs next, in which slot of the cache. No torch: plain Python, tested without a model.

    waiting: [r3, r4, ...]                     FCFS, a request starts when all its responses have a slot
    slots:   [a0, a1, None, b0]                one running response each; a hole is left by a finished one
    schedule() -> Plan(starts = r3 into slot 2)     prefill first: it fills the batch
               or Plan(moves = slot 3 to 2)         else holes are closed and all slots 0..B-1 take one step

Continuous batching: responses leave and enter between any two steps (Orca). A step is either a prefill of several whole
prompts or one token for everybody.
Left out: paging, preemption, chunks of a long prompt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from trueline.serve.request import Request, Running


@dataclass(frozen=True)
class Start:
    """Prefill this request's prompt in slots[0] and share it with the others."""

    request: Request
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """Copy the first `length` cached tokens of a slot to a free one."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Plan:
    """One step: starts (a prefill), or moves and then one token for slots 0..batch-1. Neither: nothing to do."""

    starts: tuple[Start, ...] = ()
    moves: tuple[Move, ...] = ()
    batch: int = 0


class Scheduler:
    """Waiting requests and the slots of those that run."""

    def __init__(self, max_batch: int, prefill_tokens: int) -> None:
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens
        """Prompt tokens of one prefill; a longer prompt is prefilled alone."""
        self.waiting: deque[Request] = deque()
        self.slots: list[Running | None] = []

    @property
    def busy(self) -> bool:
        """True while anything waits or runs."""
        return bool(self.waiting) or any(running is not None for running in self.slots)

    def add(self, request: Request) -> None:
        """Queues a request; it must fit the batch."""
        assert 0 < len(request.responses) <= self.max_batch
        self.waiting.append(request)

    def schedule(self) -> Plan:
        """Decides the next step. Slots named by `starts` are filled by `place`, moves are already booked."""
        starts = self._admit()
        if starts:
            return Plan(starts=starts)
        moves = self._close_holes()
        return Plan(moves=moves, batch=len(self.slots))

    def place(self, slot: int, running: Running) -> None:
        """A started response takes its slot."""
        if slot >= len(self.slots):
            self.slots.extend([None] * (slot + 1 - len(self.slots)))
        assert self.slots[slot] is None
        self.slots[slot] = running

    def free(self, slot: int) -> None:
        """A response has ended."""
        assert self.slots[slot] is not None
        self.slots[slot] = None

    def cancel(self, request_id: int) -> tuple[list[Request], list[tuple[int, Running]]]:
        """Takes a request out: its waiting parts, and its running responses with the slots they leave."""
        dropped = [request for request in self.waiting if request.id == request_id]
        self.waiting = deque(request for request in self.waiting if request.id != request_id)
        stopped = [(slot, r) for slot, r in enumerate(self.slots) if r is not None and r.request.id == request_id]
        for slot, _ in stopped:
            self.free(slot)
        return dropped, stopped

    def _admit(self) -> tuple[Start, ...]:
        free = [slot for slot, running in enumerate(self.slots) if running is None]
        free.extend(range(len(self.slots), self.max_batch))
        starts: list[Start] = []
        tokens, used = 0, 0
        while self.waiting:
            request = self.waiting[0]
            tokens += len(request.ids)
            if used + len(request.responses) > len(free) or (starts and tokens > self.prefill_tokens):
                break
            starts.append(Start(request, tuple(free[used : used + len(request.responses)])))
            used += len(request.responses)
            self.waiting.popleft()
        return tuple(starts)

    def _close_holes(self) -> tuple[Move, ...]:
        """Moves the last responses into the holes, so that the running ones are slots 0..B-1."""
        moves: list[Move] = []
        for hole in range(len(self.slots)):
            while self.slots and self.slots[-1] is None:
                self.slots.pop()
            if hole >= len(self.slots):
                break
            if self.slots[hole] is None:
                last = self.slots.pop()
                assert last is not None
                moves.append(Move(len(self.slots), hole, last.cached))
                self.slots[hole] = last
        return tuple(moves)
