"""A request on its way through the scheduler, with those of its responses that have begun. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from trueline.serve.blocks import Blocks
from trueline.serve.request import Request, Running


@dataclass(eq=False)
class Group:
    """A request with its responses: they start, wait and are preempted together."""

    request: Request
    priority: int
    slots: int
    """Places in the batch that it takes while it runs."""
    started: int = 0
    """Counts the starts; a preempted one keeps its number. 0: not yet."""
    active: list[Running] = field(default_factory=list)
    """Responses with blocks."""
    pending: list[Running] = field(default_factory=list)
    """Responses that were preempted and have no blocks (yet)."""

    adapter: str = field(init=False)
    beams: int = field(init=False)
    prompt: int = field(init=False)
    """Tokens of its prompt."""

    def __post_init__(self) -> None:
        options = self.request.options
        self.adapter, self.beams, self.prompt = (
            options.adapter,
            options.beams,
            len(self.request.ids),
        )  # asked in every step

    @property
    def rank(self) -> tuple[int, int]:
        """Running groups are served in this order, and preempted from its end."""
        return -self.priority, self.started

    @property
    def level(self) -> bool:
        """Whether all beams stand before their newest token."""
        return not self.pending and len({running.length - running.computed for running in self.active}) == 1

    def behind(self, block_size: int) -> bool:
        """Whether the prompt's full blocks, or for beams any known token, are still being computed."""
        if self.beams:
            return any(running.length - running.computed > 1 for running in self.active)
        prompt = self.prompt // block_size * block_size
        return any(running.computed < prompt for running in self.active)

    def growth(self, blocks: Blocks, ahead: int) -> int:
        """Blocks that its responses can still need for the next `ahead` tokens."""
        most = self.prompt + self.request.limit - 1
        found = 0
        for running in self.active or self.pending[:1]:
            last = blocks.needed(min(running.length + ahead, most))
            found += last - blocks.needed(running.length)
            found += len(running.siblings) * (last - self.prompt // blocks.block_size)
        return found
