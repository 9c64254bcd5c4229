"""Safetensors headers that lie: one sentence each, nothing allocated, and never a traceback of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trueline.models.files import load_model, save_model
from trueline.models.header import read_header


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def f32(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header, length, says",
    [
        ({"a": f32([2], 0, 8)}, 10**15, "claims 1,000,000,000,000,000 bytes and the file has"),
        ({"a": f32([2], 0, 8)}, 2**64 - 1, "its header claims"),
        ({"a": f32([3], 0, 8)}, None, "takes 12 bytes and is said to lie at 0 to 8"),
        ({"a": f32([2**40, 2**40], 0, 8)}, None, "takes 4,8"),
        ({"a": f32([4], 0, 16)}, None, "said to lie at 0 to 16 of 8"),
        ({"a": f32([2], 0, 8), "b": f32([2], 0, 8)}, None, "b overlaps another tensor or leaves a gap"),
        ({"a": f32([1], 4, 8)}, None, "a overlaps another tensor or leaves a gap"),
        ({"a": f32([1], 0, 4)}, None, "8 bytes of data for tensors of 4"),
        ({"a": f32([-2], 0, 8)}, None, "the size or offset -2"),
        ({"a": f32([True], 0, 4)}, None, "the size or offset True"),
        ({"a": f32([2], 0, 8, "F7")}, None, "unknown type 'F7'"),
        ({"a": {"dtype": "F32"}}, None, "no table of tensors"),
        ({"a": 1}, None, "no table of tensors"),
        ([1, 2], None, "no table of tensors"),
        (b'{"a": 1, "a": 2}', None, "a name appears twice"),
        (b"\xff\xfe", None, "no table of tensors"),
        (b"[" * 100_000, None, "damaged"),
        (b"version https://git-lfs.github.com/spec/v1", None, "no table of tensors"),
    ],
)
def test_headers_that_lie(header: Any, length: int | None, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        read_header(write(tmp_path / "x.safetensors", header, bytes(8), length))


def test_headers_that_are_too_large(tmp_path: Path) -> None:
    """A sparse file: the claim fits the file and is still not read."""
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((200 << 20).to_bytes(8, "little"))
        file.truncate(300 << 20)
    with pytest.raises(ValueError, match="104,857,600 is the most that is read"):
        read_header(path)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, 0),
        "b": torch.ones(2, 3, dtype=torch.bfloat16),
        "c": torch.tensor(1.0),
        "d": torch.ones(5) > 0,
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: stored.shape for name, stored in found.items()} == {
        name: tuple(x.shape) for name, x in tensors.items()
    }
    assert found["b"].dtype == "BF16" and found["d"].dtype == "BOOL"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_give_one_sentence(
    tiny: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any bytes of the header changed, or the file cut anywhere: it loads, or it says what is wrong."""
    folder = tmp_path_factory.mktemp("m")
    path = save_model(tiny(num_hidden_layers=1, hidden_size=16), folder) / "model.safetensors"
    whole = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(whole[:8], "little")
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=3)
    ):
        whole[place] = byte
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole))) if data.draw(st.booleans()) else len(whole)])
    try:
        load_model(folder)
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)


def test_weights_of_another_kind(tiny: Any, tmp_path: Path) -> None:
    """Whole numbers are not weights; an index may only name files beside it."""
    path = save_model(tiny(), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.int32)}, path)
    with pytest.raises(ValueError, match=r"has no weights: model.norm.weight is stored as I32"):
        load_model(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for found in ({"weight_map": {"a": "../x.safetensors"}}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(found))
        with pytest.raises(ValueError, match="weight_map should name files of this folder"):
            load_model(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="should hold an object"):
        load_model(tmp_path)
