"""The base model's corpus: code, documentation and documented functions of permissively licensed Python packages.

    pip install --only-binary :all: --target DIR --no-deps -r recipes/base_model_packages.txt
    python -m recipes.base_model_corpus --packages DIR --out CORPUS

    CORPUS/pairs.jsonl   documented functions (quickstart.functions.Function)
    CORPUS/code.jsonl    {"text", "source", "meta": {"kind": "code"}}     in an order drawn by seed: any prefix is a fair sample
    CORPUS/docs.jsonl    the same with kind "docs"
    CORPUS/data.json     packages with versions, licences, files, characters; what was skipped; what was held out

Held-out packages (quickstart.splits.TEST_PACKAGES) are not read; pieces that carry one of their functions are dropped and counted.
Takes about five minutes on two cores. Left out: mixing and rendering, which the base model's recipe does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from trueline.quickstart.corpus_rows import code_pieces, docstrings, prose_file, unseen
from trueline.quickstart.functions import Function, read_functions, read_source, save_functions
from trueline.quickstart.harvest import deduplicate
from trueline.quickstart.sources import Package, distributions, prose_files, standard_library
from trueline.quickstart.splits import TEST_PACKAGES, HeldOut, carries_test_package
from trueline.records import Document
from trueline.store import write_atomic


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where to look, and how much of one distribution to take."""

    packages: Path
    """Folder of `pip install --target`."""
    out: Path
    max_code_chars: int = 1_500_000
    """Per distribution, so that none dominates."""
    max_docs_chars: int = 1_500_000
    max_pairs: int = 9_000
    """Documented functions per distribution."""
    seed: int = 0
    workers: int = 2


def build(config: CorpusConfig) -> dict[str, object]:
    """Write the corpus; returns what data.json holds."""
    packages, skipped = distributions()
    more, more_skipped = distributions(folder=config.packages)
    have = {p.distribution for p in packages}
    sources = [*standard_library(), *packages, *(p for p in more if p.distribution not in have)]
    held_out = HeldOut([f for p in sources if p.name in TEST_PACKAGES for f in read_package(p)])
    sources = [p for p in sources if p.name not in TEST_PACKAGES]
    by_distribution: dict[str, list[Package]] = {}
    for package in sources:
        by_distribution.setdefault(package.distribution, []).append(package)

    functions: list[Function] = []
    documents: dict[str, list[Document]] = {"code": [], "docs": []}
    seen: set[bytes] = set()
    table, dropped = [], Counter[str]()
    with ProcessPoolExecutor(config.workers) as pool:
        for own, found, texts, counts in pool.map(
            partial(read_distribution, config=config, held_out=held_out), by_distribution.values()
        ):
            dropped += counts
            functions += found
            characters = {}
            for kind, pieces in texts.items():
                fresh = list(unseen(pieces, seen))
                characters[kind] = sum(len(d.text) for d in fresh)
                documents[kind] += fresh
            table.append(
                dict(
                    distribution=own[0].distribution,
                    version=own[0].version,
                    licence=own[0].licence,
                    files=sum(len(p.files) for p in own),
                )
                | dict(pairs=len(found), code_characters=characters["code"], docs_characters=characters["docs"])
            )
            print(f"{table[-1]}", flush=True)
    functions = deduplicate(functions, dropped)
    config.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(config.seed)
    save_functions((functions[i] for i in rng.permutation(len(functions))), config.out / "pairs.jsonl")
    for kind, pieces in documents.items():
        lines = (
            json.dumps(dict(text=pieces[i].text, source=pieces[i].source, meta=dict(pieces[i].meta)))
            for i in rng.permutation(len(pieces))
        )
        write_atomic(config.out / f"{kind}.jsonl", "\n".join(lines) + "\n")
    data = dict(
        packages=table,
        skipped=[asdict(s) for s in {s.name: s for s in [*skipped, *more_skipped]}.values()],
        held_out_packages=TEST_PACKAGES,
        held_out_functions=len(held_out.test),
        dropped=dict(sorted(dropped.items())),
        totals=dict(pairs=len(functions)) | {f"{k}_documents": len(v) for k, v in documents.items()}
        | {f"{k}_characters": sum(len(d.text) for d in v) for k, v in documents.items()}
        | dict(pair_characters=sum(len(f.body) + len(f.summary) for f in functions)),
        config={k: v for k, v in asdict(config).items() if k.startswith("max_") or k == "seed"},
    )  # fmt: skip
    write_atomic(config.out / "data.json", json.dumps(data, indent=1))
    return data


def read_package(package: Package) -> list[Function]:
    """Documented functions of a package, before duplicates are removed."""
    texts = ((path.relative_to(package.root).as_posix(), read_source(path)) for path in package.files)
    return [f for name, text in texts if text is not None for f in read_functions(text, package.name, name)]


def read_distribution(
    own: Sequence[Package], *, config: CorpusConfig, held_out: HeldOut
) -> tuple[Sequence[Package], list[Function], dict[str, list[Document]], Counter[str]]:
    """Functions and texts of one distribution within its limits, held-out code left out; files are read in an order drawn by seed."""
    functions: list[Function] = []
    texts: dict[str, list[Document]] = {"code": [], "docs": []}
    left = {"code": config.max_code_chars, "docs": config.max_docs_chars}
    dropped: Counter[str] = Counter()
    seen: set[bytes] = set()

    def take(kind: str, documents: Sequence[Document]) -> None:
        for document in unseen(documents, seen):
            if left[kind] <= 0:
                return
            if held_out.holds(document.text):
                dropped[f"{kind} piece that carries held-out code or text"] += 1
                continue
            left[kind] -= len(document.text)
            texts[kind].append(document)

    files = [(package, path) for package in own for path in package.files]
    for at in np.random.default_rng(config.seed).permutation(len(files)):
        package, path = files[at]
        name = path.relative_to(package.root).as_posix()
        if carries_test_package(name):
            dropped["file of or about a held-out package"] += 1
            continue
        text = read_source(path)
        if text is None:
            dropped["file unreadable or too large"] += 1
            continue
        for function in read_functions(text, package.name, name, dropped) if len(functions) < config.max_pairs else []:
            why = held_out.reason(function)
            if why:
                dropped[f"pair: {why}"] += 1
            else:
                functions.append(function)
        if left["code"] > 0:
            take("code", list(code_pieces(text, name)))
        if left["docs"] > 0:
            take("docs", list(docstrings(text, name)))
    for name, text in prose_files(own[0]):
        take("docs", list(prose_file(text, name)))
    return own, functions, texts, dropped


def rehearse(folder: Path) -> None:
    """The whole build, with one small package and a few texts per distribution."""
    package = folder / "packages" / "tiny"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('def add(a, b):\n    """Return the sum of two numbers."""\n    return a + b\n', encoding="utf-8")
    build(CorpusConfig(packages=folder / "packages", out=folder / "corpus", max_code_chars=2000, max_docs_chars=2000, max_pairs=20))


if __name__ == "__main__":
    print(json.dumps(build(tyro.cli(CorpusConfig))["totals"], indent=1))
