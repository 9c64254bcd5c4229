"""The training loop, its feeds, optimizers and checkpoints. It knows no method; methods are `trueline.objectives`.

train(objective, model, rows, out=...) -> model folder
"""

from trueline.train.api import train
from trueline.train.config import TrainConfig, override

__all__ = ["TrainConfig", "override", "train"]
