"""The blocks of the paged cache: who holds which, which are free, and which hold a prefix that somebody may ask for. No torch.

    table of a response: [7, 2, 9]      token t lies in block table[t // size], at place t % size
    references:  7: 3, 2: 3, 9: 1       tables that name the block; blocks 7 and 2 are shared
    free:        blank [5, 1], cached [4, 8]      blank ones are taken first, then the cached one that was freed first

A full block is sealed: it gets the number of the prefix that ends with it, under the key (number of the prefix before, its token
ids). The dictionary of these keys is the hash chain of automatic prefix caching; since a key holds the ids themselves, a hit
compares them, and since numbers are never given twice, a hit is exact. The first key holds the adapter's number instead.
A freed table is given back from its end, so that tails are overwritten before the prefixes that lead to them.
Source: Kwon et al., 2309.06180, section 4. Left out: what lies in the blocks (the cache), who runs (the scheduler).
"""

from __future__ import annotations

from collections.abc import Sequence


class Blocks:
    """`num_blocks` blocks of `block_size` tokens, numbered from 0."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 0 or block_size < 1:
            raise ValueError(f"a cache needs blocks of at least 1 token, got {num_blocks} blocks of {block_size}")
        self.num_blocks, self.block_size = 0, block_size
        self.references: list[int] = []
        """How many tables name each block. Read only."""
        self.asked_tokens = 0
        """Prompt tokens that were looked up."""
        self.hit_tokens = 0
        """Of these, the ones that need not be computed."""
        self._blank: list[int] = []
        self._cached: dict[int, None] = {}  # free and sealed, in the order in which they were freed
        self._number: list[int] = []  # of the prefix that ends with the block; 0: not full, or not known
        self._key: list[tuple[int, bytes] | None] = []  # under which the block is found
        self._found: dict[tuple[int, bytes], int] = {}
        self._roots: dict[str, int] = {}
        self._last = 0
        self.grow(num_blocks)

    def grow(self, num_blocks: int) -> None:
        """More blocks, blank ones; they are taken after those that are blank now."""
        more = range(self.num_blocks, num_blocks)
        self._blank[:0] = reversed(more)
        self.references.extend(0 for _ in more)
        self._number.extend(0 for _ in more)
        self._key.extend(None for _ in more)
        self.num_blocks += len(more)

    # -- counting ----------------------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Blocks that `take` can give, the cached ones too."""
        return len(self._blank) + len(self._cached)

    @property
    def used(self) -> int:
        """Blocks in tables."""
        return self.num_blocks - self.available

    @property
    def cached(self) -> int:
        """Blocks in no table that hold a prefix."""
        return len(self._cached)

    def needed(self, tokens: int) -> int:
        """Blocks for so many tokens."""
        return -(-tokens // self.block_size)

    # -- taking and giving back --------------------------------------------------------------------------------------

    def take(self) -> int:
        """A block for one table. When only cached ones are left, the one freed first is forgotten."""
        if self._blank:
            block = self._blank.pop()
        else:
            assert self._cached, "no block is free: ask `available` first"
            block = next(iter(self._cached))
            del self._cached[block]
            self._forget(block)
        self.references[block] = 1
        return block

    def hold(self, blocks: Sequence[int]) -> None:
        """One more table names these blocks; they may be cached ones."""
        for block in blocks:
            if self.references[block] == 0:
                del self._cached[block]
            self.references[block] += 1

    def free(self, table: Sequence[int]) -> None:
        """One table less names these blocks."""
        for block in reversed(table):
            references = self.references[block] = self.references[block] - 1
            assert references >= 0, f"block {block} was given back twice"
            if references == 0:
                if self._key[block] is not None:
                    self._cached[block] = None
                else:
                    self._number[block] = 0
                    self._blank.append(block)

    def trim(self, table: list[int], tokens: int) -> None:
        """Gives back the blocks of a table behind its first `tokens` tokens."""
        keep = self.needed(tokens)
        if len(table) > keep:
            self.free(table[keep:])
            del table[keep:]

    def fork(self, table: Sequence[int], tokens: int) -> list[int]:
        """A second table over the first `tokens` tokens of one. A block that is not full is copied when one of them writes it."""
        shared = list(table[: self.needed(tokens)])
        self.hold(shared)
        return shared

    def own(self, table: list[int], index: int) -> tuple[int, int]:
        """Replaces a shared block of a table by its own: the (source, target) that must be copied before it is written."""
        source = table[index]
        assert self.references[source] > 1 and self._number[source] == 0
        target = table[index] = self.take()
        self.references[source] -= 1
        return source, target

    # -- prefixes ----------------------------------------------------------------------------------------------------

    def match(self, ids: bytes, salt: str) -> list[int]:
        """Blocks that hold the longest known prefix of some tokens (int32 as bytes), at least one token left out."""
        width = 4 * self.block_size
        number, found = self._root(salt), []
        for start in range(0, len(ids) - width, width):  # a block that ends with the last token is not asked for
            block = self._found.get((number, ids[start : start + width]))
            if block is None:
                break
            found.append(block)
            number = self._number[block]
        return found

    def key(self, table: Sequence[int], index: int, ids: bytes, salt: str) -> tuple[int, bytes]:
        """Under which block `index` of a table is found once it is sealed; those before it are."""
        return self._number[table[index - 1]] if index else self._root(salt), ids

    def seal(self, table: Sequence[int], index: int, ids: bytes, salt: str) -> None:
        """Block `index` of a table is full of these tokens: others may share it from now on."""
        block = table[index]
        key = self.key(table, index, ids, salt)
        assert key[0] and self._number[block] == 0 and len(ids) == 4 * self.block_size
        known = self._found.get(key)
        if known is not None:  # computed twice at the same time: the first one stays the one to find
            self._number[block] = self._number[known]
            return
        self._last += 1
        self._number[block], self._key[block], self._found[key] = self._last, key, block

    def reset(self) -> None:
        """Forgets all prefixes (the weights have changed). No table may be left."""
        assert self.used == 0, "blocks are in use: free their tables first"
        for block in list(self._cached):
            self._forget(block)
            self._blank.append(block)
        self._cached.clear()
        self._roots.clear()

    def _root(self, salt: str) -> int:
        number = self._roots.get(salt)
        if number is None:
            self._last += 1
            number = self._roots[salt] = self._last
        return number

    def _forget(self, block: int) -> None:
        key = self._key[block]
        assert key is not None
        del self._found[key]
        self._key[block], self._number[block] = None, 0
