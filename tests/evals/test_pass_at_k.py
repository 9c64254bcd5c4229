"""pass@k against hand-counted sets and against its definition."""

from __future__ import annotations

from itertools import combinations

import pytest

from trueline.evals.pass_at_k import mean_pass_at_k, pass_at_k


def test_by_hand() -> None:
    """4 responses, 1 right: 3 of the 6 pairs hold it."""
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(4, 1, 1) == pytest.approx(0.25) and pass_at_k(4, 1, 4) == 1
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    assert pass_at_k(3, 0, 3) == 0 and pass_at_k(3, 3, 1) == 1


def test_it_is_the_share_of_sets_with_a_right_one() -> None:
    for n, c, k in ((6, 2, 3), (7, 1, 4), (5, 4, 2), (8, 3, 6)):
        sets = list(combinations(range(n), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(min(chosen) < c for chosen in sets) / len(sets))


def test_the_mean_is_over_prompts() -> None:
    """Prompts with more responses do not weigh more."""
    found = mean_pass_at_k([[1, 0, 0, 0], [0, 0], [1, 1, 1]], 2)
    assert found.estimate == pytest.approx((0.5 + 0 + 1) / 3) and found.n == 3 and found.low < found.estimate < found.high
    none = mean_pass_at_k([[0, 0]] * 50, 2)
    assert none.estimate == 0 == none.low and 0.01 < none.high < 0.1  # fifty failures do not prove that it never works


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_what_cannot_be_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="k must lie between 1"):
        pass_at_k(n, c, k)
