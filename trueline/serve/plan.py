"""What the scheduler answers: one step of the engine. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from trueline.serve.request import Running


@dataclass
class Plan:
    """One step. To be carried out in the order swap_out, copies, swap_in, forward over `chunks`, also when there are no chunks."""

    chunks: list[tuple[Running, int]] = field(default_factory=list)
    """(running, count): compute `count` tokens of prompt, ids and draft from `running.computed` on. The last of them
    predicts a new token when nothing is left to compute: computed + count == length + len(draft)."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """(source, target) block. No target is named twice, none is a source: all at once or one by one is the same."""
    swap_out: list[tuple[int, int]] = field(default_factory=list)
    """(block, host block)."""
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    """(host block, block)."""
    adapter: str = ""
    """Whose step it is: one adapter per step."""
