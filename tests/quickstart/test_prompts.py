from __future__ import annotations

import inspect

from trueline.quickstart import harvest
from trueline.quickstart.corpus_rows import code_pieces, docstrings, is_data_like, name_rows, prose_file, unseen
from trueline.quickstart.functions import Function
from trueline.quickstart.prompts import cut_body, prompt_text

READ = Function(
    name="readConfig_file",
    owner="ConfigReader",
    arguments=("path", "max_size"),
    calls=("open", "json.load", "json.loads"),
    body="with open(path) as handle:\n    return json.load(handle)",
    summary="Read the configuration.",
)


class Characters:
    """A tokenizer of one token per character."""

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_prompt_is_lower_case_words_and_then_the_body() -> None:
    assert prompt_text(READ, 500, Characters()) == (
        "name: read config file\nclass: config reader\narguments: path max size\ncalls: open json load loads\n"
        "body:\nwith open(path) as handle:\n    return json.load(handle)"
    )


def test_lines_without_content_are_left_out_and_the_body_is_cut_by_tokens() -> None:
    bare = Function(name="stop", body="self.running = False")
    assert prompt_text(bare, 12, Characters()) == "name: stop\nbody:\nself.running"
    assert prompt_text(bare, 0, Characters()) == "name: stop"
    assert cut_body("abcdef", 2, None) == "abcdef" and cut_body("abcdefg", 2, None) == "abcdef"


def test_summary_never_stands_in_the_prompt() -> None:
    assert "onfiguration" not in prompt_text(READ, 500, Characters())


def test_name_rows_tie_names_words_and_bodies() -> None:
    rows = name_rows(READ)
    assert "readConfig_file means: read config file" in rows
    assert "words: read config file\nname: readConfig_file" in rows
    assert any(row.startswith("body:\nwith open") and row.endswith("name: read config file") for row in rows)
    assert len(name_rows(Function(name="stop", body="x", summary="Stop it."))) == 2


def test_code_pieces_hold_whole_definitions_and_lose_nothing() -> None:
    text = inspect.getsource(harvest)
    pieces = list(code_pieces(text, "p.py"))
    assert len(pieces) > 2 and all(p.meta["kind"] == "code" for p in pieces)
    assert "\n".join(p.text for p in pieces).split() == text.split()
    assert max(len(p.text) for p in pieces) <= 9000
    assert all(not p.text.splitlines()[0].startswith(" ") for p in pieces)


def test_tables_and_generated_code_are_not_code() -> None:
    assert is_data_like("\n".join(f"    0x{n:04x}: {n}," for n in range(50)))
    assert is_data_like("# This file is auto-generated. Do not edit.\n" + "def f(value):\n    return value\n" * 3)
    assert is_data_like("values = '" + "abc" * 200 + "'")
    assert not is_data_like("def read(path):\n    with open(path) as handle:\n        return handle.read()\n")


def test_docstrings_and_prose_files_become_documents_once() -> None:
    doc = "Return the configuration of this program. It is read from the file at the path, and kept until the file changes on disk."
    code = f'def f():\n    """{doc}"""\n    return 1\n\ndef g():\n    """{doc}"""\n    return 2\n'
    found = list(unseen(docstrings(code, "p.py"), set()))
    assert [d.text for d in found] == [doc]
    assert [d.text for d in prose_file(doc + "\n\n\n\n" + doc, "a.md")] == [doc + "\n\n" + doc]
    assert list(prose_file("| 1 | 2 | 3 |\n" * 40, "table.md")) == []
