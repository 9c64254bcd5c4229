"""Every line of every kind of file arrives with its place, or with the reason it cannot be read."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.rows import readers
from trueline.rows.readers import Unreadable, find_files, is_hub_id, read_objects

ROWS = [{"text": "one\u2028line\x85\x0c"}, {"text": "zwei\r\nü"}, {"text": '"{[]}"\\'}]


def lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson", "a.json"])
def test_json_lines_end_with_newline_only(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".zst"):
        import pyarrow

        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines(ROWS))
    else:
        path.write_bytes(gzip.compress(lines(ROWS)) if name.endswith(".gz") else lines(ROWS))
    assert list(read_objects(path)) == [(f"{path}:{i}", row) for i, row in enumerate(ROWS, 1)]


def test_bad_lines_are_handed_on_with_their_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n[1]\n{"a": NaN}\n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}'
    )
    found = list(read_objects(path))
    assert [int(place.rpartition(":")[2]) for place, _ in found] == [1, 3, 4, 5, 6, 7, 8]
    reasons = [str(row) if isinstance(row, Unreadable) else row for _, row in found]
    assert reasons == [{"a": 1}, "not JSON", "not a JSON object", "not JSON", "not UTF-8", "not JSON", {"a": 2}]
    assert found[1][1].raw == '{"a":'


def test_json_list_streams_with_line_numbers(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n [\n{"a": 1},\n{"a":\n 2}, 7,\n{"a": 3}\n]\n')
    assert [(place.rpartition(":")[2], row) for place, row in read_objects(path)] == [
        ("3", {"a": 1}),
        ("4", {"a": 2}),
        ("5", "not a JSON object"),
        ("6", {"a": 3}),
    ]


TEXTS = st.text('a1 \n\u2028é"[]{},:\\', max_size=6)  # whatever could mislead a parser
OBJECTS = st.dictionaries(TEXTS, TEXTS | st.integers(-99, 99) | st.lists(TEXTS, max_size=2), max_size=3)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(OBJECTS, max_size=4), indent=st.sampled_from([None, 1]))
def test_json_lists_of_any_shape(tmp_path_factory, rows, indent):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8", newline="\n")
    assert [row for _, row in read_objects(path)] == rows


def test_json_list_larger_than_the_buffer(tmp_path):
    rows = [{"text": "x" * n, "n": n} for n in (10, 200_000, 65_536, 3, 300_000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    assert [row for _, row in read_objects(path)] == rows


@pytest.mark.parametrize("end", ['{"a": 1', ""])
def test_a_json_list_that_is_cut_off_is_an_error_with_its_line(tmp_path, end):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 0},\n' + end)
    with pytest.raises(ValueError, match=r"a\.json:2: not JSON from here on"):
        list(read_objects(path))


def test_json_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n"version": 1,\n "data": [{"text": "a"}, {"text": "b"}]}')
    assert [row for _, row in read_objects(path)] == [{"text": "a"}, {"text": "b"}]
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    assert [row for _, row in read_objects(path)] == [{"messages": [{"role": "user", "content": "a"}]}]
    path.write_text("7")
    with pytest.raises(ValueError, match="neither a JSON object nor a list"):
        list(read_objects(path))
    path.write_text('{"a": \n')
    with pytest.raises(ValueError, match="is not JSON"):
        list(read_objects(path))


def test_csv_with_long_multiline_fields_and_a_short_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'prompt,completion\n"a\nb","{"x" * 200_000}"\nonly one\nc,d\n', newline="")
    found = list(read_objects(path))
    assert found[0] == (f"{path}:2", {"prompt": "a\nb", "completion": "x" * 200_000})
    assert found[1] == (f"{path}:4", "another number of fields than columns")
    assert found[2] == (f"{path}:5", {"prompt": "c", "completion": "d"})
    tabs = tmp_path / "a.tsv"
    tabs.write_text("a\tb\n1,5\t2\n")
    assert [row for _, row in read_objects(tabs)] == [{"a": "1,5", "b": "2"}]
    path.write_text('a,b\n"1,2\n')
    with pytest.raises(ValueError, match=r"a\.csv:2: not CSV"):
        list(read_objects(path))
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="same name"):
        list(read_objects(path))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columnar_files(tmp_path, suffix):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.ipc as ipc
    import pyarrow.parquet as parquet

    rows = [{"a": "x", "m": [{"role": "user", "content": "hi", "name": None}]}, {"a": None, "m": []}]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    assert list(read_objects(path)) == [(f"{path}:1", rows[0]), (f"{path}:2", rows[1])]
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="not readable as"):
        list(read_objects(path))


def test_text_is_one_document_and_a_large_one_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert list(read_objects(path)) == [(f"{path}:1", {"text": "one\n\ntwo\n"})]
    monkeypatch.setattr(readers, "TEXT_PIECE", 10)
    text = "".join(f"line {i}\n" + "\n" * (i % 3 == 0) for i in range(20))
    path.write_text(text)
    pieces = list(read_objects(path))
    assert len(pieces) > 3
    assert "".join(row["text"] for _, row in pieces) == text
    place, row = pieces[2]
    assert text.split("\n")[int(place.rpartition(":")[2]) - 1] == row["text"].split("\n")[0]


def test_damaged_compression_is_one_sentence(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS))[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        list(read_objects(path))


def test_folders_and_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.jsonl", "1.parquet", "README", "x.bin"):
        (tmp_path / name).write_text("")
    assert [f.name for f in find_files(tmp_path)] == ["1.parquet", "2.jsonl"]
    with pytest.raises(ValueError, match=r"cannot read \.bin; readable are"):
        find_files(tmp_path / "x.bin")
    assert find_files(tmp_path / "nothing") == []
    assert is_hub_id("owner/name") and is_hub_id("owner/name:test")
    assert not is_hub_id("data/rows.jsonl") and not is_hub_id("a/b/c") and not is_hub_id("./name/x")
