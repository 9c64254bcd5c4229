from __future__ import annotations

import pytest

from trueline.quickstart.sources import distributions, licence_of, prose_files, spdx_is_permissive, standard_library


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("MPL-2.0 AND MIT", False),
        ("GPL-3.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(GPL-2.0-only OR LGPL-2.1-only) AND MIT", False),
        ("(GPL-2.0-only OR MIT) AND (ISC)", True),
        ("LicenseRef-Proprietary", False),
        ("", False),
        ("MIT MIT", False),
    ],
)
def test_licence_expressions(expression: str, permissive: bool) -> None:
    assert spdx_is_permissive(expression) is permissive


@pytest.mark.parametrize(
    ("expression", "classifiers", "text", "permissive"),
    [
        ("", ["License :: OSI Approved :: MIT License"], "", True),
        (
            "",
            ["License :: OSI Approved :: BSD License", "License :: OSI Approved :: Mozilla Public License 2.0"],
            "",
            False,
        ),
        ("", ["License :: OSI Approved"], "Apache 2.0", True),
        ("", [], "GNU LGPL v3, see also the MIT parts", False),
        ("", [], "Permission is hereby granted, free of charge, to any person", True),
        ("", [], "", False),
        ("GPL-3.0-only", ["License :: OSI Approved :: MIT License"], "MIT", False),
    ],
)
def test_licences_of_older_metadata(expression: str, classifiers: list[str], text: str, permissive: bool) -> None:
    assert licence_of(expression, classifiers, text)[1] is permissive


def _install(folder, name: str, licence: str, files: dict[str, str], requires: str = "") -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nLicense-Expression: {licence}\n{requires}"
    (info / "METADATA").write_text(f"{head}\nA description of {name}.\n")
    (info / "RECORD").write_text("".join(f"{p},,\n" for p in [*files, f"{name}-1.0.dist-info/METADATA"]))


def test_only_permissive_packages_are_read_without_their_vendored_copies_and_tests(tmp_path) -> None:
    files = {f"good/{p}": "x = 1\n" for p in ("a.py", "_vendor/rich/b.py", "tests/c.py", "test_d.py", "sub/e.py")}
    _install(
        tmp_path,
        "good",
        "MIT",
        {**files, "good/notes.md": "Notes."},
        "Requires-Dist: needed>=1; python_version > '3'\n",
    )
    _install(tmp_path, "needed", "ISC", {"needed.py": "y = 1\n"})
    _install(tmp_path, "copyleft", "GPL-3.0-only", {"copyleft/a.py": "z = 1\n"})
    packages, skipped = distributions(folder=tmp_path)
    assert [(p.name, [f.relative_to(tmp_path).as_posix() for f in p.files]) for p in packages] == [
        ("good", ["good/a.py", "good/sub/e.py"]),
        ("needed", ["needed.py"]),
    ]
    assert [(s.name, "GPL-3.0-only" in s.reason) for s in skipped] == [("copyleft", True)]
    assert [p.name for p in distributions(["good"], tmp_path)[0]] == ["good", "needed"]
    texts = dict(prose_files(packages[0]))
    assert texts["good/notes.md"] == "Notes." and "A description of good." in texts["good/description"]


def test_the_standard_library_has_the_modules_that_are_held_out() -> None:
    names = {p.name for p in standard_library()}
    assert {"asyncio", "configparser", "email", "http", "json", "shutil", "tarfile", "urllib", "zipfile"} <= names
    assert not names & {"test", "idlelib", "site-packages", "lib2to3"}
