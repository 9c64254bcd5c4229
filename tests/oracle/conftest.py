"""The recipes of the oracle, and worlds small enough for fast tests."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """oracle.world, oracle.tables, oracle.optima, oracle.main: the modules."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    parts = {"main": "", "world": "_world", "tables": "_tables", "optima": "_optima"}
    return SimpleNamespace(**{name: importlib.import_module(f"recipes.oracle{end}") for name, end in parts.items()})


@pytest.fixture
def small(oracle: Any) -> Any:
    """Two prompts, seven responses."""
    return oracle.world.make_world("smooth", 3, prompts=2, longest=2)
