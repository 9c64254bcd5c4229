"""Whatever a data file holds: records, rejected rows, or one sentence."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import JSON, SAMPLE, SOAK, mutated, sentence_or_nothing
from trueline.records import Comparison, Conversation, Document, Rating
from trueline.rows import read_prompts, read_rows, readers, write_rows
from trueline.rows.formats import FORMATS

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Tuesday."},
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello."}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé\u2028lo", "weight": 1}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "tools": "[]"},
    {"text": "One two three.", "meta": '{"a": 1}', "id": 3},
    {"instruction": "Count.", "input": "", "output": "One.", "history": [["a", "b"]]},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]},
    {"instruction": "i", "output_1": "a", "output_2": "b", "preference": 1.3},
]  # fmt: skip
WANTED = (None, Document, Conversation, Comparison, Rating, "prompts")


def files() -> dict[str, bytes]:
    """One valid file of each kind."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    pairs = [ROWS[0], {**ROWS[0], "chosen": 'Say "red",\nor not.'}]
    table = "prompt,chosen,rejected\n" + "".join(f"{r['prompt']},\"{r['chosen']}\",{r['rejected']}\n" for r in pairs)
    found = {
        "a.jsonl": lines, "a.json": json.dumps(pairs).encode(), "b.json": json.dumps({"data": pairs}).encode(),
        "a.csv": table.encode(), "a.tsv": table.replace(",", "\t").encode(), "a.txt": b"One.\n\nTwo.\n",
        "a.jsonl.gz": gzip.compress(lines, mtime=0), "a.csv.gz": gzip.compress(table.encode(), mtime=0),
    }  # fmt: skip
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return found
    columns = pyarrow.Table.from_pylist(pairs * 3)
    parquet, stream = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(columns, parquet)
    with pyarrow.ipc.new_stream(stream, columns.schema) as writer:
        writer.write_table(columns)
    compress: Callable[[bytes], bytes] = lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)  # noqa: E731
    return found | {
        "a.parquet": parquet.getvalue(), "a.arrow": stream.getvalue(), "a.jsonl.zst": compress(lines),
        "a.parquet.gz": gzip.compress(parquet.getvalue(), mtime=0), "b.parquet.zst": compress(parquet.getvalue()),
    }  # fmt: skip


FILES = files()


def read(path: Path, wanted: Any) -> None:
    """All of it, with a rejects file, as training reads it."""
    rejects = path.with_name("rejects.jsonl")
    rows = read_prompts(path, rejects=rejects) if wanted == "prompts" else read_rows(path, wanted, rejects=rejects)
    records = list(rows)
    assert len(records) > 0 and rows.read >= sum(rows.rejected.values())


def check_file(name: str, data: bytes, wanted: Any, folder: Path) -> None:
    path = folder / name
    path.write_bytes(data)
    said = sentence_or_nothing(lambda: read(path, wanted))
    assert not said or path.name in said


DAMAGED = st.sampled_from(sorted(FILES)).flatmap(lambda name: st.tuples(st.just(name), mutated(FILES[name])))
RANDOM = st.tuples(st.sampled_from(sorted(FILES)), st.binary(max_size=200))


@SAMPLE
@given(file=DAMAGED | RANDOM, wanted=st.sampled_from(WANTED))
def test_damaged_files(file: tuple[str, bytes], wanted: Any, spot: Path) -> None:
    check_file(*file, wanted, spot)


@pytest.mark.slow
@SOAK
@given(file=DAMAGED | RANDOM, wanted=st.sampled_from(WANTED))
def test_damaged_files_soak(file: tuple[str, bytes], wanted: Any, spot: Path) -> None:
    check_file(*file, wanted, spot)


COLUMNS = sorted({name for one in FORMATS for need in (*one.needs, *one.uses) for name in need.split("|")} | {"meta", "id"})
STRANGE = st.tuples(
    st.sampled_from(ROWS), st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=3), st.sampled_from([*COLUMNS, ""])
).map(lambda t: {name: value for name, value in (t[0] | t[1]).items() if name != t[2]})
"""A usable row, of which some columns hold something else, and one may be missing."""


def check_rows(rows: list[dict[str, Any]], wanted: Any, folder: Path) -> None:
    """Not only read: what was read can be written again and read back."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sentence_or_nothing(lambda: read(path, wanted))
    if wanted != "prompts":
        sentence_or_nothing(lambda: write_rows(read_rows(path, wanted), folder / "again.jsonl", "trueline"))


@SAMPLE
@given(rows=st.lists(STRANGE, min_size=1, max_size=4), wanted=st.sampled_from(WANTED))
def test_strange_values(rows: list[dict[str, Any]], wanted: Any, spot: Path) -> None:
    check_rows(rows, wanted, spot)


@pytest.mark.slow
@SOAK
@given(rows=st.lists(STRANGE, min_size=1, max_size=4), wanted=st.sampled_from(WANTED))
def test_strange_values_soak(rows: list[dict[str, Any]], wanted: Any, spot: Path) -> None:
    check_rows(rows, wanted, spot)


@pytest.mark.parametrize("name", ["deep.jsonl", "deep.json", "list.json", "column.jsonl"])
def test_deep_nesting(name: str, tmp_path: Path) -> None:
    deep = "[" * 200_000 + "]" * 200_000
    text = {"deep.json": '{"text": ' + deep + "}", "list.json": f"[{deep}]"}.get(name, '{"text": ' + deep + "}\n")
    if name == "column.jsonl":
        text = json.dumps({"messages": deep}) + "\n"
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert name in sentence_or_nothing(lambda: read(tmp_path / name, None))


def test_an_arrow_file_that_claims_more_than_there_is(tmp_path: Path) -> None:
    """Found by coverage_guided: the length of a batch, 844 TB in a file of 816 bytes. Here every aligned number becomes that."""
    if "a.arrow" not in FILES:
        pytest.skip("pyarrow is not installed")
    data, said = FILES["a.arrow"], set[str]()
    for place in range(8, len(data) - 8, 8):
        (tmp_path / "a.arrow").write_bytes(data[:place] + (3 << 48 | 0x130).to_bytes(8, "little") + data[place + 8 :])
        said.add(sentence_or_nothing(lambda: read(tmp_path / "a.arrow", None)))
    assert any("it asks for more memory than there is" in one or "malloc" in one for one in said), said
    first, second = (len(ROWS[0]["prompt"]) * n for n in (1, 2))  # where the first two prompts of the column end
    place = data.index(first.to_bytes(4, "little") + second.to_bytes(4, "little"))
    (tmp_path / "a.arrow").write_bytes(data[: place + 4] + (0x70000000).to_bytes(4, "little") + data[place + 8 :])
    assert "is not readable as arrow" in sentence_or_nothing(lambda: read(tmp_path / "a.arrow", None))


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.jsonl.gz", b'{"text": "'), ("a.json.gz", b'[{"text": "'), ("b.json.gz", b'{"text": "'), ("a.csv.gz", b'text\n"'),
     ("a.txt.gz", b"")],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_fills_the_memory(
    name: str, start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little that unpacks to much, on a single line. The bound is made smaller so that the test is fast."""
    monkeypatch.setattr(readers, "LONGEST", 1 << 18)
    (tmp_path / name).write_bytes(gzip.compress(start + b"x" * (1 << 23)))
    said = sentence_or_nothing(lambda: read(tmp_path / name, None))
    assert "of more than" in said or "field larger than field limit" in said, said
