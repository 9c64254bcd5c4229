"""Who is next: the requests that have not started, and those that were preempted. No torch.

    priority 1:  preempted [g3]     clients {"ann": [g7, g9], "bob": [g8]}     g3, g7, g8, g9
    priority 0:  preempted []       clients {"": [g4, g5]}                     then g4, g5

Within a priority, the preempted come first in the order in which they had started, then clients take turns, and each client's
requests are first come, first served. A lower priority is passed over at most `patience` times in a row; then its next one goes
first, and counts as urgent as those it waited for until it ends. So nobody waits for ever.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from trueline.serve.group import Group


class Full(ValueError):
    """The queue is full: try again later."""


@dataclass
class _Level:
    """The groups of one priority."""

    preempted: list[Group] = field(default_factory=list)
    clients: dict[str, deque[Group]] = field(default_factory=dict)
    """The client whose turn it is comes first."""
    passed: int = 0
    """How often somebody of a higher priority was taken since one of this."""


class Waiting:
    """The queue."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.new = 0
        """Groups that never started."""
        self._levels: dict[int, _Level] = {}  # none of them empty

    def __bool__(self) -> bool:
        return bool(self._levels)

    def groups(self) -> list[Group]:
        """All of them, in no particular order."""
        return [
            group for level in self._levels.values() for queue in (level.preempted, *level.clients.values()) for group in queue
        ]  # fmt: skip

    def add(self, group: Group) -> None:
        """A new one, at the end of its client's queue."""
        level = self._levels.setdefault(group.priority, _Level())
        level.clients.setdefault(group.request.options.client, deque()).append(group)
        self.new += 1

    def put_back(self, group: Group) -> None:
        """A preempted one, at the front."""
        insort(self._levels.setdefault(group.priority, _Level()).preempted, group, key=lambda each: each.started)

    def first(self) -> Group | None:
        """Who is next; it stays."""
        if not self._levels:
            return None
        level = self._levels[self._turn()]
        return level.preempted[0] if level.preempted else next(iter(level.clients.values()))[0]

    def pop(self) -> Group:
        """Takes out who is next."""
        priority, top = self._turn(), max(self._levels)
        level = self._levels[priority]
        if level.preempted:
            group = level.preempted.pop(0)
        else:
            client = next(iter(level.clients))
            queue = level.clients.pop(client)
            group = queue.popleft()
            if queue:
                level.clients[client] = queue
            self.new -= 1
        for other, below in self._levels.items():
            below.passed += other < priority
        level.passed = 0
        group.priority = top
        self._tidy()
        return group

    def remove(self, request_id: int) -> list[Group]:
        """Takes out all groups of a request."""
        found = [group for group in self.groups() if group.request.id == request_id]
        for level in self._levels.values() if found else ():
            level.preempted = [group for group in level.preempted if group not in found]
            level.clients = {
                client: kept
                for client, queue in level.clients.items()
                if (kept := deque(group for group in queue if group not in found))
            }
        self.new -= sum(group.started == 0 for group in found)
        self._tidy()
        return found

    def _turn(self) -> int:
        """The priority that is next: the highest, unless a lower one was passed over too often."""
        late = [priority for priority, level in self._levels.items() if level.passed >= self.patience]
        return min(late) if late else max(self._levels)

    def _tidy(self) -> None:
        self._levels = {p: level for p, level in self._levels.items() if level.preempted or level.clients}
