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
