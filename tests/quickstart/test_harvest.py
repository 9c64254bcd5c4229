"""What counts as a documented function, and that several processes find what one does."""

from __future__ import annotations

from collections import Counter

import pytest

from trueline.quickstart import readers
from trueline.quickstart.functions import (
    Function,
    clean_summary,
    load_functions,
    read_file,
    read_functions,
    save_functions,
)
from trueline.quickstart.harvest import deduplicate, harvest_packages
from trueline.quickstart.sources import Package, standard_library

SOURCE = '''
class ConfigReader:
    """A class."""

    def read_file(self, path, *, encoding="utf-8", **options):
        """Read a :class:`~pkg.Config` from ``path``
        and return it.

        Parameters
        ----------
        path : str
        """
        # a comment that must go
        with open(path, encoding=encoding) as handle:  # and this one

            return json.load(handle, **self.defaults(options))

    def __repr__(self):
        """Return the representation of this reader."""
        return "reader" + self.path

    @overload
    def other(self, x):
        """Return the other of both things."""
        return self.x[x] + 1

    def stub(self):
        """Return nothing, this is a stub."""
        raise NotImplementedError

    def silent(self):
        return self.path

if True:
    async def fetch(url):
        """Fetch the bytes at an address."""
        return await client.get(url).read()
'''


def test_reads_names_arguments_calls_body_and_summary() -> None:
    read, fetch = read_functions(SOURCE, "pkg", "pkg/config.py")
    assert (read.name, read.owner, read.arguments) == ("read_file", "ConfigReader", ("path", "encoding", "options"))
    assert read.calls == ("open", "json.load", "defaults")
    assert read.summary == "Read a Config from path and return it."
    assert read.body == (
        "with open(path, encoding=encoding) as handle:\n    return json.load(handle, **self.defaults(options))"
    )
    assert read.path == "pkg/config.py:5"
    assert (fetch.name, fetch.owner, fetch.calls) == ("fetch", "", ("read", "client.get"))


def test_every_function_left_out_has_a_reason_that_is_counted() -> None:
    dropped: Counter[str] = Counter()
    read_functions(SOURCE, "pkg", "pkg/config.py", dropped)
    assert dropped == {"dunder, test or one-letter name": 1, "overload or setter": 1, "no body": 1}


def test_syntax_errors_are_counted_not_raised() -> None:
    dropped: Counter[str] = Counter()
    assert read_functions('def f(:\n """Return a thing."""', "pkg", "p.py", dropped) == []
    assert dropped == {"file with a syntax error": 1}


@pytest.mark.parametrize(
    ("doc", "summary"),
    [
        ("Return the *first* item of `items`.\n\nMore.", "Return the first item of items."),
        ("Return the :meth:`parse <a.b.parse>` result.", "Return the parse result."),
        ("Stop the L{Reactor} of C{self}.", "Stop the Reactor of self."),
        ("Open a file.\nArgs:\n  path: it", "Open a file."),
        ("Open a file,\n   then close it.", "Open a file, then close it."),
        ("Compute the sum of the values. " + "It takes long and does much more than one would think of it.",
         "Compute the sum of the values."),
        ("See the parent class.", ""),
        ("Deprecated: use something else.", ""),
        ("Too short.", ""),
        (">>> f(1)\n2", ""),
        ("f(a, b) -> the sum of both", ""),
        ("Renvoie la valeur donn\u00e9e au d\u00e9part.", ""),
        ("x = a * b ** 2 / (c + d) of it", ""),
        ("word " * 40, ""),
    ],
)  # fmt: skip
def test_summary_is_the_first_paragraph_as_prose_or_nothing(doc: str, summary: str) -> None:
    assert clean_summary(doc) == summary


def _function(**fields: object) -> Function:
    base: dict[str, object] = dict(name="read", body="return open(path).read()", summary="Read the file at path.")
    return Function(**{**base, **fields})  # type: ignore[arg-type]


def test_duplicates_go_and_one_summary_is_not_used_without_end() -> None:
    same = [_function(), _function(path="copy.py:1"), _function(summary="READ the file, at path")]
    assert len(deduplicate(same)) == 1
    alike = [_function(body=f"return opener{i}(path).read_all()") for i in range(9)]
    assert len(deduplicate(alike, most_alike=2)) == 2
    others = [_function(name=f"read_{i}", body=f"return opener{i}(path)") for i in range(9)]
    assert len(deduplicate(others, most_alike=2)) == 6
    copied = [_function(body="x" * 80, name="a"), _function(body="x" * 80, name="b", summary="Say another thing here.")]
    assert len(deduplicate(copied)) == 1


def test_functions_survive_the_disk(tmp_path) -> None:
    functions = [
        _function(arguments=("path",), calls=("open", "a.b"), package="p", path="p.py:3"),
        _function(owner="C"),
    ]
    save_functions(functions, tmp_path / "pairs.jsonl")
    assert load_functions(tmp_path / "pairs.jsonl") == functions


def test_a_kept_harvest_is_read_back_and_keyed_by_version(tmp_path) -> None:
    file = tmp_path / "pkg" / "config.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    package = Package(
        name="pkg", distribution="pkg", version="1", licence="MIT", root=tmp_path, files=(file,)
    )  # fmt: skip
    first = harvest_packages([package], cache=tmp_path / "cache")
    assert [f.name for f in first.functions] == ["read_file", "fetch"]
    assert first.packages[0]["functions"] == 2
    file.write_text("")
    assert harvest_packages([package], cache=tmp_path / "cache") == first
    newer = Package(**{**package.__dict__, "version": "2"})
    assert harvest_packages([newer], cache=tmp_path / "cache").functions == ()


def test_the_standard_library_is_rich_and_in_a_fixed_order(library) -> None:
    assert len(library.functions) > 2500
    assert len({f.key for f in library.functions}) == len(library.functions)
    assert sum(f.summary.endswith(".") for f in library.functions) > 0.7 * len(library.functions)
    names = [f.package for f in library.functions]
    assert names == sorted(names)
    assert not any(part in f.path for f in library.functions for part in ("/tests/", "idlelib", "_vendor"))


def test_several_processes_read_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the files, and also where a process dies halfway."""
    files = [(package.name, package.root, path) for package in standard_library() for path in package.files[:4]][:30]
    alone = [read_file(*file) for file in files]
    assert sum(len(reading.functions) for reading in alone) > 20
    monkeypatch.setattr(readers, "MIN_FILES", 2)
    monkeypatch.setattr(readers.os, "cpu_count", lambda: 2)
    assert list(readers.read_all(files)) == alone
    whole, calls = readers.received, []

    def dying(stream: object) -> object:
        calls.append(stream)
        return whole(stream) if len(calls) < 10 else None  # type: ignore[arg-type]

    monkeypatch.setattr(readers, "received", dying)
    assert list(readers.read_all(files)) == alone
