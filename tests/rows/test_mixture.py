"""Mixtures hold their proportions, repeat by seed, and lose nothing they promise."""

import json

import pytest

from trueline.records import Document
from trueline.rows import mix


def texts(name, count):
    return [Document(text=f"{name}{i}") for i in range(count)]


def test_same_seed_same_order_and_proportions_hold():
    sources = [(texts("a", 9000), 3), (texts("b", 9000), 1)]
    first = [d.text for d in mix(sources, seed=1)]
    assert first == [d.text for d in mix(sources, seed=1)]
    assert first != [d.text for d in mix(sources, seed=2)]
    share = sum(t[0] == "a" for t in first) / len(first)
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / len(first)) ** 0.5
    assert [t for t in first if t[0] == "b"] == [f"b{i}" for i in range(sum(t[0] == "b" for t in first))]


def test_ends_with_the_first_or_the_last():
    sources = [(texts("a", 10), 1), (texts("b", 1000), 1)]
    short = mix(sources, seed=0)
    assert sum(d.text[0] == "a" for d in short) == 10
    long = mix(sources, seed=0, until="last")
    seen = [d.text for d in long]
    assert {f"b{i}" for i in range(1000)} <= set(seen) and seen.count("a0") > 10
    assert long.drawn == [sum(t[0] == c for t in seen) for c in "ab"]


def test_a_mixture_of_files_streams_twice(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": f"{name}{i}"}) + "\n" for i in range(50)) + "{\n"
        )
    rows = mix([(tmp_path / "a.jsonl", 1), (tmp_path / "b.jsonl", 1)], seed=0, until="last", record=Document)
    assert list(rows) == list(rows)
    assert rows.format == "50% TRL language modelling, plain; 50% TRL language modelling, plain"
    assert rows.rejected == {"not JSON": 2}


def test_what_cannot_be_mixed():
    with pytest.raises(ValueError, match="weight above 0"):
        mix([(texts("a", 1), 0)])
    with pytest.raises(ValueError, match="not an iterator"):
        mix([(iter(texts("a", 1)), 1)])
    with pytest.raises(ValueError, match="source 1 of the mixture is empty"):
        list(mix([([], 1)], until="last"))
