"""Nothing of the held-out packages is trained on: looked for here by other means than the split's own hashes."""

from __future__ import annotations

import inspect
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from recipes.base_model_corpus import CorpusConfig, read_distribution
from trueline.quickstart import grounding, prompts
from trueline.quickstart.functions import Function, normalised
from trueline.quickstart.harvest import Harvest, harvest
from trueline.quickstart.sources import Package
from trueline.quickstart.splits import OVERLAP, TEST_PACKAGES, HeldOut, Split, split

RUN = 12


def _runs(text: str) -> set[tuple[str, ...]]:
    """Every run of RUN words and signs; quotes and layout do not count."""
    tokens = re.sub(r"[\"'\s]+", " ", re.sub(r"(\W)", r" \1 ", text)).split()
    return {tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)}


def leaks(parts: Split) -> list[tuple[Function, Function]]:
    """Pairs (trained on, held out) that share most of the smaller body's runs, or name and summary."""
    where: dict[tuple[str, ...], list[int]] = {}
    runs = [_runs(f.body) for f in parts.test]
    for n, own in enumerate(runs):
        for run in own:
            where.setdefault(run, []).append(n)
    said = {(f.name.lower(), re.sub(r"\W+", " ", f.summary.lower()).strip()): n for n, f in enumerate(parts.test)}
    found = []
    for function in parts.train:
        own = _runs(function.body)
        shared = Counter(n for run in own & where.keys() for n in where[run])
        met = [n for n, count in shared.items() if count > 0.7 * min(len(own), len(runs[n])) and len(runs[n]) >= RUN]
        alike = said.get((function.name.lower(), re.sub(r"\W+", " ", function.summary.lower()).strip()))
        found += [(function, parts.test[n]) for n in [*met, *([] if alike is None else [alike])]]
    return found


def test_the_standard_library_splits_without_leaks(library: Harvest, library_split: Split) -> None:
    assert len(library_split.test) > 500
    assert {f.package for f in library_split.test} <= set(TEST_PACKAGES)
    assert not {f.package for f in library_split.train} & set(TEST_PACKAGES)
    assert len(library_split.train) + len(library_split.test) + sum(library_split.removed.values()) == len(
        library.functions
    )
    assert leaks(library_split) == []
    assert sum(library_split.removed.values()) < 0.03 * len(library_split.train)


def test_the_search_for_leaks_finds_planted_ones(library_split: Split) -> None:
    long = next(f for f in library_split.test if len(f.body) > 600)
    planted = replace(library_split, train=(replace(long, package="other", name="x", summary="Else."),))
    assert len(leaks(planted)) == 1


def test_copies_with_edits_are_removed(library_split: Split) -> None:
    rng = random.Random(0)
    long = [f for f in library_split.test if len(f.body) > 500][:40]
    copies = []
    for n, f in enumerate(long):
        lines = f.body.split("\n")
        del lines[rng.randrange(len(lines))]
        copies.append(
            replace(
                f,
                package="vendored",
                path=f"vendored/a{n}.py:1",
                name=f"new_{n}",
                body="\n".join(lines),
                summary="Do it.",
            )
        )
    renamed = [
        replace(f, package="vendored", path="vendored/b.py:1", body=f"return other_{n}()") for n, f in enumerate(long)
    ]
    folder = [
        replace(f, package="tool", path="tool/_internal/rich/c.py:1", body=f"return {n}", summary="Say.")
        for n, f in enumerate(long)
    ]
    own = [
        replace(f, package="tool", path="tool/d.py:1", name=f"f{n}", body=f"return helper(a{n}, b{n})", summary="Say.")
        for n, f in enumerate(long)
    ]
    parts = split([*library_split.test, *copies, *renamed, *folder, *own])
    assert list(parts.train) == own
    assert parts.removed == {
        "copy of or adapter to a held-out package": len(folder),
        "name and summary of a test function": len(renamed),
        "near-duplicate body of a test function": len(copies),
    }


def test_short_bodies_are_compared_whole_under_the_same_name() -> None:
    short = Function(
        name="size", body="return self._size", summary="The size of it.", package="json", path="json/a.py:1"
    )
    same = replace(short, package="other", path="other/a.py:1", summary="Number of things within.")
    other = replace(same, name="length")
    assert split([short, same, other]).train == (other,)


def test_corpus_pieces_that_carry_a_test_function_are_dropped(tmp_path, library_split: Split) -> None:
    held_out = HeldOut(library_split.test)
    long = next(f for f in library_split.test if 500 < len(f.body) < 1200)
    told = next(s for s in sorted(held_out.summaries) if len(s) > 50)
    innocent = inspect.getsource(prompts)
    stolen = innocent + "\ndef g(self):\n" + "\n".join("    " + line for line in long.body.split("\n")) + "\n"
    module = f'"""A module. {"It says much of other things. " * 5}Then: {told}. And so on."""'
    spoken = module + "\n\n" + inspect.getsource(grounding)
    (tmp_path / "tool").mkdir()
    files = []
    for name, text in (("innocent", innocent), ("stolen", stolen), ("spoken", spoken)):
        files.append(tmp_path / "tool" / f"{name}.py")
        files[-1].write_text(text)
    package = Package(name="tool", distribution="tool", version="1", licence="MIT", root=tmp_path, files=tuple(files))
    _, _, texts, dropped = read_distribution(
        [package], config=CorpusConfig(packages=tmp_path, out=tmp_path), held_out=held_out
    )
    assert {
        d.source for d in texts["code"] if long.body.split("\n")[0] in d.text or told in normalised(d.text)
    } == set()
    assert "tool/innocent.py" in {d.source for d in texts["code"]}
    assert not any(told in normalised(d.text) for d in texts["docs"])
    assert dropped["code piece that carries held-out code or text"] == 2
    assert dropped["docs piece that carries held-out code or text"] == 1


@pytest.mark.slow
def test_the_whole_harvest_of_this_machine_splits_without_leaks() -> None:
    everything = harvest()
    parts = split(everything.functions)
    assert 800 <= len(parts.test) <= 1800
    assert leaks(parts) == []
    held_out = HeldOut(parts.test)
    assert np.quantile([held_out.overlap(f) for f in parts.train], 0.999) < OVERLAP
