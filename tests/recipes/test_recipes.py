"""Every recipe can be rehearsed: a few steps on little data, through the code that the real run takes. Found by folder."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "recipes"


SAMPLE = "base_model_corpus"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(p.stem, marks=[pytest.mark.sample] if p.stem == SAMPLE else [])
        for p in sorted(FOLDER.glob("[a-z]*.py"))
    ],
)
def test_recipe_rehearses(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    recipe = importlib.import_module(f"recipes.{name}")
    assert recipe.__doc__ and f"python -m recipes.{name}" in recipe.__doc__, "a recipe states its command"
    recipe.rehearse(tmp_path)
