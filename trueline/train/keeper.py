"""When a run saves: on its way, when it is stopped, and when a round of it fails.

    keeper.keep()                    a checkpoint of this moment, once
    with keeper.rescue():            whatever ValueError ends the run (a judge that is gone, rewards that are all equal, a loss that is no
        keeper.begin()               number): the beginning of its round is saved, if the weights are still those, and the last good
        ...                          checkpoint is named

The same command goes on from there, and ends where a run without the failure ends. Left out: what a checkpoint holds (checkpoint);
several processes, of which the others wait in the middle of something.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueline.run import Run
from trueline.train.checkpoint import checkpoints, is_complete, prune_checkpoints, save_checkpoint
from trueline.train.config import SaveConfig
from trueline.train.feed import Feed
from trueline.train.optim import Optimizer
from trueline.train.ranks import Ranks
from trueline.train.state import TrainState


class Keeper:
    """Saves what is trained."""

    def __init__(
        self, run: Run, model: nn.Module, optimizer: Optimizer, feed: Feed, write_model: Callable[[nn.Module, Path], None],
        config: SaveConfig, ranks: Ranks, state: TrainState,
    ) -> None:  # fmt: skip
        self.run, self.model, self.optimizer, self.feed, self.write_model = run, model, optimizer, feed, write_model
        self.config, self.ranks, self.state, self.saved = config, ranks, state, state.step
        self._before = copy.deepcopy(state), feed.state()

    def begin(self) -> None:
        """A round begins: what it changes but the weights."""
        self._before = copy.deepcopy(self.state), self.feed.state()

    def keep(self) -> None:
        """A checkpoint, if there is none of this step."""
        if self.saved < self.state.step:
            self._save(self.state, self.feed.state())
            self.ranks.gather("saved")  # nobody goes on, or ends, before it is there

    def before(self, step: int) -> str:
        """What there is to go back to from before the log line of this step."""
        earlier = next((path for saved, path in checkpoints(self.run.folder) if saved <= step and is_complete(path)), None)
        if earlier is None:
            return f"no checkpoint is from before it (save_steps is {self.config.save_steps})"
        return f"{earlier} is from before it"

    @contextmanager
    def rescue(self) -> Iterator[None]:
        """Save what can be saved when a round fails."""
        try:
            yield
        except ValueError:
            if self.ranks.world == 1:
                self._leave()
            raise

    def _leave(self) -> None:
        state, position = self._before
        untouched = state.step == self.state.step  # not a step of the round was taken
        if untouched and self.saved < state.step and all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            self._save(state, position)
        whole = next((path for _, path in checkpoints(self.run.folder) if is_complete(path)), None)
        if whole is not None:
            self.run.event(f"{whole} is the last good checkpoint: a model, and the same command goes on from it")
        elif self.state.step:
            self.run.event(f"no checkpoint was saved before step {self.state.step} (save_steps is {self.config.save_steps})")

    def _save(self, state: TrainState, position: dict[str, Any]) -> None:
        if self.ranks.first:
            save_checkpoint(self.run.folder, self.model, self.optimizer, state, position, self.write_model)
            prune_checkpoints(self.run.folder, self.config.save_total_limit, state.best_step, state.step)
        self.saved = state.step
