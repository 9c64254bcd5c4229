"""The training loop, its feeds, optimizers and checkpoints. It knows no method; methods are `trueline.objectives`.

    train(objective, model, rows, out=...) -> model folder
    plan(objective, model, rows) -> what that would do

The package's `trueline.train(...)` and this room share a name, and importing any file of the room binds that name to the room.
So the room can be called, and is its function.
"""

import sys
from types import ModuleType
from typing import Any

from trueline.train.api import train
from trueline.train.config import TrainConfig, override
from trueline.train.preview import Plan, plan

__all__ = ["Plan", "TrainConfig", "override", "plan", "train"]


class _Room(ModuleType):
    """A module that can be called."""

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return train(*args, **keywords)


sys.modules[__name__].__class__ = _Room
