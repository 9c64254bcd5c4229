"""A preference as the record that an objective trains on."""

from __future__ import annotations

import pytest

from trueline.records import Comparison, Conversation, Counts, Document, Message, Ranking, Rating
from trueline.study.rows import Parts, checked, records_for

PROMPT = (Message(role="user", content="q"),)
A, B, C = ((Message(role="assistant", content=text),) for text in "abc")


def comparison(judgement: Ranking | Counts, *responses: tuple[Message, ...]) -> Comparison:
    return Comparison(prompt=PROMPT, responses=responses, judgement=judgement)


def test_conversations_hold_the_preferred_response() -> None:
    pairs = [comparison(Ranking((2, 1)), A, B), comparison(Counts((3.0, 1.0)), A, B)]
    assert records_for(Conversation, pairs) == [Conversation(messages=PROMPT + B), Conversation(messages=PROMPT + A)]
    assert records_for(Comparison, pairs) == pairs


def test_ratings_are_both_halves() -> None:
    found = records_for(Rating, [comparison(Ranking((2, 1)), A, B)])
    assert [(rating.response, rating.label) for rating in found] == [(A, False), (B, True)]  # type: ignore[union-attr]


def test_ties_and_middles_say_nothing() -> None:
    assert records_for(Rating, [comparison(Ranking((1, 1)), A, B)]) == []
    found = records_for(Rating, [comparison(Ranking((1, 2, 3)), A, B, C)])
    assert [rating.label for rating in found] == [True, False]  # type: ignore[union-attr]


def test_documents_cannot_take_part() -> None:
    with pytest.raises(ValueError, match="gives no Document records"):
        records_for(Document, [comparison(Ranking((1, 2)), A, B)])


def test_parts_that_somebody_else_dealt_out_are_checked() -> None:
    def pairs(first: int, count: int) -> tuple[Comparison, ...]:
        prompts = ((Message(role="user", content=str(n)),) for n in range(first, first + count))
        return tuple(Comparison(prompt=prompt, responses=(A, B), judgement=Ranking((1, 2))) for prompt in prompts)

    apart = Parts(train=pairs(0, 4), judge=(), tuning=pairs(10, 2), report=pairs(20, 4))
    assert checked(apart, needs_judge=False) is apart
    with pytest.raises(ValueError, match="0 prompts to the judge part"):
        checked(apart, needs_judge=True)
    with pytest.raises(ValueError, match="1 prompts of the comparisons have several uses"):
        checked(Parts(train=pairs(0, 4), judge=(), tuning=pairs(3, 2), report=pairs(20, 4)), needs_judge=False)
