"""`read_rows`: nothing is lost silently, and a wrong file fails at once in one sentence."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from trueline.records import TEXT, Comparison, Conversation, Document, Message, Rating
from trueline.rows import read_prompts, read_rows, write_rows

PAIR = {"prompt": "Why is the sky so blue?", "chosen": "Air.", "rejected": "Paint."}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_every_row_is_a_record_or_a_reject(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR, "{broken", {**PAIR, "rejected": "Air."}, {"prompt": "x"}, PAIR])
    rejects = tmp_path / "out" / "rejects.jsonl"
    rows = read_rows(path, Comparison, rejects=rejects)
    assert (rows.format, rows.record, rows.columns) == (
        "TRL preference, plain",
        Comparison,
        ("prompt", "chosen", "rejected"),
    )
    next(iter(rows))  # a pass that is broken off does not count
    for _ in range(2):  # and what was counted once is not counted twice
        assert [record.source for record in rows] == [f"{path}:1", f"{path}:5"]
        assert rows.read == 5
        assert rows.rejected == {"not JSON": 1, "chosen and rejected are equal": 1, "no chosen": 1}
        kept = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [(k["file"], k["line"]) for k in kept] == [(str(path), 2), (str(path), 3), (str(path), 4)]
        assert kept[0]["row"] == "{broken" and kept[2]["row"] == {"prompt": "x"}


def test_no_rejects_no_file(tmp_path):
    rejects = tmp_path / "rejects.jsonl"
    rejects.write_text("of an earlier pass")
    list(read_rows(write(tmp_path / "a.jsonl", [PAIR]), rejects=rejects))
    assert not rejects.exists()


def test_limit_counts_records(tmp_path):
    path = write(tmp_path / "a.jsonl", ["{"] + [PAIR] * 5)
    assert len(list(read_rows(path, limit=2))) == 2
    assert len(list(read_rows(path, Rating, limit=3))) == 3


def test_a_file_without_a_usable_row_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none of its 2 rows can be used: chosen and rejected are equal \(2\)"):
        list(read_rows(write(tmp_path / "a.jsonl", [{**PAIR, "rejected": "Air."}] * 2)))
    with pytest.raises(ValueError, match="has no rows"):
        read_rows(write(tmp_path / "b.jsonl", []))
    with pytest.raises(ValueError, match="none of its 1 rows is an object"):
        read_rows(write(tmp_path / "c.jsonl", ["7"]))


def test_what_does_not_exist(tmp_path):
    write(tmp_path / "pairs.jsonl", [PAIR])
    with pytest.raises(ValueError, match=r"does not exist; did you mean .*pairs\.jsonl\?"):
        read_rows(tmp_path / "pair.jsonl")


def message(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_mismatch_names_what_is_there_what_is_needed_and_the_nearest(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "chosn": "a", "rejected": "b"}])
    said = message(lambda: read_rows(path, Comparison))
    assert "prompt, chosn, rejected" in said and "did you mean 'chosn' for 'chosen'?" in said
    path = write(tmp_path / "b.jsonl", [{"positive": "a", "negative": "b"}])
    said = message(lambda: read_rows(path, Comparison))
    assert "columns positive, negative" in said and "prompt + chosen + rejected" in said
    path = write(tmp_path / "c.jsonl", [CHAT])
    said = message(lambda: read_rows(path, Comparison))
    assert "chat messages" in said and "comparisons are needed" in said and "chosen + rejected" in said
    path = write(tmp_path / "d.jsonl", [{"prompt": "x"}])
    assert "prompts without answers" in message(lambda: read_rows(path, Conversation))
    path = write(tmp_path / "e.jsonl", [{"text": "x"}])
    assert "prompts are needed" in message(lambda: read_prompts(path))


def test_columns_under_other_names(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "p", "prompt": "unused", "good": "a", "bad": "b"}])
    (record,) = read_rows(path, Comparison, columns={"prompt": "query", "chosen": "good", "rejected": "bad"})
    assert isinstance(record, Comparison)
    assert (record.prompt[0].content, record.responses[0][0].content) == ("p", "a")
    with pytest.raises(ValueError, match="has no column 'god'; did you mean 'good'"):
        read_rows(path, columns={"chosen": "god"})


def test_conversions(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", [PAIR])
    (conversation,) = read_rows(pairs, Conversation)
    assert isinstance(conversation, Conversation)
    assert [(m.content, m.train) for m in conversation.messages] == [("Why is the sky so blue?", False), ("Air.", True)]
    chosen, rejected = read_rows(pairs, Rating)
    assert isinstance(chosen, Rating) and isinstance(rejected, Rating)
    assert (chosen.response[0].content, chosen.label) == ("Air.", True)
    assert (rejected.response[0].content, rejected.label) == ("Paint.", False)
    ranked = {"prompt": "p", "responses": ["a", "b", "c"]}
    rows = read_rows(
        write(tmp_path / "k.jsonl", [{**ranked, "ranks": [3, 1, 2]}, {**ranked, "ranks": [1, 1, 2]}]), Conversation
    )
    (best,) = rows
    assert isinstance(best, Conversation) and best.messages[-1].content == "b"
    assert rows.rejected == {"a tie for the best response": 1}
    rated = [{"prompt": "p", "completion": c, "label": c == "good"} for c in ("good", "bad")]
    rows = read_rows(write(tmp_path / "r.jsonl", rated), Conversation)
    assert len(list(rows)) == 1 and rows.rejected == {"a response that is not labelled desirable": 1}
    (text,) = read_rows(write(tmp_path / "t.jsonl", [{"text": "x"}]), Conversation)
    assert isinstance(text, Conversation) and text.messages == (Message(role=TEXT, content="x"),)
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    rows = read_rows(write(tmp_path / "q.jsonl", [CHAT, asked]), Conversation)
    assert len(list(rows)) == 1 and rows.rejected == {"no assistant turn to train on": 1}


def test_prompts_of_anything(tmp_path):
    for rows, content in [
        ([PAIR], "Why is the sky so blue?"),
        ([CHAT], "Hi"),
        ([{"prompt": "p", "completion": "c"}], "p"),
        ([{"prompt": "p", "completion": "c", "label": True}], "p"),
        ([{"prompt": "p"}], "p"),
        ([{"instruction": "p", "output": "c"}], "p"),
    ]:
        (prompt,) = read_prompts(write(tmp_path / "a.jsonl", rows))
        assert isinstance(prompt, Conversation)
        assert [(m.content, m.train) for m in prompt.messages] == [(content, False)]


def test_dialogues_of_joined_files_but_never_a_pair_without_its_prompt(tmp_path):
    joined = [CHAT, {"instruction": "Hi", "output": "Hello."}, {"prompt": "p", "completion": "c"}, {"text": "x"}]
    rows = read_rows(write(tmp_path / "a.jsonl", joined), Conversation)
    assert len(list(rows)) == 3
    assert rows.rejected == {"no prompt": 1} and sum(rows.notes.values()) == 2
    rows = read_rows(write(tmp_path / "b.jsonl", [PAIR, {"chosen": "The sky is blue", "rejected": "The sky is red"}]))
    assert len(list(rows)) == 1 and rows.rejected == {"no prompt": 1}


def test_folders_lists_and_compression(tmp_path):
    write(tmp_path / "1.jsonl", [PAIR])
    (tmp_path / "2.json.gz").write_bytes(gzip.compress(json.dumps([PAIR, PAIR]).encode()))
    rows = read_rows(tmp_path, Comparison)
    assert len(list(rows)) == 3 and rows.format == "TRL preference, plain"
    assert len(list(read_rows([tmp_path / "1.jsonl", tmp_path]))) == 4
    csv = tmp_path / "c.csv"
    csv.write_text(
        'messages,label\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]",true\n'
    )
    (rating,) = read_rows(csv)
    assert isinstance(rating, Rating) and rating.label is True


def test_nulls_of_parquet_are_absent(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    turns = [
        {"role": "user", "content": "q", "tool_calls": None, "weight": None},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}], "weight": None},
        {"role": "tool", "content": "r", "tool_calls": None, "weight": None},
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([{"messages": turns, "tools": None}]), tmp_path / "a.parquet")
    (record,) = read_rows(tmp_path / "a.parquet")
    assert isinstance(record, Conversation)
    assert [m.content for m in record.messages] == ["q", "", "r"] and record.tools == ()


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in message(lambda: read_rows("owner/name"))
    asked = []

    def load_dataset(name, *, split, streaming):
        asked.append((name, split, streaming))
        return iter([PAIR, PAIR])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert [r.source for r in read_rows("owner/name:test", Comparison)] == ["owner/name:test:1", "owner/name:test:2"]
    assert asked[0] == ("owner/name", "test", True)

    def offline(name, **_):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    assert "no network" in message(lambda: read_rows("owner/name"))
    local = tmp_path / "owner" / "name"
    local.mkdir(parents=True)
    write(local / "a.jsonl", [{"text": "x"}])
    monkeypatch.chdir(tmp_path)
    assert isinstance(next(iter(read_rows("owner/name"))), Document)  # a local path comes first


def test_a_prompt_keeps_what_is_right(tmp_path):
    """From its column, whatever it holds, or else from the answer that was cut off."""
    rows = [{"prompt": "1+1?", "answer": 2}, {"prompt": "2+2?", "tests": ["assert f() == 4"]}, {"prompt": "3+3?"}]
    assert [prompt.answer for prompt in read_prompts(write(tmp_path / "a.jsonl", rows))] == [2, ["assert f() == 4"], None]
    asked = write(tmp_path / "b.jsonl", [{"question": "1+1?", "answer": "One more is two. #### 2"}])
    (prompt,) = read_prompts(asked)
    assert prompt.answer == "One more is two. #### 2" and [m.content for m in prompt.messages] == ["1+1?"]
    (answered,) = read_rows(asked)
    assert answered.answer is None  # it is a turn there
    better = write(tmp_path / "c.jsonl", [{"prompt": "1+1?", "chosen": "2", "rejected": "3"}])
    (prompt,) = read_prompts(better)
    assert prompt.answer is None  # preferred is not right


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_right_is_written_and_read_back(tmp_path, suffix):
    prompts = read_prompts(write(tmp_path / "a.jsonl", [{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]))
    write_rows(prompts, tmp_path / f"b{suffix}")
    assert [prompt.answer for prompt in read_prompts(tmp_path / f"b{suffix}")] == ["2", "4"]
