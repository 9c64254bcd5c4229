"""Judges that answer from what is stored."""

from __future__ import annotations

import pytest

from trueline.align.group import prompt_key
from trueline.align.votes import StoredVotes
from trueline.records import Comparison, Counts, Message, Messages, Ranking

ASKED = (Message(role="user", content="Name a colour."),)


def said(text: str) -> Messages:
    return (Message(role="assistant", content=text),)


def row(judgement: Ranking | Counts, *texts: str) -> Comparison:
    return Comparison(prompt=ASKED, responses=tuple(map(said, texts)), judgement=judgement)


def test_votes_are_added_up_by_pair() -> None:
    """By hand: red against blue 1 + 3 of 5 votes, red against green half a vote each, blue against green unknown."""
    rows = [
        row(Ranking((1, 2)), "red", "blue"),
        row(Counts((1.0, 3.0)), "blue", "red"),
        row(Ranking((1, 1)), "red", "green"),
    ]
    judge = StoredVotes.of(rows, "votes.jsonl")
    assert judge.judge(ASKED, [said("red"), said("blue"), said("green")]) == [(0.8 + 0.5) / 2, pytest.approx(0.2), 0.5]
    assert judge.tally == {"known": 2, "unknown": 1, "unknown responses": 0} and not judge.unjudged
    ranked = StoredVotes.of([row(Ranking((2, 1, 3)), "a", "b", "c")])
    assert ranked.judge(ASKED, [said("a"), said("b"), said("c")]) == [0.5, 1, 0]


def test_what_nobody_voted_on_is_counted_and_no_tie() -> None:
    judge = StoredVotes.of([row(Ranking((1, 2)), "red", "blue")])
    assert judge.judge(ASKED, [said("blue"), said(" red "), said("pink")]) == [0, 1, 0.5]  # in the middle, and known to be unknown
    assert judge.tally["unknown responses"] == 1 and judge.unjudged == {prompt_key(ASKED)}
    other = (Message(role="user", content="Name a town."),)
    assert judge.judge(other, [said("red"), said("blue")]) == [0, 0] and prompt_key(other) in judge.unjudged
    assert judge.lines() == ["pairs with votes: 1, without: 3; responses that nobody voted on: 3"]
    with pytest.raises(ValueError, match="holds no comparison"):
        StoredVotes.of([], "votes.jsonl")
