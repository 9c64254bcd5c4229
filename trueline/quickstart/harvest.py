"""Pairs written by people: Python functions and the first paragraph of their docstrings.

    files of packages --functions, on every core--> documented functions -> duplicates removed -> harvest

The order is fixed (package, file, line). A harvest is kept on disk under a key made of the packages' versions and of
this file's rules, so the second run reads it in a second. Left out: which packages are held out (`splits`), rendering
(`prompts`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from trueline.quickstart.functions import Function, as_function, normalised
from trueline.quickstart.readers import read_all
from trueline.quickstart.sources import (
    Package,
    Skipped,
    distributions,
    own_dependencies,
    standard_library,
)
from trueline.run import Bar
from trueline.store import fingerprint, write_atomic

RULES = 2
"""Raised whenever the rules of this file or of functions change, so that a kept harvest is not read by mistake."""

@dataclass(frozen=True, kw_only=True)
class Harvest:
    """What was found, and what was not read."""

    functions: tuple[Function, ...]
    packages: tuple[dict[str, str | int], ...]
    """name, distribution, version, licence, files, characters, functions."""
    skipped: tuple[Skipped, ...]
    dropped: dict[str, int]
    """Functions left out, by reason."""


def harvest(cache: Path | None = None) -> Harvest:
    """The harvest of the standard library and of Trueline's dependencies as installed here; kept under `cache`."""
    packages, skipped = distributions(own_dependencies())
    return harvest_packages([*standard_library(), *packages], skipped, cache=cache)


def harvest_packages(
    packages: Sequence[Package],
    skipped: Sequence[Skipped] = (),
    *,
    cache: Path | None = None,
) -> Harvest:
    """The harvest of these packages."""
    key = fingerprint([RULES, [[p.name, p.distribution, p.version, len(p.files)] for p in packages]])[:16]
    kept = cache / f"harvest-{key}.jsonl" if cache else None
    if kept and kept.exists():
        return _load(kept)
    functions: list[Function] = []
    dropped: Counter[str] = Counter()
    table: list[dict[str, str | int]] = []
    files = [(package.name, package.root, path) for package in packages for path in package.files]
    with Bar(len(files), "files read") as bar, closing(read_all(files)) as readings:
        done = 0
        for package in packages:
            found, characters = list[Function](), 0
            for reading in islice(readings, len(package.files)):
                done += 1
                bar.update(done)
                characters += reading.characters
                dropped += reading.dropped
                found += reading.functions
            functions += found
            table.append(
                dict(name=package.name, distribution=package.distribution, version=package.version, licence=package.licence)
                | dict(files=len(package.files), characters=characters, functions=len(found))
            )
    result = Harvest(
        functions=tuple(deduplicate(functions, dropped)),
        packages=tuple(table),
        skipped=tuple(skipped),
        dropped=dict(sorted(dropped.items())),
    )
    if kept:
        _save(result, kept)
    return result


def deduplicate(
    functions: Iterable[Function], dropped: Counter[str] | None = None, most_alike: int = 2
) -> list[Function]:
    """Without repeated bodies under one summary, and with at most `most_alike` functions of one name and summary
    (three times as many of one summary); the first found stay."""
    dropped = Counter() if dropped is None else dropped
    seen: set[tuple[str, str]] = set()
    bodies: Counter[str] = Counter()
    alike: Counter[tuple[str, str]] = Counter()
    uses: Counter[str] = Counter()
    kept = []
    for function in functions:
        said, body = normalised(function.summary), re.sub(r"\W+", " ", function.body)
        if (said, body) in seen or (len(body) > 60 and bodies[body]):
            dropped["duplicate"] += 1
        elif alike[function.name.lower(), said] >= most_alike:
            dropped["same name and summary"] += 1
        elif uses[said] >= 3 * most_alike:
            dropped["summary used too often"] += 1
        else:
            seen.add((said, body))
            bodies[body] += 1
            uses[said] += 1
            alike[function.name.lower(), said] += 1
            kept.append(function)
    return kept


def _save(result: Harvest, path: Path) -> None:
    head = dict(packages=result.packages, skipped=[asdict(s) for s in result.skipped], dropped=result.dropped)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(head) + "\n" + "".join(json.dumps(asdict(f)) + "\n" for f in result.functions))


def _load(path: Path) -> Harvest:
    head_line, *lines = path.read_text(encoding="utf-8").splitlines()
    head = json.loads(head_line)
    return Harvest(
        functions=tuple(as_function(json.loads(line)) for line in lines),
        packages=tuple(head["packages"]),
        skipped=tuple(Skipped(**s) for s in head["skipped"]),
        dropped=head["dropped"],
    )
