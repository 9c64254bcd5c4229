"""What is written is read back equal."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.records import TEXT, Comparison, Conversation, Counts, Document, Message, Ranking, Rating
from trueline.rows import read_rows, write_rows
from trueline.rows.writing import columns_of

TEXTS = st.text('ab {}[]"\\\n\u2028é', max_size=8).map(lambda text: "x" + text)
CALLS = st.lists(
    st.builds(
        lambda n, a: {"type": "function", "function": {"name": n, "arguments": a}},
        TEXTS,
        st.dictionaries(TEXTS, TEXTS, max_size=2),
    ),
    max_size=2,
).map(tuple)


@st.composite
def chats(draw, answered=True):
    """system?, then user and assistant in turn, a tool turn after a call."""
    messages = [Message(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(Message(role="user", content=draw(TEXTS), name=draw(st.none() | TEXTS)))
        calls = draw(CALLS)
        messages.append(Message(role="assistant", content=draw(TEXTS), tool_calls=calls, train=draw(st.booleans())))
        if calls:
            messages += [Message(role="tool", content="r"), Message(role="assistant", content=draw(TEXTS))]
    if not answered:
        messages.append(Message(role="user", content=draw(TEXTS)))
    return tuple(messages)


def untrained(messages):
    return tuple(
        Message(role=m.role, content=m.content, name=m.name, tool_calls=m.tool_calls, train=False) for m in messages
    )


PLAIN_PROMPT = TEXTS.map(lambda t: (Message(role=TEXT, content=t, train=False),))
PLAIN = TEXTS.map(lambda t: (Message(role=TEXT, content=t),))
ANSWER = TEXTS.map(lambda t: (Message(role="assistant", content=t),))
ASKED = chats(answered=False).map(untrained)
SIDES = st.sampled_from([(PLAIN_PROMPT, PLAIN), (ASKED, ANSWER)])
SOURCE = TEXTS.map(lambda t: "s" + t)


@st.composite
def comparisons(draw):
    prompts, answers = draw(SIDES)
    responses = draw(st.lists(answers, min_size=2, max_size=4, unique=True))
    k = len(responses)
    judgement = draw(
        st.lists(st.integers(1, k), min_size=k, max_size=k).map(lambda r: Ranking(tuple(r)))
        | st.lists(st.floats(0.5, 9), min_size=k, max_size=k).map(lambda c: Counts(tuple(c)))
    )
    prompt = draw(prompts.filter(lambda p: len(p[0].content) < 20))
    who = {"source": draw(SOURCE), "annotator": draw(st.just("") | TEXTS), "time": "2026-01-01"}
    return Comparison(prompt=prompt, responses=tuple(responses), judgement=judgement, **who)


@st.composite
def ratings(draw):
    prompts, answers = draw(SIDES)
    kind = draw(st.sampled_from([{"label": True}, {"label": False}, {"score": 1.5}, {"counts": (0.0, 2.0)}]))
    return Rating(prompt=draw(prompts), response=draw(answers), source=draw(SOURCE), annotator=draw(TEXTS), **kind)


TOOLS = st.lists(st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=2), max_size=2).map(tuple)
CONVERSATIONS = st.builds(Conversation, messages=chats(), source=SOURCE, tools=TOOLS)
DOCUMENTS = st.builds(
    Document,
    text=TEXTS,
    id=TEXTS,
    source=SOURCE,
    meta=st.dictionaries(st.sampled_from("uv"), TEXTS | st.integers(0, 9)),
)
BATCHES = st.sampled_from([comparisons(), ratings(), CONVERSATIONS, DOCUMENTS]).flatmap(
    lambda records: st.lists(records, min_size=1, max_size=4)
)


@settings(max_examples=80, deadline=None)
@given(records=BATCHES, suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_jsonl_round_trip(tmp_path_factory, records, suffix):
    path = tmp_path_factory.mktemp("rows") / f"a{suffix}"
    assert write_rows(records, path, "trueline").rows == len(records)
    assert list(read_rows(path)) == records


@settings(max_examples=40, deadline=None)
@given(
    records=st.sampled_from([comparisons(), ratings(), DOCUMENTS]).flatmap(
        lambda r: st.lists(r, min_size=1, max_size=1)
    )
)
def test_parquet_round_trip(tmp_path_factory, records):
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    write_rows(records, path, "trueline")
    assert list(read_rows(path)) == records


@settings(max_examples=40, deadline=None)
@given(comparison=comparisons())
def test_trl_pairs_are_all_strict_orders(comparison):
    left_out = Counter()
    rows = columns_of(comparison, "trl", left_out)
    places = (
        [-r for r in comparison.judgement.ranks]
        if isinstance(comparison.judgement, Ranking)
        else comparison.judgement.counts
    )
    k = range(len(places))
    assert len(rows) == sum(places[i] > places[j] for i in k for j in k)
    assert bool(left_out) == (not rows)
    value = {json.dumps(columns_of(comparison, "trueline", left_out)[0]["responses"][i]): places[i] for i in k}
    assert all(value[json.dumps(row["chosen"])] > value[json.dumps(row["rejected"])] for row in rows)


def test_columns_are_those_of_trl():
    user, answer = Message(role="user", content="q", train=False), Message(role="assistant", content="a")
    asked, said = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]

    def row(record):
        return columns_of(record, "trl", Counter())[0]

    assert row(Conversation(messages=(user, answer))) == {"prompt": asked, "completion": said}
    assert row(Conversation(messages=(user,))) == {"prompt": asked}
    assert row(Conversation(messages=(Message(role="user", content="q"), answer))) == {"messages": asked + said}
    both = Comparison(
        prompt=(user,), responses=((answer,), (Message(role="assistant", content="b"),)), judgement=Ranking((2, 1))
    )
    assert row(both) == {"prompt": asked, "chosen": [{"role": "assistant", "content": "b"}], "rejected": said}
    assert row(Rating(prompt=(user,), response=(answer,), label=False)) == {
        "prompt": asked,
        "completion": said,
        "label": False,
    }
    assert row(Document(text="x")) == {"text": "x"}


def test_convert_alpaca_to_parquet_and_back(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Add.", "input": "1 1", "output": "2"}] * 3))
    records = list(read_rows(tmp_path / "a.json"))
    assert write_rows(read_rows(tmp_path / "a.json"), tmp_path / "b.parquet").rows == 3
    back = read_rows(tmp_path / "b.parquet")
    assert list(back) == records and back.format == "TRL prompt-completion, conversational"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_rows([Document(text="old")], path)

    def broken():
        yield Document(text="new")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_rows(broken(), path)
    assert json.loads(path.read_text()) == {"text": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write \.csv; use \.jsonl or \.parquet"):
        write_rows([Document(text="x")], tmp_path / "a.csv")
    with pytest.raises(ValueError, match="no format 'x'"):
        write_rows([], tmp_path / "a.jsonl", "x")
    plain = Conversation(messages=(Message(role=TEXT, content="p", train=False),))
    chat = Conversation(messages=(Message(role="user", content="p", train=False),))
    with pytest.raises(ValueError, match="plain and conversational"):
        write_rows([plain, chat], tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="first appears after row 1024"):
        write_rows([plain] * 1024 + [Document(text="x")], tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows([Document(text="x")], tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_zst(tmp_path):
    pytest.importorskip("pyarrow")
    write_rows([Document(text="x\u2028y", source="s")] * 3, tmp_path / "a.jsonl.zst")
    assert list(read_rows(tmp_path / "a.jsonl.zst")) == [Document(text="x\u2028y", source="s")] * 3
