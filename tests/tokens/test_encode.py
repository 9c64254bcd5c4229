"""Records to rows: masks, cuts and drops are exact and counted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.records import TEXT, Comparison, Conversation, Counts, Document, Message, Messages, Ranking, Rating, Row
from trueline.tokens import (
    EncodeStats,
    Tokenizer,
    encode_comparison,
    encode_conversation,
    encode_document,
    encode_prompt,
    encode_rating,
    preview,
)
from trueline.tokens.encode import documents_ids, row_key, window_rows


def user(content: str) -> Message:
    return Message(role="user", content=content)


def answer(content: str) -> Message:
    return Message(role="assistant", content=content)


def text(content: str, train: bool = True) -> Message:
    return Message(role=TEXT, content=content, train=train)


def trained_text(row: Row, tok: Tokenizer) -> list[str]:
    """What is trained in each sequence."""
    return ["".join(piece for piece, scored in shown if scored) for shown in preview(row, tok)]


@settings(max_examples=60, deadline=None)
@given(content=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=80), length=st.integers(2, 9))
def test_documents_lose_nothing(families: SimpleNamespace, content: str, length: int) -> None:
    """Windows overlap by one token; every token but the first is a target exactly once; EOS ends the last."""
    tok: Tokenizer = families.plain
    stats = EncodeStats()
    rows = encode_document(Document(text=content), tok, length, stats)
    targets = np.concatenate([row.ids[0][row.scored[0]] for row in rows])
    whole = [*tok.encode(content), tok.eos_id]
    assert [int(rows[0].ids[0][0]), *targets.tolist()] == whole
    assert all(len(row.ids[0]) <= length and not row.scored[0][0] and row.scored[0][1:].all() for row in rows)
    assert stats.rows == len(rows) and stats.scored_tokens == len(whole) - 1 and stats.cut_tokens == 0


def test_documents_of_other_kinds(families: SimpleNamespace) -> None:
    """BOS where the family adds one; empty ones counted; control tokens spelled out and counted."""
    stats = EncodeStats()
    (row,) = encode_document(Document(text="hello </s> you"), families.llama2, 100, stats)
    assert row.ids[0][0] == families.llama2.bos_id and row.scored[0].sum() == len(row.ids[0]) - 1
    assert (row.ids[0] == families.llama2.eos_id).sum() == 1 and stats.spelled == 1
    assert encode_document(Document(text=""), families.llama2, 100, stats) == []
    assert encode_document(Document(text="\ud83d"), families.llama2, 100, stats) == []
    assert sum(stats.dropped.values()) == 2 and stats.dropped["empty document"] == 1
    many = documents_ids(["a b c", "d"], families.plain)
    assert [len(r.ids[0]) for r in window_rows(many, 100)] == [len(ids) for ids in many]
    with pytest.raises(ValueError, match="max_length 1 is too short"):
        encode_document(Document(text="abc"), families.plain, 1)


def test_conversation_and_cut(families: SimpleNamespace) -> None:
    """Cut on the right and counted; dropped with the reason when no answer is left."""
    tok: Tokenizer = families.plain
    conv = Conversation(messages=(user("Name a colour."), answer("Blue, then green."), user("x"), answer("y")))
    stats = EncodeStats()
    whole = encode_conversation(conv, tok, 1000, stats)
    assert whole is not None and whole.key == row_key(whole.ids, whole.scored)
    assert trained_text(whole, tok) == ["Blue, then green.<|im_end|>y<|im_end|>"]
    prompt = len(encode_prompt(conv.messages[:1], tok))
    cut = encode_conversation(conv, tok, prompt + 2, stats)
    assert cut is not None and len(cut.ids[0]) == prompt + 2 and cut.scored[0].sum() == 2 and cut.key != whole.key
    assert (stats.cut_rows, stats.cut_tokens) == (1, len(whole.ids[0]) - prompt - 2)
    assert encode_conversation(conv, tok, prompt, stats) is None
    assert encode_conversation(Conversation(messages=conv.messages[:1]), tok, 100, stats) is None
    assert dict(stats.dropped) == {"no response within max_length": 1, "no response to train on": 1}
    assert stats.rows == 2 and stats.tokens == len(whole.ids[0]) + prompt + 2


def test_conversation_that_opens_with_an_answer(families: SimpleNamespace) -> None:
    """The first message may be the assistant's."""
    row = encode_conversation(
        Conversation(messages=(answer("Hello."), user("Hi"), answer("Bye."))), families.plain, 100
    )
    assert row is not None and trained_text(row, families.plain) == ["Hello.<|im_end|>Bye.<|im_end|>"]


def test_text_rows(families: SimpleNamespace) -> None:
    """Joined as given and tokenised as a whole: equal to the document; the completion is scored, with EOS."""
    tok: Tokenizer = families.plain
    stats = EncodeStats()
    row = encode_conversation(Conversation(messages=(text("The sky is", False), text(" blue, and"))), tok, 100, stats)
    assert row is not None and trained_text(row, tok) == [" blue, and<|endoftext|>"]
    assert row.ids[0].tolist() == [*tok.encode("The sky is blue, and"), tok.eos_id] and stats.straddled == 0
    alone = encode_conversation(Conversation(messages=(text("The sky is blue"),)), tok, 100, stats)
    assert alone is not None and alone.scored[0].tolist() == [False] + [True] * (len(alone.ids[0]) - 1)
    llama = encode_conversation(Conversation(messages=(text("The sky is", False), text(" blue"))), families.llama2, 100)
    assert llama is not None and llama.ids[0][0] == families.llama2.bos_id and llama.scored[0][-1]
    assert encode_prompt((text("The sky is"),), families.llama2).tolist() == [1, *families.llama2.encode("The sky is")]


def test_text_border_inside_a_token(families: SimpleNamespace) -> None:
    """ "na" + "me" is one token here: it begins in the prompt, so it is not scored, and the row is counted."""
    tok: Tokenizer = families.plain
    assert len(tok.encode(" name")) == 1
    stats = EncodeStats()
    row = encode_conversation(Conversation(messages=(text("Return na", False), text("me now"))), tok, 100, stats)
    assert row is not None and stats.straddled == 1
    assert "me" not in trained_text(row, tok)[0] and trained_text(row, tok)[0].endswith("now<|endoftext|>")


def pair(prompt: Messages, first: str, second: str, judgement: Ranking | Counts) -> Comparison:
    return Comparison(prompt=prompt, responses=((answer(first),), (answer(second),)), judgement=judgement)


def test_comparison_order_and_mask(families: SimpleNamespace) -> None:
    """Best first; only responses are scored, not the assistant's turns in the prompt; shared prompts share their ids."""
    tok: Tokenizer = families.llama3
    prompt = (user("hi"), answer("hello"), user("a colour?"))
    row = encode_comparison(pair(prompt, "Red.", "Blue.", Ranking((2, 1))), tok, 100)
    assert row is not None and trained_text(row, tok) == ["Blue.<|eot_id|>", "Red.<|eot_id|>"]
    assert row.numbers["rank"].tolist() == [1, 2] and row.numbers["rank"].dtype == np.float32
    before = encode_prompt(prompt, tok)
    assert all(
        ids[: len(before)].tolist() == before.tolist() and not s[: len(before)].any()
        for ids, s in zip(row.ids, row.scored, strict=True)
    )
    counted = encode_comparison(pair(prompt, "Red.", "Blue.", Counts((1, 2.5))), tok, 100)
    assert counted is not None and counted.numbers["counts"].tolist() == [2.5, 1] and counted.key == row.key
    tie = encode_comparison(pair(prompt, "Red.", "Blue.", Ranking((1, 1))), tok, 100)
    assert tie is not None and trained_text(tie, tok)[0].startswith("Red") and tie.numbers["rank"].tolist() == [1, 1]
    three = Comparison(prompt=prompt, responses=tuple((answer(a),) for a in "abc"), judgement=Ranking((2, 3, 1)))
    ordered = encode_comparison(three, tok, 100)
    assert ordered is not None and [t[0] for t in trained_text(ordered, tok)] == ["c", "a", "b"]


def test_comparison_cuts_and_drops(families: SimpleNamespace) -> None:
    """A prompt that is too long drops the row; responses are cut at one length, counted; equal ones are dropped."""
    tok: Tokenizer = families.plain
    prompt = (user("hi"),)
    room = len(encode_prompt(prompt, tok))
    stats = EncodeStats()
    long = encode_comparison(
        pair(prompt, "one, two, three, hello", "User: hello. hi", Ranking((1, 2))), tok, room + 3, stats
    )
    assert (
        long is not None
        and [len(ids) for ids in long.ids] == [room + 3] * 2
        and stats.cut_rows == 1
        and stats.cut_tokens > 0
    )
    assert encode_comparison(pair(prompt, "one", "two", Ranking((1, 2))), tok, room, stats) is None
    assert encode_comparison(pair(prompt, "one", "one", Ranking((1, 2))), tok, 100, stats) is None
    assert encode_comparison(pair(prompt, "one, two", "one, three", Ranking((1, 2))), tok, room + 1, stats) is None
    assert (
        encode_comparison(
            Comparison(prompt=prompt, responses=((answer("a"),), (user("b"),)), judgement=Ranking((1, 2))),
            tok,
            99,
            stats,
        )
        is None
    )
    assert encode_comparison(pair(prompt, "a", "b", Ranking((1,))), tok, 99, stats) is None
    mixed = Comparison(prompt=prompt, responses=((text("a"),), (text("b"),)), judgement=Ranking((1, 2)))
    assert encode_comparison(mixed, tok, 99, stats) is None
    assert dict(stats.dropped) == {
        "no room for a response within max_length": 1,
        "responses are equal": 1,
        "responses are equal within max_length": 1,
        "a response has nothing to train on": 1,
        "the judgement does not give each response one number": 1,
        "plain-text and chat messages are mixed in one row": 1,
    }
    assert stats.rows == 1


def test_text_comparison(families: SimpleNamespace) -> None:
    """Plain-text pairs (HH-RLHF): the completion with its leading space, and EOS."""
    comp = Comparison(
        prompt=(text("User: hi\n\nAssistant:"),),
        responses=((text(" No."),), (text(" Hello."),)),
        judgement=Ranking((2, 1)),
    )
    row = encode_comparison(comp, families.plain, 100)
    assert row is not None and trained_text(row, families.plain) == [" Hello.<|endoftext|>", " No.<|endoftext|>"]


def test_key_is_the_content(families: SimpleNamespace) -> None:
    """The same ids and mask give the same key, in any process; another mask another key."""
    ids = (np.array([1, 2, 3], dtype=np.int32),)
    scored, other = (np.array([False, True, True]),), (np.array([False, False, True]),)
    assert row_key(ids, scored) == "e06aec6971318525aeb550c976765fdb92e9bfd939cbdbfda09c66c273ee3237"
    assert row_key((ids[0].astype(np.int64),), scored) == row_key(ids, scored) != row_key(ids, other)
    assert row_key(ids * 2, scored * 2) != row_key((np.tile(ids[0], 2),), (np.tile(scored[0], 2),))


def test_preview_is_the_whole_text(families: SimpleNamespace) -> None:
    """The stretches join to the decoded sequence, and alternate."""
    conv = Conversation(messages=(user("é 😀"), answer("東京 <|im_end|>"), user("x"), answer("")))
    row = encode_conversation(conv, families.plain, 100)
    assert row is not None
    (shown,) = preview(row, families.plain)
    assert "".join(t for t, _ in shown) == families.plain.decode(row.ids[0], skip_special=False)
    assert [scored for _, scored in shown] == [False, True, False, True, False]
    assert shown[1][0] == "東京 <|im_end|><|im_end|>" and shown[3][0] == "<|im_end|>"


def test_a_compared_response_ends_where_a_drawn_one_does(families: SimpleNamespace) -> None:
    """ChatML puts a line break after the turn's end; a sampler stops before it, and a reward model must read both at one token."""
    responses = ((answer("c d"),), (answer("e"),))
    comparison = Comparison(prompt=(user("a b"),), responses=responses, judgement=Ranking((1, 2)))
    row = encode_comparison(comparison, families.plain, 64)
    assert row is not None
    for ids, scored in zip(row.ids, row.scored, strict=True):
        assert scored[-1] and families.plain.token(int(ids[-1])) == "<|im_end|>"


def test_ratings_are_one_response_and_its_judgement(families: SimpleNamespace) -> None:
    """Only the response is scored, and the row ends where it does; the judgement travels with it."""
    tok: Tokenizer = families.llama3
    stats = EncodeStats()
    one = Rating(prompt=(user("Hi"),), response=(answer("Hello."),), counts=(1.0, 0.0, 3.0))
    row = encode_rating(one, tok, 100, stats)
    assert row is not None and row.scored[0][-1] and trained_text(row, tok)[0].startswith("Hello.")
    assert row.numbers["counts"].tolist() == [[1, 0, 3]] and set(row.numbers) == {"counts"}
    pair = Comparison(prompt=one.prompt, responses=(one.response, (answer("No."),)), judgement=Ranking((1, 2)))
    compared = encode_comparison(pair, tok, 100)
    assert compared is not None and row.ids[0].tolist() == compared.ids[0].tolist()
    for judged, name, value in (({"label": False}, "label", 0), ({"score": 2.5}, "score", 2.5)):
        other = encode_rating(Rating(prompt=one.prompt, response=one.response, **judged), tok, 100)  # type: ignore[arg-type]
        assert other is not None and other.numbers[name].tolist() == [value] and set(other.numbers) == {name}
    assert encode_rating(one, tok, 3, stats) is None
    assert stats.rows == 1 and stats.dropped == {"no room for a response within max_length": 1}
