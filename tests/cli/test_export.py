"""`trueline export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
Trueline = Callable[..., tuple[int, str, str]]


def test_export(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    """A tokenizer that llama.cpp does not know is refused by name; ids alone, and the tokenizer of another pattern, are written."""
    out = tmp_path / "model.gguf"
    code, _, said = trueline("export", tiny, "--out", out)
    assert code == 2 and "cuts texts by '" in said and "--ids_only" in said and not out.exists()
    code, printed, said = trueline("export", tiny, "--out", out, "--ids_only", "--type", "q8_0")
    assert code == 0 and "q8_0, context" in printed and "no tokenizer" in printed, said
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} >= {"Q8_0", "F32"}
    code, _, said = trueline("export", tiny, "--out", out, "--ids_only")
    assert code == 2 and "exists already" in said

    path = tiny / "tokenizer.json"
    ours = path.read_text(encoding="utf-8")
    try:
        pattern = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        path.write_text(json.dumps({**json.loads(ours), "pre_tokenizer": pattern}), encoding="utf-8")
        code, printed, said = trueline("export", tiny, "--out", tmp_path / "text.gguf", "--type", "f32")
    finally:
        path.write_text(ours, encoding="utf-8")
    assert code == 0 and "cut as gpt-2" in printed, said
    assert gguf.GGUFReader(tmp_path / "text.gguf").fields["tokenizer.ggml.pre"].contents() == "gpt-2"
