"""Artifacts appear whole or not at all, and say what they were made from."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueline.store import (
    MARKER,
    Store,
    canonical_json,
    directory_fingerprint,
    file_fingerprint,
    fingerprint,
    write_atomic,
)


def write_hello(folder: Path) -> None:
    (folder / "x.txt").write_text("hello")


def test_write_atomic_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "é\u2028\n")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_write_atomic_keeps_the_old_content_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_canonical_json_by_hand():
    @dataclass
    class Config:
        rate: float
        path: Path

    value = {"b": (1.0, 2.5), "a": Config(rate=-0.0, path=Path("x") / "y"), "c": {3, 1}, "d": np.float32(0.5)}
    assert canonical_json(value) == '{"a":{"path":"x/y","rate":0},"b":[1,2.5],"c":[1,3],"d":0.5}'
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))
    assert fingerprint({"a": True}) != fingerprint({"a": 1})


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), (object(), TypeError)])
def test_what_has_no_canonical_json(value, error):
    with pytest.raises(error):
        fingerprint({"a": value})


LEAVES = st.none() | st.booleans() | st.integers() | st.text("aé\u2028\"\\", max_size=4)


@settings(max_examples=50, deadline=None)
@given(st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text("ab", max_size=2), x, max_size=3)))
def test_canonical_json_is_json_of_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


def test_fingerprints_of_files_and_folders_see_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("abc")
    assert file_fingerprint(tmp_path / "a" / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    before = directory_fingerprint(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = directory_fingerprint(tmp_path)
    (tmp_path / "a" / "y").write_text("abd")
    assert len({before, renamed, directory_fingerprint(tmp_path)}) == 3


def test_put_get_lineage(tmp_path):
    store = Store(tmp_path)
    base = store.put("base", "tiny", write_hello, config={"seed": 1})
    sft = store.put("sft", "tiny", write_hello, parents=[base], config={"rate": 1e-5})
    again = store.put("sft", "tiny", write_hello, parents=["base/tiny"])
    best = store.put("dpo", "tiny-v1.2", write_hello, parents=[sft, base])
    assert (sft.reference, again.reference, best.reference) == ("sft/tiny@1", "sft/tiny@2", "dpo/tiny-v1.2@1")
    assert store.get("sft/tiny@1") == sft
    assert store.get("sft/tiny") == again
    assert again.parents == ("base/tiny@1",)
    assert [a.reference for a in store.lineage("dpo/tiny-v1.2")] == ["base/tiny@1", "sft/tiny@1", "dpo/tiny-v1.2@1"]
    assert sft.fingerprint == base.fingerprint == directory_fingerprint(sft.path)


def test_an_artifact_without_its_marker_is_invisible(tmp_path):
    store = Store(tmp_path)
    first = store.put("sft", "tiny", write_hello)
    second = store.put("sft", "tiny", write_hello)
    (second.path / MARKER).unlink()  # what a crash before the last write leaves
    assert store.get("sft/tiny") == first
    with pytest.raises(ValueError, match=r"no complete artifact 'sft/tiny@2'; it has sft/tiny@1$"):
        store.get("sft/tiny@2")
    assert store.put("sft", "tiny", write_hello).version == 3


def test_a_writer_that_fails_leaves_no_version(tmp_path):
    def fail(folder: Path) -> None:
        write_hello(folder)
        raise RuntimeError("no")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError):
        store.put("sft", "tiny", fail)
    assert list((tmp_path / "sft").iterdir()) == []


def test_names_that_could_leave_the_store_are_refused(tmp_path):
    store = Store(tmp_path)
    for name in ("../x", "a/b", "", "a@1", ".hidden"):
        with pytest.raises(ValueError, match="artifact name"):
            store.put("sft", name, write_hello)
    with pytest.raises(ValueError, match="does not name an artifact"):
        store.get("tiny")


def test_simultaneous_puts_get_different_versions(tmp_path):
    store, found = Store(tmp_path), []
    threads = [
        threading.Thread(target=lambda: found.append(store.put("a", "b", write_hello).version)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 9))


def test_rows_store_and_run_leave_torch_alone():
    code = "import sys, trueline.rows, trueline.store, trueline.run; assert not {'torch', 'pyarrow', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
