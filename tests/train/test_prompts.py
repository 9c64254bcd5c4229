"""Prompts of any data, as ids to draw from and text to judge by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trueline.records import TEXT, Comparison, Conversation, Message, Messages, Ranking, Rating, Record, Row
from trueline.run import read_lines
from trueline.tokens import Tokenizer, encode_prompt
from trueline.train.prompts import encode_prompts


def user(text: str) -> Messages:
    return (Message(role="user", content=text),)


def assistant(text: str) -> Messages:
    return (Message(role="assistant", content=text),)


def test_what_comes_before_the_first_answer_is_the_prompt(tokenizer: Tokenizer) -> None:
    """Dialogues, comparisons and ratings give the prompt that a bare one gives, to the token."""
    asked = user("the cat sat")
    records: list[Record] = [
        Conversation(messages=asked),
        Conversation(messages=(*asked, *assistant("a dog"), *user("and one mat"))),
        Comparison(prompt=asked, responses=(assistant("a"), assistant("b")), judgement=Ranking((1, 2))),
        Rating(prompt=asked, response=assistant("a"), label=True),
    ]
    found = encode_prompts(records, tokenizer, 100)
    expected = encode_prompt(asked, tokenizer)
    assert len(found.rows) == 4 and all(np.array_equal(row.ids[0], expected) for row in found.rows)
    assert not any(row.scored[0].any() for row in found.rows)
    assert set(found.texts.values()) == {asked} and found.rows[0].key in found.texts


def test_tools_are_part_of_a_prompt(tokenizer: Tokenizer) -> None:
    template = "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    speaking = tokenizer.with_template(template)
    tools = ({"name": "dog"},)
    (with_tools,) = encode_prompts([Conversation(messages=user("the cat"), tools=tools)], speaking, 100).rows
    (without,) = encode_prompts([Conversation(messages=user("the cat"))], speaking, 100).rows
    assert len(with_tools.ids[0]) > len(without.ids[0])


def test_encoded_rows_are_cut_where_their_response_begins(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("the cat sat on a mat"), np.int32)
    row = Row(ids=(ids,), scored=(np.arange(len(ids)) >= 3,))
    (found,) = encode_prompts([row], tokenizer, 100).rows
    assert found.ids[0].tolist() == ids[:3].tolist()
    (message,) = encode_prompts([row], tokenizer, 100).texts[found.key]
    assert message.role == TEXT and message.content == tokenizer.decode(ids[:3].tolist())


def test_what_cannot_be_drawn_from_is_counted_and_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, rejects = tmp_path / "prompts.jsonl", tmp_path / "rejects.jsonl"
    lines = [{"prompt": "the cat"}, {"prompt": "the cat sat on a mat and saw one dog run to its red house " * 4}, {"other": 1}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = encode_prompts(data, tokenizer, 20, rejects)
    assert len(found.rows) == 1 and found.read == 3 and found.rejected.total() == 2
    assert "2 were left out, kept in rejects.jsonl" in found.lines()[1]
    assert "longer than max_length less max_completion_length, 20 tokens (1)" in found.lines()[1]
    assert sorted(str(row["reason"])[:6] for row in read_lines(rejects)) == ["longer", "no pro"]
    with pytest.raises(ValueError, match="there is no prompt to draw from: longer than"):
        encode_prompts(data, tokenizer, 1)
