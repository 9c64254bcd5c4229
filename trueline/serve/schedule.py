"""Who computes what in the next step, and where it is kept. No torch: plain Python, tested without a model.

    add(request)                    to the queue (`waiting`: priorities, clients in turn, first come first served)
    schedule() -> Plan              decodes first, then chunks of prompts, then new requests, until max_tokens_per_step are planned
    computed(running, count)        after the forward: what counts now; full blocks become prefixes that others may share
    fork(running, response, key)    another response over the same blocks
    finish(running), cancel(id), reset()

Continuous batching (Orca): responses enter and leave between any two steps. Blocks for all tokens of a response are taken when it
enters; after that only decodes need more. When there are none, the request that ranks last is preempted as a whole: its blocks
are swapped out to a host pool, or dropped and computed again, whichever is expected to move less. Requests are served and preempted
in one order (priority, then who started first), so the first one always goes on and ends; nobody overtakes who waits for room.
Responses of a beam search take their steps together.
Left out: tokens and their drawing, memory (the engine carries out a plan).
"""

from __future__ import annotations

from array import array
from bisect import insort

from trueline.serve.blocks import Blocks
from trueline.serve.group import Group
from trueline.serve.noise import noise_key
from trueline.serve.plan import Plan
from trueline.serve.request import Request, Running
from trueline.serve.swap import Swap
from trueline.serve.waiting import Full, Waiting


class Scheduler:
    """Waiting and running requests, and their blocks."""

    def __init__(
        self,
        blocks: Blocks,
        *,
        max_batch: int,
        max_tokens_per_step: int,
        max_waiting: int | None = None,
        swap_blocks: int = 0,
        recompute_cost: float = 4.0,
        patience: int = 64,
        ahead: int = 16,
    ) -> None:
        """`swap_blocks`: size of the host pool. `recompute_cost`: computing a token again costs as much as moving the keys and
        values of so many tokens. `patience`: starts of higher priority that a lower one lets pass. `ahead`: when somebody enters,
        there is room for so many tokens of everybody, so that nobody is preempted at once."""
        if max_batch < 1 or max_tokens_per_step < max_batch:
            raise ValueError(
                f"max_batch must be at least 1 and max_tokens_per_step at least max_batch, got {max_batch} and {max_tokens_per_step}"
            )
        self.blocks, self.host = blocks, Swap(swap_blocks, blocks.block_size)
        self.max_batch, self.max_tokens, self.max_waiting = max_batch, max_tokens_per_step, max_waiting
        self.recompute_cost, self.ahead = recompute_cost, ahead
        self._waiting = Waiting(patience)
        self._groups: list[Group] = []  # that run, by rank
        self._group: dict[Running, Group] = {}  # of every response with or without blocks
        self._filling: set[tuple[int, bytes]] = set()  # prefixes that this step computes
        self._slots = self._starts = self._steps = 0
        self._turns: dict[str, int] = {}  # the last step of each adapter
        self._refused: tuple[Running | None, int] = None, 0  # who found no room last, in how many free blocks
        self.preemptions = self.swaps = 0
        """Requests that lost their blocks, and how many of them to the host pool."""

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """True while anything waits or runs."""
        return bool(self._groups) or bool(self._waiting)

    @property
    def waiting(self) -> int:
        """Requests that never started."""
        return self._waiting.new

    @property
    def preempted(self) -> int:
        """Requests that wait to go on."""
        return len(self._waiting.groups()) - self._waiting.new

    @property
    def running(self) -> list[Running]:
        """Responses with blocks."""
        return [running for group in self._groups for running in group.active]

    def room(self, prompt_length: int, limit: int) -> int:
        """How many responses of a prompt can always run together, if need be alone; 0: not even one."""
        shared, most = prompt_length // self.blocks.block_size, self.blocks.needed(prompt_length + limit - 1)
        if most > self.blocks.num_blocks:
            return 0
        return min(self.max_batch, (self.blocks.num_blocks - shared) // max(most - shared, 1))

    def refuse_full(self, parts: int) -> None:
        """`Full` when so many more requests would not fit the queue."""
        if self.max_waiting is not None and self._waiting.new + parts > self.max_waiting:
            raise Full(f"the queue is full: {self._waiting.new} requests wait; try again later")

    def add(self, request: Request) -> None:
        """Queues a request. ValueError when it can never run, `Full` when the queue is full."""
        slots = request.options.beams or len(request.responses)
        assert 0 < slots <= self.max_batch, "the engine splits what exceeds the batch"
        if slots > self.room(len(request.ids), request.limit):
            raise ValueError(
                f"{slots} x {request.limit} new tokens after a prompt of {len(request.ids)} can need more than the cache's "
                f"{self.blocks.num_blocks} blocks of {self.blocks.block_size} tokens: lower max_new_tokens or n, shorten the "
                "prompt, or give the engine a larger cache"
            )
        self.refuse_full(1)
        key = noise_key(request.sampling.seed, request.ids, request.repeat, request.responses[0])
        first = Running(request, request.responses[0], key, siblings=tuple(request.responses[1:]))
        group = self._group[first] = Group(request, request.options.priority, slots, pending=[first])
        self._waiting.add(group)

    def fork(self, running: Running, response: int, key: int) -> Running:
        """Another response that goes on where this one stands; they share all blocks. A sibling is one no more."""
        assert running.table and running.length - running.computed <= 1, "only what is computed can be shared"
        group = self._group[running]
        running.siblings = tuple(number for number in running.siblings if number != response)
        child = Running(running.request, response, key, list(running.ids), list(running.logps), running.computed)
        child.table = self.blocks.fork(running.table, running.computed)
        group.active.append(child)
        self._group[child] = group
        return child

    def finish(self, running: Running) -> None:
        """A response has ended; its blocks are free."""
        group = self._group[running]
        assert running in group.active, "only who has just been computed can end; `cancel` is for the others"
        self._drop(running, group)
        if not group.beams:
            group.slots -= 1
            self._slots -= 1
        if not group.active and not group.pending:
            self._groups.remove(group)
            self._slots -= group.slots

    def cancel(self, request_id: int) -> tuple[list[Request], list[Running]]:
        """Takes a request out: its parts that never started, and its responses that did (`siblings` names more, not forked yet)."""
        queued = self._waiting.remove(request_id)
        going = [group for group in self._groups if group.request.id == request_id]
        for group in going:
            self._groups.remove(group)
            self._slots -= group.slots
        stopped = []
        for group in (*going, *queued):
            for running in (*group.active, *group.pending):
                self._drop(running, group)
                if group.started:
                    stopped.append(running)
        return [group.request for group in queued if not group.started], stopped

    def reset(self) -> None:
        """The weights have changed: nothing computed before counts. What runs is computed again from its tokens."""
        for group in list(self._groups):
            self._preempt(group, None)
        for running in self.host.clear():
            running.computed = 0
        self.blocks.reset()

    # -- a step ------------------------------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """Decides the next step. Adapters take turns, those that have nothing to compute are passed over."""
        plan, preemptions, self._filling = Plan(), self.preemptions, set()
        for adapter in self._adapters():
            plan.adapter = adapter
            behind = self._decode(plan)
            left = self.max_tokens - sum(count for _, count in plan.chunks)
            calm = preemptions == self.preemptions  # nobody enters while others have to leave
            left = self._prefill(plan, behind, left, calm)
            if calm and left > 0 and self._waiting:
                self._admit(plan, left)
            if plan.chunks or plan.swap_in:
                self._steps += 1
                self._turns[adapter] = self._steps
                break
        return plan

    def computed(self, running: Running, count: int) -> None:
        """So many tokens of a chunk are computed and count (not: rejected drafts). Accepted drafts still stand in `draft` or in `ids`."""
        blocks, table = self.blocks, running.table
        size = blocks.block_size
        full = running.computed // size
        new = running.computed = running.computed + count
        while full < new // size:
            blocks.seal(table, full, self._block(running, full), running.request.options.adapter)
            full += 1
        if len(table) * size >= new + size:  # a block is empty: for known tokens it stays, for rejected drafts it goes
            blocks.trim(table, max(new, running.length))

    def _adapters(self) -> list[str]:
        """Those with something to do, longest unserved first."""
        first = self._waiting.first()
        names = {group.adapter for group in self._groups} | ({first.adapter} if first else set())
        if len(names) > 1:
            self._turns = {name: self._turns.get(name, 0) for name in names}
            return sorted(names, key=lambda name: (self._turns[name], name))
        return list(names)

    def _decode(self, plan: Plan) -> list[Group]:
        """Plans the responses that lack one token, with their drafts. Returns the groups in which others lack more."""
        blocks, adapter, behind = self.blocks, plan.adapter, list[Group]()
        size, references, available = blocks.block_size, blocks.references, blocks.available
        drafts = (self.max_tokens - self._slots) // 2  # the other half is for prompts
        drafts = max(0, min(drafts, (available - 2 * self._slots) * size))
        roomy = available >= self._slots
        for group in list(self._groups):
            if group.adapter != adapter:
                continue
            if group.pending or (group.beams and not group.level):
                behind.append(group)
                if group.beams:
                    continue
            if not roomy and not self._make_room(group, plan):
                continue
            prompt = group.prompt
            for running in group.active:
                computed, table = running.computed, running.table
                missing = prompt + len(running.ids) - computed
                if missing != 1:
                    if missing and (not behind or behind[-1] is not group):
                        behind.append(group)
                    continue
                if running.draft:
                    drafts -= self._cut(running, drafts)
                    missing += len(running.draft)
                index = computed // size
                if index < len(table) and references[table[index]] > 1:
                    plan.copies.append(blocks.own(table, index))
                while len(table) * size < computed + missing:
                    table.append(blocks.take())
                plan.chunks.append((running, missing))
        return behind

    def _cut(self, running: Running, most: int) -> int:
        """Shortens a draft to what the step and the response's limit allow; returns its length."""
        del running.draft[max(0, min(most, running.request.limit - len(running.ids) - 1)) :]
        return len(running.draft)

    def _make_room(self, group: Group, plan: Plan) -> bool:
        """Preempts from the end until a group can take one step (without drafts). False: it was itself preempted."""
        blocks = self.blocks
        while True:
            need, writers = 0, dict[int, int]()
            for running in group.active:
                index = running.computed // blocks.block_size
                if running.length - running.computed != 1:
                    continue
                if index == len(running.table):
                    need += 1
                else:  # all but the last one who writes into a shared block need a copy
                    block = running.table[index]
                    need += blocks.references[block] - writers.get(block, 0) > 1
                    writers[block] = writers.get(block, 0) + 1
            if need <= blocks.available:
                return True
            last = self._groups[-1]
            self._preempt(last, plan)
            if last is group:
                return False

    def _prefill(self, plan: Plan, behind: list[Group], left: int, calm: bool) -> int:
        """Goes on with prompts that have begun and with responses that were preempted. Returns the tokens that are left."""
        for group in behind:
            for running in group.active:  # none when it was preempted meanwhile
                if running.length - running.computed > 1:
                    left = self._chunk(plan, group, running, left)
            if calm:
                left = self._rejoin(plan, group, left)
        return left

    def _rejoin(self, plan: Plan, group: Group, left: int) -> int:
        """Preempted responses of a running group enter again, as there is room. Those that are computed again wait until another
        one has computed what they can share with it."""
        while (
            group.pending and left > 0 and (group.pending[0] in self.host or not group.behind(self.blocks.block_size))
        ):
            running = group.pending[0]
            if not self._enter(running, group, plan, self._slots):
                break
            group.active.append(group.pending.pop(0))
            left = self._chunk(plan, group, running, left)
        return left

    def _admit(self, plan: Plan, left: int) -> None:
        """Starts those who wait, strictly in their order, and those who were preempted before them. While a request has responses
        without blocks nobody else enters: so there is one such request at most, and no two wait for one another."""
        while left > 0 and not any(group.pending for group in self._groups):
            group = self._waiting.first()
            if group is None or group.adapter != plan.adapter:
                return
            slots = self._slots + group.slots
            if slots > self.max_batch or not self._enter(group.pending[0], group, plan, slots):
                return
            self._waiting.pop()
            self._slots = slots
            running = group.pending.pop(0)
            group.active.append(running)
            if group.started == 0:
                self._starts += 1
                group.started = self._starts
                self.blocks.asked_tokens += len(group.request.ids)
                self.blocks.hit_tokens += running.computed
            insort(self._groups, group, key=lambda each: each.rank)
            left = self._rejoin(plan, group, self._chunk(plan, group, running, left))

    def _chunk(self, plan: Plan, group: Group, running: Running, left: int) -> int:
        """Plans the next tokens of a response; its blocks are there. Returns the tokens that are left."""
        running.draft = []  # nothing is tried before the tokens that are known
        missing = running.length - running.computed
        if group.beams and len(group.active) + len(group.pending) > 1:
            missing -= 1  # beams take their last tokens together
        count = min(missing, left)
        if count > 0:
            plan.chunks.append((running, count))
            first = running.computed // self.blocks.block_size
            self._filling.add(self.blocks.key(running.table, first, self._block(running, first), group.adapter))
        return left - count

    def _enter(self, running: Running, group: Group, plan: Plan, slots: int) -> bool:
        """Gives a response blocks for all its tokens, as many as possible with a known prefix. False: there is no room."""
        blocks, size, length = self.blocks, self.blocks.block_size, running.length
        alone = not any(other is not group and other.active for other in self._groups)
        if not alone and self._refused[0] is running and blocks.available <= self._refused[1]:
            return False
        scored = running.request.options.prompt_logps and not running.ids  # then every token of the prompt is computed
        shared = [] if scored else blocks.match(_bytes(running, 0, length), group.adapter)
        known = len(shared)
        following = blocks.key(shared, known, self._block(running, known), group.adapter)
        if following in self._filling and length > (known + 1) * size and not scored and running not in self.host:
            return False  # another one computes it just now: in the next step it need not be computed again
        fresh = blocks.needed(length) - known
        cost = fresh + sum(blocks.references[block] == 0 for block in shared)
        if not alone and cost + slots * blocks.needed(self.ahead) > blocks.available:  # else look closer
            cost += sum(each.growth(blocks, self.ahead) for each in {*self._groups, group})
        if cost > blocks.available:
            self._refused = running, blocks.available
            return False
        blocks.hold(shared)
        running.table = table = shared + [blocks.take() for _ in range(fresh)]
        hosted = self.host.back(running)
        if hosted is not None:
            kept = running.computed
            plan.swap_in.extend(zip(hosted[known:], table[known : blocks.needed(kept)], strict=True))
            for index in range(known, kept // size):
                blocks.seal(table, index, self._block(running, index), group.adapter)
        running.computed = max(running.computed, known * size)
        return True

    def _block(self, running: Running, index: int) -> bytes:
        """The tokens of one of its blocks."""
        size = self.blocks.block_size
        return _bytes(running, index * size, (index + 1) * size)

    # -- preemption --------------------------------------------------------------------------------------------------

    def _preempt(self, group: Group, plan: Plan | None) -> None:
        """Takes all blocks of a group; it goes back to the front of the queue. Without a plan nothing is swapped out."""
        self._groups.remove(group)
        self._slots -= group.slots
        self.preemptions += 1
        size = self.blocks.block_size
        filled = {
            block: min(size, running.computed - index * size)
            for running in group.active
            for index, block in enumerate(running.table[: self.blocks.needed(running.computed)])
        }
        moved, again = 2 * size * len(filled), self.recompute_cost * sum(filled.values())
        if plan is not None and len(filled) <= self.host.blocks.available and moved < again:
            self.swaps += 1
            plan.swap_out.extend(self.host.out(filled, group.active))
        for running in group.active:
            self.blocks.free(running.table)
            running.table, running.draft = [], []
            if running not in self.host:
                running.computed = 0
        group.pending[:0] = group.active
        group.active = []
        self._waiting.put_back(group)

    def _drop(self, running: Running, group: Group) -> None:
        """A response leaves its group with everything it has."""
        self.blocks.free(running.table)
        running.table = []
        self.host.back(running)
        (group.active if running in group.active else group.pending).remove(running)
        del self._group[running]


def _bytes(running: Running, start: int, stop: int) -> bytes:
    """Tokens of prompt, response and draft, as int32."""
    prompt = running.request.ids
    if stop <= len(prompt):
        return prompt[start:stop].tobytes()
    drawn = running.ids if stop <= running.length else running.ids + running.draft
    if start >= len(prompt):
        return array("i", drawn[start - len(prompt) : stop - len(prompt)]).tobytes()
    return prompt[start:].tobytes() + array("i", drawn[: stop - len(prompt)]).tobytes()
