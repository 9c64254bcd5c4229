"""The simulated annotator follows Bradley-Terry, and gives nothing away but the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from trueline.align.annotator import pairs_by_bradley_terry, preference, rankings_by_plackett_luce
from trueline.align.group import Group
from trueline.records import Counts, Ranking

Make = Callable[..., Group]


def test_preference_by_hand() -> None:
    assert preference(np.log(3), 1.0) == pytest.approx(0.75) and preference(2.0, 4.0) == pytest.approx(
        1 / (1 + np.exp(-0.5))
    )
    assert preference([1.0, 0.0, -1.0], 0).tolist() == [1, 0.5, 0]
    assert preference(-1e6, 1.0) == 0
    with pytest.raises(ValueError, match="noise must be at least 0"):
        preference(1.0, -1.0)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_choices_are_as_noisy_as_stated(make_group: Make, noise: float) -> None:
    groups = [make_group([0.0, 1.0], f"p{i}") for i in range(2000)]
    pairs = pairs_by_bradley_terry(groups, noise, seed=0)
    right = np.mean([pair.responses[0][0].content == "r1" for pair in pairs])
    expected = 1 / (1 + np.exp(-1 / noise))
    assert abs(right - expected) < 3 * np.sqrt(expected * (1 - expected) / 2000)
    assert all(pair.judgement == Ranking((1, 2)) for pair in pairs)
    assert pairs[0].annotator == f"bradley-terry(noise={noise:g})"


def test_a_perfect_annotator_errs_only_on_ties(make_group: Make) -> None:
    groups = [make_group([0.0, 1.0, 1.0], f"p{i}") for i in range(300)]
    pairs = pairs_by_bradley_terry(groups, 0, seed=0, pairs=3)
    seen = [(pair.responses[0][0].content, pair.responses[1][0].content) for pair in pairs]
    assert len(seen) == 900 and set(seen) == {("r1", "r0"), ("r2", "r0"), ("r1", "r2"), ("r2", "r1")}
    assert abs(seen.count(("r1", "r2")) - 150) < 45


def test_equal_texts_are_no_pair(make_group: Make) -> None:
    group = make_group([0.0, 1.0, 2.0], texts=["same", "same", "other"])
    pairs = pairs_by_bradley_terry([group], 1.0, seed=0, pairs=9)
    assert len(pairs) == 2 and all(len({r[0].content for r in pair.responses}) == 2 for pair in pairs)
    assert pairs_by_bradley_terry([make_group([0.0, 1.0], texts=["x", "x"])], 1.0, seed=0) == []


def test_exact_judgements_carry_both_probabilities(make_group: Make) -> None:
    pairs = pairs_by_bradley_terry([make_group([0.0, 1.0], f"p{i}") for i in range(50)], 1.0, seed=0, exact=True)
    p = 1 / (1 + np.exp(-1))
    firsts = set()
    for pair in pairs:
        assert isinstance(pair.judgement, Counts)
        first = pair.responses[0][0].content
        firsts.add(first)
        assert pair.judgement.counts == pytest.approx((p, 1 - p) if first == "r1" else (1 - p, p))
    assert firsts == {"r0", "r1"}


def test_the_order_of_groups_does_not_matter(make_group: Make) -> None:
    groups = [make_group([0.0, 1.0, 0.5], name) for name in "abcdefgh"]
    one = {p.prompt: p for p in pairs_by_bradley_terry(groups, 1.0, seed=3)}
    other = {p.prompt: p for p in pairs_by_bradley_terry(groups[::-1], 1.0, seed=3)}
    assert one == other
    assert one != {p.prompt: p for p in pairs_by_bradley_terry(groups, 1.0, seed=4)}


def test_rankings_agree_with_bradley_terry_on_every_pair(make_group: Make) -> None:
    """Plackett-Luce: within a ranking of three, each pair is ordered with Bradley-Terry's probability."""
    scores = [0.0, 1.0, 0.4]
    groups = [make_group(scores, f"p{i}") for i in range(1500)]
    ranked = rankings_by_plackett_luce(groups, 0.7, seed=0)
    orders = [[int(r[0].content[1]) for r in record.responses] for record in ranked]
    for a, b in ((1, 0), (1, 2), (2, 0)):
        share = np.mean([order.index(a) < order.index(b) for order in orders])
        assert share == pytest.approx(float(preference(scores[a] - scores[b], 0.7)), abs=0.04)
    assert ranked[0].judgement == Ranking((1, 2, 3))
    assert (
        len(rankings_by_plackett_luce([make_group([0.0, 1.0, 2.0], texts=["x", "x", "y"])], 1.0, seed=0)[0].responses)
        == 2
    )


def test_refusals(make_group: Make) -> None:
    with pytest.raises(ValueError, match="has no scores"):
        pairs_by_bradley_terry([replace(make_group([1.0, 2.0]), scores=())], 1.0, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        pairs_by_bradley_terry([make_group([1.0, 2.0])], 1.0, seed=0, pairs=0)
