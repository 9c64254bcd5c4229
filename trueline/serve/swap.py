"""The host pool: where the blocks of preempted responses wait. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trueline.serve.blocks import Blocks
from trueline.serve.request import Running


class Swap:
    """`num_blocks` blocks on the host, and which of them hold whose tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.blocks = Blocks(num_blocks, block_size)
        self._tables: dict[Running, list[int]] = {}  # host blocks of a response's first `computed` tokens

    def __contains__(self, running: Running) -> bool:
        return running in self._tables

    def out(self, blocks: Collection[int], runnings: Sequence[Running]) -> list[tuple[int, int]]:
        """Keeps these blocks, in which the tokens of the responses lie, each once: the (block, host block) to copy."""
        host = {block: self.blocks.take() for block in blocks}
        for running in runnings:
            filled = self.blocks.needed(running.computed)
            self._tables[running] = [host[block] for block in running.table[:filled]]
            self.blocks.hold(self._tables[running])
        self.blocks.free(list(host.values()))  # the tables hold them
        return list(host.items())

    def back(self, running: Running) -> list[int] | None:
        """The host blocks of a response, which are free from the next step on; None when it was not swapped out."""
        table = self._tables.pop(running, None)
        if table is not None:
            self.blocks.free(table)
        return table

    def clear(self) -> list[Running]:
        """Forgets everything; returns whose it was."""
        lost = list(self._tables)
        for running in lost:
            self.back(running)
        return lost
