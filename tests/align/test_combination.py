"""Reward models added up: what people write, centres, and what is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from trueline.align.combination import WeightedJudge, WeightedScorer, called, centres_of, parts_of
from trueline.align.judges import RuleJudge
from trueline.records import TEXT, Message, Row

ROWS = [Row(ids=(np.array([1, 2]), np.array([1, 3])), scored=(np.array([False, True]),) * 2)]


@dataclass
class Fixed:
    values: tuple[float, ...]
    fingerprint: str

    def score(self, rows: object) -> list[np.ndarray]:
        return [np.array(self.values, dtype=np.float32)]


def test_what_people_write() -> None:
    assert parts_of("runs/a=0.7, runs/b=-0.3") == (("runs/a", 0.7), ("runs/b", -0.3))
    assert parts_of("runs/a") == parts_of("runs/a,b") == parts_of("runs/lr=0.1") == parts_of("a=x,b=1") == ()
    assert called(parts_of("helpful=0.7,harmless=0.3")) == "0.7 helpful + 0.3 harmless"
    with pytest.raises(ValueError, match="twice"):
        parts_of("a=1,a=2")
    with pytest.raises(ValueError, match="not 0"):
        parts_of("a=1,b=0")


def test_the_weighted_sum_of_centred_scores() -> None:
    one, two = Fixed((1.0, 3.0), "x"), Fixed((10.0, 4.0), "y")
    centres = centres_of((one, two), ROWS)
    assert centres == (2.0, 7.0)
    parts = parts_of("one=0.5,two=2")
    found = WeightedScorer(parts, (one, two), centres)
    np.testing.assert_allclose(found.score(ROWS), [[0.5 * -1 + 2 * 3, 0.5 * 1 + 2 * -3]])
    plain = WeightedScorer(parts, (one, two))
    np.testing.assert_allclose(plain.score(ROWS), [[20.5, 9.5]])
    swapped = WeightedScorer(parts, (two, one))
    assert len({found.fingerprint, plain.fingerprint, swapped.fingerprint}) == 3 and found.name == "0.5 one + 2 two"


def test_judges_add_up_too() -> None:
    prompt, responses = (Message(role=TEXT, content="q"),), [(Message(role=TEXT, content=text),) for text in ("aa", "b!")]
    long = RuleJudge(lambda prompt, response: len(response[0].content.strip("!")), "long")
    loud = RuleJudge(lambda prompt, response: response[0].content.count("!"), "loud")
    judge = WeightedJudge(parts_of("long=1,loud=3"), (long, loud), (1.0, 0.0))
    assert judge.judge(prompt, responses) == [1.0, 3.0] and judge.name == "1 long + 3 loud"


def test_the_spread_is_the_width_of_a_linear_reward() -> None:
    """Models at the sigma points of N(theta, Sigma^-1): their sum less the spread is r - beta ||phi - nu||_{Sigma^-1}."""
    rng = np.random.default_rng(0)
    theta_D, nu_D, phi_KD = rng.normal(size=3), rng.normal(size=3), rng.normal(size=(4, 3))
    pairs_ND = rng.normal(size=(9, 3))
    sigma_DD = np.eye(3) + pairs_ND.T @ pairs_ND
    offsets_DD = np.sqrt(3) * np.linalg.cholesky(np.linalg.inv(sigma_DD))
    models = [theta_D + sign * column for column in offsets_DD.T for sign in (1, -1)]
    scorers = [Fixed(tuple(phi_KD @ theta), f"{number}") for number, theta in enumerate(models)]
    parts = parts_of(",".join(f"runs/{number}={1 / 6!r}" for number in range(6)) + ",spread=-0.7")
    (found_K,) = WeightedScorer(parts, scorers, [float(nu_D @ theta) for theta in models]).score(ROWS)
    width_K = np.sqrt(np.einsum("kd,de,ke->k", phi_KD - nu_D, np.linalg.inv(sigma_DD), phi_KD - nu_D))
    np.testing.assert_allclose(found_K, (phi_KD - nu_D) @ theta_D - 0.7 * width_K, rtol=1e-5)


def test_a_spread_belongs_to_two_models_or_more() -> None:
    parts = parts_of("a=1,b=3,spread=-2")
    one, two = Fixed((1.0, 3.0), "x"), Fixed((5.0, 3.0), "y")
    judge = WeightedJudge(parts, (RuleJudge(lambda prompt, response: 1.0, ""), RuleJudge(lambda prompt, response: 5.0, "")))
    (both,) = WeightedScorer(parts, (one, two)).score(ROWS)
    np.testing.assert_allclose(both, [16 - 2 * np.sqrt(3), 12])  # shares 1/4 and 3/4 of 1 and 5: mean 4, variance 3
    assert judge.judge((), [()]) == [pytest.approx(16 - 2 * np.sqrt(3))] and judge.name == "1 a + 3 b + -2 spread"
    assert len({WeightedScorer(parts_of(f"a=1,b=3{more}"), (one, two)).fingerprint for more in ("", ",spread=-2", ",spread=-1")}) == 3
    for wrong in ("a=1,spread=-1", "a=1,b=-1,spread=-1"):
        with pytest.raises(ValueError, match="two or more reward models beside it, with weights above 0"):
            parts_of(wrong)
