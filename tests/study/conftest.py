"""A model that trains in a blink, and preferences for polite answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.tiny import lines, tiny_model
from trueline.records import Comparison
from trueline.rows import read_rows

NOUNS = ("cat", "dog", "tree", "house", "river", "stone", "cloud", "star", "book", "door")
VERBS = ("see", "find", "hold", "want", "draw", "hide")
ROWS = [{"prompt": f"Do you {verb} the {noun}?", "chosen": f"yes {noun}", "rejected": f"no {verb}"} for verb in VERBS for noun in NOUNS]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 1 layer, 16 wide, with its tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", lines(ROWS) * 5, layers=1, width=16, context=128)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = random.Random(0).sample(ROWS, len(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs(pairs_file: Path) -> list[Comparison]:
    return [record for record in read_rows(pairs_file, Comparison) if isinstance(record, Comparison)]
