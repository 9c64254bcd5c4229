"""One file per method. `discover` walks this folder, so a new method is a new file and nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any


def discover() -> dict[str, type[Any]]:
    """{verb: objective class}, for every frozen dataclass of this folder that has a verb."""
    found: dict[str, type[Any]] = {}
    for module in pkgutil.iter_modules(__path__):
        for thing in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(thing, type) and dataclasses.is_dataclass(thing) and "verb" in vars(thing):
                verb = vars(thing)["verb"]
                assert found.setdefault(verb, thing) is thing, f"two objectives are called {verb}"
    return dict(sorted(found.items()))
