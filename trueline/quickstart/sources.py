"""Which Python source may be read: the standard library and installed distributions under a permissive licence.

    stdlib + distributions -> licence allow-list -> [Package(name, version, licence, files)], [skipped (name, reason)]

Vendored copies inside a package are left out: the package's licence does not speak for them, and they would carry
held-out code into training.
Tests, generated tables and stubs are left out too. Left out here: parsing (`harvest`).
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

DEPENDENCIES = (
    "torch",
    "tokenizers",
    "safetensors",
    "numpy",
    "jinja2",
    "tyro",
    "rich",
    "pyarrow",
    "huggingface_hub",
    "regex",
    "zstandard",
)
"""Where the walk over installed distributions starts when Trueline's own metadata is not there (a bare clone)."""

PERMISSIVE = frozenset(
    """
    mit mit-0 mit-cmu 0bsd bsd bsd-2-clause bsd-3-clause bsd-1-clause bsd-2-clause-patent isc isc-license apache-2.0
    psf-2.0 psf python-2.0 python-2.0.1 cnri-python unlicense zlib cc0-1.0 bsl-1.0 hpnd hpnd-sell-variant wtfpl ncsa
    postgresql blueoak-1.0.0 upl-1.0 x11 llvm-exception
    """.split()  # noqa: SIM905
)
"""SPDX identifiers that let the text be used, changed and redistributed with attribution only."""

PERMISSIVE_PHRASES = (
    r"\bmit\b",
    r"\bbsd\b|[23]-clause", r"\bapache\b", r"python software foundation|\bpsf\b", r"\bisc\b", r"\bunlicense\b", r"\bzlib\b", r"\bcc0\b",
    r"historical permission notice|\bhpnd\b", r"public domain", r"permission is hereby granted, free of charge",
    r"redistribution and use in source and binary forms",
)  # fmt: skip
COPYLEFT_PHRASES = (
    r"\ba?l?gpl|general public licen|\bmpl\b|mozilla public|\bepl\b|eclipse public|creative commons|cc-by|eupl|cddl|"
    r"proprietary|commercial|nvidia"
)

SKIPPED_FOLDERS = frozenset(
    """
    test tests testing _tests test_utils _testing __pycache__ site-packages dist-packages idlelib lib2to3 pydoc_data
    turtledemo ensurepip encodings distutils lib-dynload benchmarks asv_bench examples node_modules templates locale
    migrations
    """.split()  # noqa: SIM905
)
VENDOR_FOLDERS = frozenset(
    """
    _vendor vendor vendored _vendored vendored_deps extern externals _extern external _external third_party
    thirdparty _thirdparty libs _vendored_deps vendored_packages
    """.split()  # noqa: SIM905
)
MAX_FILE_BYTES = 600_000


@dataclass(frozen=True, kw_only=True)
class Package:
    """A distribution, or one top-level module of the standard library, and the Python files to read."""

    name: str
    """Import name of the top-level module: what TEST_PACKAGES lists."""
    distribution: str
    version: str
    licence: str
    root: Path
    """Folder that the files' paths are said relative to."""
    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A distribution that is not read, and why."""

    name: str
    version: str
    reason: str


def spdx_is_permissive(expression: str) -> bool:
    """True when the expression can be met by permissive licences: every AND part permissive, one OR part is enough."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)
    tokens = ["and" if t.lower() in ("and", "with") else "or" if t.lower() == "or" else t for t in tokens]

    def either(at: int) -> tuple[bool, int]:
        value, at = both(at)
        while at < len(tokens) and tokens[at] == "or":
            other, at = both(at + 1)
            value = value or other
        return value, at

    def both(at: int) -> tuple[bool, int]:
        value, at = term(at)
        while at < len(tokens) and tokens[at] == "and":
            other, at = term(at + 1)
            value = value and other
        return value, at

    def term(at: int) -> tuple[bool, int]:
        if at >= len(tokens):
            return False, at
        if tokens[at] == "(":
            value, at = either(at + 1)
            return value, at + 1
        return tokens[at].lower() in PERMISSIVE, at + 1

    value, end = either(0)
    return value and end == len(tokens)


def licence_of(expression: str | None, classifiers: Sequence[str], text: str | None) -> tuple[str, bool]:
    """(what the metadata says, whether it is permissive): License-Expression first, then classifiers, then the License field."""
    if expression:
        return expression, spdx_is_permissive(expression)
    said = [c.split("::")[-1].strip() for c in classifiers if c.startswith("License ::")]
    said = [s for s in said if s != "OSI Approved"]
    if said:
        return " AND ".join(said), all(_phrase_is_permissive(s) for s in said)
    first = " ".join((text or "").split())
    return (first[:60] or "not stated"), _phrase_is_permissive(first)


def _phrase_is_permissive(text: str) -> bool:
    lower = text.lower()
    return not re.search(COPYLEFT_PHRASES, lower) and any(re.search(p, lower) for p in PERMISSIVE_PHRASES)


def standard_library() -> list[Package]:
    """One Package per top-level module of the standard library, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    version = ".".join(map(str, sys.version_info[:3]))
    files: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _readable(relative.parts) and not relative.name.startswith("_sysconfigdata"):
            files.setdefault(relative.parts[0].removesuffix(".py"), []).append(path)
    return [
        Package(name=name, distribution="python", version=version, licence="PSF-2.0", root=root, files=tuple(paths))
        for name, paths in sorted(files.items())
    ]


def distributions(
    names: Iterable[str] | None = None, folder: Path | None = None
) -> tuple[list[Package], list[Skipped]]:
    """Installed distributions that may be read and those that may not.

    names   only these and what they require; None: all of them
    folder  look there (`pip install --target`) instead of in the running environment
    """
    found = importlib.metadata.distributions(path=[str(folder)]) if folder else importlib.metadata.distributions()
    by_name: dict[str, importlib.metadata.Distribution] = {}
    for dist in found:
        if dist.metadata["Name"]:
            by_name.setdefault(_canonical(dist.metadata["Name"]), dist)
    wanted = sorted(by_name) if names is None else _closure(names, by_name)
    packages, skipped = [], []
    for key in wanted:
        dist, meta = by_name[key], by_name[key].metadata.json
        licence, permissive = licence_of(
            str(meta.get("license_expression", "")), list(meta.get("classifier", [])), str(meta.get("license", ""))
        )
        if not permissive:
            skipped.append(Skipped(name=key, version=dist.version, reason=f"licence not on the allow-list: {licence}"))
            continue
        modules: dict[str, list[Path]] = {}
        for file in dist.files or ():
            if file.suffix == ".py" and ".." not in file.parts and _readable(file.parts):
                modules.setdefault(file.parts[0].removesuffix(".py"), []).append(Path(str(dist.locate_file(file))))
        root = Path(str(dist.locate_file("")))
        packages += [
            Package(
                name=name,
                distribution=key,
                version=dist.version,
                licence=licence,
                root=root,
                files=tuple(sorted(paths)),
            )
            for name, paths in sorted(modules.items())
        ]
        if not modules:
            skipped.append(Skipped(name=key, version=dist.version, reason="no Python source"))
    return packages, skipped


def own_dependencies() -> list[str]:
    """Names Trueline requires, from its metadata (extras included) where it is installed, else the core list."""
    try:
        required = importlib.metadata.requires("trueline") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    return sorted({*DEPENDENCIES, *(_requirement_name(line) for line in required)})


def _closure(names: Iterable[str], by_name: dict[str, importlib.metadata.Distribution]) -> list[str]:
    todo, seen = [_canonical(name) for name in names], set()
    while todo:
        name = todo.pop()
        if name in by_name and name not in seen:
            seen.add(name)
            todo += [
                _canonical(_requirement_name(line)) for line in by_name[name].requires or () if "extra ==" not in line
            ]
    return sorted(seen)


def _requirement_name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", line.strip())
    assert match, line
    return match.group()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _readable(parts: Sequence[str]) -> bool:
    folders, name = parts[:-1], parts[-1]
    if any(
        f.lower() in SKIPPED_FOLDERS or f.lower() in VENDOR_FOLDERS or f.endswith((".dist-info", ".data"))
        for f in folders
    ):
        return False
    return not (
        name.startswith("test_")
        or name.endswith(("_test.py", "_tests.py", "_pb2.py", "_pb2_grpc.py"))
        or name in ("conftest.py", "setup.py")
    )


def prose_files(package: Package) -> Iterable[tuple[str, str]]:
    """(path, text) of the documentation that travels with a distribution: its description and .rst, .md and .txt files."""
    for dist in importlib.metadata.distributions(path=[str(package.root)]):
        if not dist.metadata["Name"] or _canonical(dist.metadata["Name"]) != package.distribution:
            continue
        yield f"{package.distribution}/description", str(dist.metadata.json.get("description", ""))
        for file in dist.files or ():
            if (
                file.suffix in (".rst", ".md", ".txt")
                and ".." not in file.parts
                and _readable(file.parts)
                and "licen" not in str(file).lower()
            ):
                path = Path(str(dist.locate_file(file)))
                if path.stat().st_size <= MAX_FILE_BYTES:
                    yield file.as_posix(), path.read_text(encoding="utf-8", errors="replace")
