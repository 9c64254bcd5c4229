"""Selection: what is picked, how ties go, and that the order of groups does not matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from trueline.align.group import Group
from trueline.align.select import (
    all_responses,
    best_of_n,
    best_vs_worst,
    comparisons,
    conversations,
    main_vs_enhancer,
    picks,
    rows,
)
from trueline.records import Ranking

Make = Callable[..., Group]


def test_picks(make_group: Make) -> None:
    group = make_group([1.0, 3.0, -2.0])
    assert [p for _, p in picks([group], all_responses)] == [(0,), (1,), (2,)]
    assert [p for _, p in picks([group], best_of_n)] == [(1,)]
    assert [p for _, p in picks([group], partial(best_of_n, n=1))] == [(0,)]
    assert [p for _, p in picks([group], best_vs_worst)] == [(1, 2)]
    assert picks([group], partial(best_vs_worst, margin=5.0)) == []
    assert picks([make_group([1.0, 1.0])], best_vs_worst) == [] == picks([make_group([1.0])], best_vs_worst)


def test_ties_go_by_seed_not_by_position(make_group: Make) -> None:
    group = make_group([2.0, 0.0, 2.0, 0.0, 2.0])
    best = Counter(picks([group], best_of_n, seed)[0][1][0] for seed in range(600))
    assert set(best) == {0, 2, 4} and min(best.values()) > 150
    pairs = Counter(picks([group], best_vs_worst, seed)[0][1] for seed in range(600))
    assert set(pairs) == {(a, b) for a in (0, 2, 4) for b in (1, 3)} and min(pairs.values()) > 60
    assert picks([group], best_of_n, 5)[0][1] == picks([group], best_of_n, 5)[0][1]


def test_a_pair_has_one_response_of_each_player(make_group: Make) -> None:
    def taken(scores: list[float], **options: float) -> list[tuple[int, ...]]:
        return [pick for _, pick in picks([make_group(scores)], partial(main_vs_enhancer, **options))]

    assert taken([1.0, 9.0, 0.0, 5.0, 3.0]) == [(1, 4)]  # 0 and 9 are furthest apart, but the main policy drew both
    assert taken([1.0, 2.0, 8.0, 3.0]) == [(2, 0)]  # the enhancer's wins
    assert taken([4.0, 1.0]) == [(0, 1)] and taken([1.0, 4.0]) == [(1, 0)]
    assert taken([4.0, 1.0], margin=3.0) == taken([2.0, 2.0]) == taken([2.0]) == []
    ties = Counter(picks([make_group([1.0, 1.0, 0.0, 2.0])], main_vs_enhancer, seed)[0][1] for seed in range(400))
    assert set(ties) == {(0, 2), (1, 2), (3, 0), (3, 1)} and min(ties.values()) > 60


def test_the_order_of_groups_does_not_matter(make_group: Make) -> None:
    groups = [make_group([1.0] * 9, name) for name in "abcdef"]
    one = {g.key: p for g, p in picks(groups, best_of_n)}
    assert {g.key: p for g, p in picks(groups[::-1], best_of_n)} == one
    assert len(set(one.values())) > 1  # prompts do not share their coin


def test_rows_and_records(make_group: Make) -> None:
    group = make_group([1.0, 3.0, -2.0])
    (row,) = rows([group], best_vs_worst)
    assert [ids[2] for ids in row.ids] == [1, 2] and row.numbers["reward"].tolist() == [3, -2]
    (pair,) = comparisons([group], best_vs_worst, source="round 1")
    assert pair.judgement == Ranking((1, 2)) and pair.source == "round 1"
    assert [r[0].content for r in pair.responses] == ["r1", "r2"]
    (best,) = conversations([group], best_of_n)
    assert [m.content for m in best.messages] == ["p", "r1"]
    assert comparisons([group], best_of_n) == [] and len(rows([group], all_responses)) == 3


def test_refusals(make_group: Make) -> None:
    with pytest.raises(ValueError, match="has no scores"):
        picks([replace(make_group([1.0]), scores=())], best_of_n)
    with pytest.raises(ValueError, match="asks for 3 responses"):
        picks([make_group([1.0])], partial(best_of_n, n=3))
