"""A model small enough to train in a test, and a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import lines, tiny_model
from trueline.cli import main

PAIRS = [
    {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "Five, I think."},
    {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Tuesday."},
    {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."},
    {"prompt": "Count.", "chosen": "One, two, three.", "rejected": "Seven."},
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 2 layers, 32 wide, with its tokenizer."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", lines(PAIRS) * 20)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of preferences, one of them useless."""
    path = tmp_path / "pairs.jsonl"
    rows = [*PAIRS, {"prompt": "Same?", "chosen": "yes", "rejected": "yes"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Trueline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trueline(capsys: pytest.CaptureFixture[str]) -> Trueline:
    """Run a command in this process: its exit code, what it printed, what it complained."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
