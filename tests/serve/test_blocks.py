"""Blocks: who holds them, in which order they are used again, and which prefixes are found in them."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trueline.serve.blocks import Blocks


def packed(ids: list[int] | range) -> bytes:
    return array("i", ids).tobytes()


def filled(blocks: Blocks, ids: list[int] | range, salt: str = "") -> list[int]:
    """A table with these tokens, its full blocks sealed."""
    size = blocks.block_size
    table = [blocks.take() for _ in range(blocks.needed(len(ids)))]
    for index in range(len(ids) // size):
        blocks.seal(table, index, packed(ids[index * size : (index + 1) * size]), salt)
    return table


def test_blank_blocks_first_then_the_tail_of_what_was_freed_first() -> None:
    blocks = Blocks(6, 2)
    first, second = filled(blocks, range(4)), filled(blocks, range(10, 15))
    blocks.free(first)
    blocks.free(second)
    assert blocks.available == 6 and blocks.cached == 4
    order = [blocks.take() for _ in range(6)]
    assert set(order[:2]) == {5, second[2]}  # the sixth, and the one that was never full
    assert order[2:] == [first[1], first[0], second[1], second[0]]


def test_what_is_found_again_is_used_last() -> None:
    blocks = Blocks(4, 2)
    first, second = filled(blocks, range(4)), filled(blocks, range(10, 14))
    blocks.free(first)
    blocks.free(second)
    again = blocks.match(packed([*range(4), 9]), "")
    assert again == first
    blocks.hold(again)
    assert blocks.cached == 2 and blocks.used == 2
    blocks.free(again)
    assert [blocks.take() for _ in range(4)] == [second[1], second[0], first[1], first[0]]
    assert blocks.match(packed(range(5)), "") == []  # what is overwritten is not found


def test_a_hit_is_full_equal_and_leaves_a_token() -> None:
    blocks = Blocks(20, 4)
    table = filled(blocks, range(10))
    assert blocks.match(packed(range(13)), "") == table[:2]  # the third block is being filled
    assert blocks.match(packed(range(9)), "") == table[:2] and blocks.match(packed(range(8)), "") == table[:1]
    assert blocks.match(packed(range(4)), "") == [] and blocks.match(packed(range(5)), "") == table[:1]
    assert blocks.match(packed([0, 1, 2, 3, 4, 5, 6, 8, 9]), "") == table[:1]
    assert blocks.match(packed([9, *range(1, 10)]), "") == []  # equal blocks behind another beginning
    assert blocks.match(packed(range(4, 10)), "") == []  # and at another place
    assert blocks.match(packed(range(10)), "adapter") == []
    other = filled(blocks, range(10), "adapter")
    assert blocks.match(packed(range(10)), "adapter") == other[:2] and blocks.match(packed(range(10)), "") == table[:2]


def test_the_same_computed_twice_is_found_once() -> None:
    blocks = Blocks(8, 2)
    first, second = filled(blocks, range(4)), filled(blocks, range(6))
    assert blocks.match(packed(range(7)), "") == [*first, second[2]]
    blocks.free(second)
    assert blocks.cached == 1  # the copies are blank
    blocks.free(first)
    assert blocks.cached == 3


def test_copies_and_trims() -> None:
    blocks = Blocks(8, 4)
    table = filled(blocks, range(6))
    other = blocks.fork(table, 6)
    assert other == table and blocks.used == 2
    assert blocks.own(other, 1) == (table[1], other[1]) and other[0] == table[0] and other[1] != table[1]
    with pytest.raises(AssertionError):
        blocks.own(other, 1)  # nobody shares it any more
    other += [blocks.take(), blocks.take()]
    blocks.trim(other, 9)
    assert len(other) == 3
    blocks.trim(other, 8)
    assert len(other) == 2 and blocks.used == 3
    blocks.free(other)
    blocks.free(table)
    with pytest.raises(AssertionError, match="given back twice"):
        blocks.free(table)


def test_growing_and_forgetting() -> None:
    blocks = Blocks(0, 2)
    assert blocks.available == 0
    blocks.grow(3)
    table = filled(blocks, range(4))
    blocks.grow(5)
    assert blocks.available == 3 and blocks.match(packed(range(5)), "") == table
    with pytest.raises(AssertionError, match="in use"):
        blocks.reset()
    blocks.free(table)
    blocks.reset()
    assert blocks.match(packed(range(5)), "") == [] and blocks.available == 5 and blocks.cached == 0
    with pytest.raises(ValueError, match="blocks of at least 1 token"):
        Blocks(4, 0)


class Tables(RuleBasedStateMachine):
    """Tables grow, fork, are copied on writing, and end; what each block holds is kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.held = Blocks(9, 2), dict[int, list[int]]()
        self.tables: list[tuple[list[int], list[int]]] = []  # (table, tokens)

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=7))
    def begin(self, ids: list[int]) -> None:
        found = self.blocks.match(packed(ids), "")
        self.blocks.hold(found)
        table = (list(found), ids[: 2 * len(found)])
        assert table[1] == [token for block in found for token in self.held[block]] and len(table[1]) < len(ids)
        self.tables.append(table)
        for token in ids[len(table[1]) :]:
            self.append(table, token)

    def append(self, table: tuple[list[int], list[int]], token: int) -> None:
        blocks, tokens = table
        if self.blocks.available == 0:
            return
        index = len(tokens) // 2
        if index == len(blocks):
            blocks.append(self.blocks.take())
            self.held[blocks[-1]] = []
        elif self.blocks.references[blocks[index]] > 1:
            source, target = self.blocks.own(blocks, index)
            self.held[target] = list(self.held[source])
        assert self.blocks.references[blocks[index]] == 1
        self.held[blocks[index]].append(token)
        tokens.append(token)
        if len(tokens) % 2 == 0:
            self.blocks.seal(blocks, index, packed(tokens[-2:]), "")

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99), token=st.integers(0, 1))
    def go_on(self, which: int, token: int) -> None:
        self.append(self.tables[which % len(self.tables)], token)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99))
    def fork(self, which: int) -> None:
        table, tokens = self.tables[which % len(self.tables)]
        self.tables.append((self.blocks.fork(table, len(tokens)), list(tokens)))

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99))
    def end(self, which: int) -> None:
        self.blocks.free(self.tables.pop(which % len(self.tables))[0])

    @precondition(lambda self: not self.tables)
    @rule()
    def forget(self) -> None:
        self.blocks.reset()

    @invariant()
    def consistent(self) -> None:
        named = Counter(block for table, _ in self.tables for block in table)
        assert [named[block] for block in range(9)] == self.blocks.references
        assert self.blocks.used == len(named)
        for table, tokens in self.tables:
            assert [token for block in table for token in self.held[block]] == tokens


TestTables = Tables.TestCase
TestTables.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
