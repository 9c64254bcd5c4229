"""Order, position and held-out rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from trueline.records import Row
from trueline.train.feed import StoredFeed, hold_out, prompt_of

Rows = Callable[..., list[Row]]


def keys(rounds: list[list[Row]]) -> list[str]:
    return [row.key for rows in rounds for row in rows]


def test_every_row_once_per_epoch_in_another_order(text_rows: Rows) -> None:
    rounds = list(StoredFeed(text_rows(10), rows_per_step=4, seed=1, limit=25))
    assert [len(rows) for rows in rounds] == [4, 4, 4, 4, 4, 4, 1]  # steps run over the ends of epochs
    given = keys(rounds)
    assert set(Counter(given[:10]).values()) == set(Counter(given[10:20]).values()) == {1}
    assert given[:10] != given[10:20]
    assert given == keys(list(StoredFeed(text_rows(10), 4, 1, 25)))
    assert given != keys(list(StoredFeed(text_rows(10), 4, 2, 25)))


def test_a_position_goes_on_in_another_process(text_rows: Rows) -> None:
    feed = StoredFeed(text_rows(10), 4, 1, 30)
    rounds = iter(feed)
    first = [next(rounds) for _ in range(3)]
    assert feed.epoch == pytest.approx(1.2)
    later = StoredFeed(text_rows(10), 4, 1, 30)
    later.load(json.loads(json.dumps(feed.state())))
    assert keys(first) + keys(list(later)) == keys(list(StoredFeed(text_rows(10), 4, 1, 30)))


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        StoredFeed([], 4, 1)


def test_a_prompt_is_never_split(pair_rows: Rows) -> None:
    rows = pair_rows(60)
    same = [
        replace(row, ids=(row.ids[1], row.ids[0]), scored=(row.scored[1], row.scored[0]), key="again") for row in rows
    ]
    train, held = hold_out(rows + same, 0.3)
    assert {prompt_of(row) for row in train}.isdisjoint(prompt_of(row) for row in held)
    assert len(train) + len(held) == 120 and 12 <= len(held) <= 60
    more_train, more_held = hold_out([*rows, *same, *pair_rows(40, seed=9)], 0.3)
    assert {row.ids[0].tobytes() for row in held} <= {
        row.ids[0].tobytes() for row in more_held
    }  # new data moves no old row
    assert len(more_train) > len(train)


def test_an_empty_share_is_an_error(text_rows: Rows) -> None:
    with pytest.raises(ValueError, match="eval_share 1e-06 of 5 rows leaves 5 to train on and 0"):
        hold_out(text_rows(5), 1e-6)
