"""Prior and picks to shares: hand numbers, limits, and rows pooled by response."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.align.posterior import pooled, posterior, smoothed
from trueline.records import Message, Rating

PRIOR = (0.05, 0.05, 0.1, 0.1, 0.4, 0.3)  # worst first
PICKS = (0, 1, 0, 1, 2, 6)
WORTH = np.array([-3, -1.5, -1, -1, 0.5, 1])


def test_the_posterior_of_the_sheet() -> None:
    """c = 4: the expected utility goes from 0.075 to 0.343."""
    alpha = posterior(PICKS, PRIOR, strength=4)
    shares = alpha / alpha.sum()
    np.testing.assert_allclose(shares[::-1], (0.514, 0.257, 0.1, 0.029, 0.086, 0.014), atol=5e-4)
    assert np.dot(PRIOR, WORTH) == pytest.approx(0.075) and shares @ WORTH == pytest.approx(0.343, abs=5e-4)


def test_the_prior_weighs_c_of_n_plus_c() -> None:
    prior, truth = np.array([0.9, 0.1]), np.array([0.2, 0.8])
    for n in (0, 4, 12, 400):
        alpha = posterior(n * truth, prior, strength=4)
        np.testing.assert_allclose(alpha / alpha.sum(), (n * truth + 4 * prior) / (n + 4))
        first = alpha[0] / (alpha[0] + (alpha.sum() - alpha[0]))  # Beta(alpha_i, sum - alpha_i)
        assert first == pytest.approx((4 * 0.9 + n * 0.2) / (4 + n))
    np.testing.assert_allclose(posterior(PICKS), PICKS)


def test_smoothing_moves_to_the_neighbours_and_keeps_the_sum() -> None:
    np.testing.assert_allclose(smoothed([0, 1, 0], 0.2), [0.1, 0.8, 0.1])
    np.testing.assert_allclose(smoothed([1, 0, 0], 0.2), [0.8, 0.2, 0])
    np.testing.assert_allclose(smoothed([0, 1, 0], 0.2, [0.3, 0.6, 0.1]), [0.15, 0.8, 0.05])
    np.testing.assert_allclose(smoothed([0, 1, 0], 0.2, [0, 1, 0]), [0.1, 0.8, 0.1])  # no neighbour has a prior
    assert smoothed(PICKS, 0.1).sum() == pytest.approx(10)


def rating(response: str, annotator: str = "", **judged: object) -> Rating:
    said = Message(role="text", content="q"), Message(role="text", content=response)
    return Rating(prompt=said[:1], response=said[1:], annotator=annotator, source="f:1", **judged)  # type: ignore[arg-type]


def test_ratings_of_one_response_are_pooled() -> None:
    rows = [rating("a", "ann", score=1.0), rating("b", "ann", score=3.0), rating("a", "bob", score=3.0)]
    rows += [rating("a", "model", counts=(0.0, 0.5, 0.5)), rating("c", "model", counts=(1.0, 0.0, 0.0))]
    found = pooled(rows, (1, 2, 3), judge="model", strength=2)
    assert [one.counts for one in found] == [(1, 1, 2), (0, 0, 1), (2, 0, 0)]  # what the judge alone saw is the prior
    assert {one.response[0].content for one in found} == {"a", "b", "c"}
    labels = pooled([rating("a", label=True), rating("a", label=False), rating("a", label=True)])
    assert labels[0].counts == (1, 2)
    with pytest.raises(ValueError, match=r"score 2\.5, and the categories are 1, 2, 3"):
        pooled([rating("a", score=2.5)], (1, 2, 3))
    with pytest.raises(ValueError, match="no rating is by the annotator 'model'"):
        pooled(rows[:2], (1, 2, 3), judge="model")
    with pytest.raises(ValueError, match="another number"):
        pooled([rating("a", counts=(1.0, 0.0)), rating("b", counts=(1.0, 0.0, 0.0))])


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: posterior([1, -1]), "at least 0"), (lambda: posterior([1, 1], [1.0]), "one share for each"),
     (lambda: posterior([1, 1], [1, 0], strength=-1), "strength"), (lambda: smoothed([1], 1.0), "smoothing")],
)  # fmt: skip
def test_nonsense_is_refused(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]
