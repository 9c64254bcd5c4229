"""Where a run goes on: its newest whole checkpoint, else the start.

Left out: what a checkpoint holds (checkpoint), what must be equal for a run to go on (run, config.identity).
"""

from __future__ import annotations

from pathlib import Path

from trueline.models.value import ActorCritic
from trueline.run import Run, read_json
from trueline.train.adapt import Model, copy_weights
from trueline.train.checkpoint import checkpoints, is_complete, load_checkpoint, newest_checkpoint
from trueline.train.config import OptimConfig
from trueline.train.feed import Feed
from trueline.train.optim import Optimizer, warmup_of
from trueline.train.state import TrainState


def resume(run: Run, model: Model | ActorCritic, optimizer: Optimizer, feed: Feed, optim: OptimConfig, total: int) -> TrainState:
    """The state to go on from: the newest whole checkpoint's, else the start's."""
    path = newest_checkpoint(run.folder, run.event) if checkpoints(run.folder) else None
    if path is None:
        if (run.folder / "finished.json").exists():
            raise ValueError(
                f"{run.folder} is finished and holds no whole checkpoint, so it cannot go on to step {total}: "
                f"train further with --model {run.folder} and another --out (a run that may be extended needs save_steps)"
            )
        run.truncate(0)
        return TrainState(warmup_steps=warmup_of(optim, total), total_steps=total)
    path = whole_round(run, path, total)
    copy_weights(model, path)
    state, position = load_checkpoint(path, model, optimizer)
    feed.load(position)
    if total != state.total_steps and optim.lr_scheduler_type != "constant":
        raise ValueError(
            f"{run.folder} has a {optim.lr_scheduler_type} schedule of {state.total_steps} steps, and this command asks "
            f"for {total}: give max_steps = {state.total_steps}, or train {path} further with another --out "
            "(only lr_scheduler_type constant can be extended)"
        )
    state.total_steps, state.inside_round = total, False
    run.truncate(state.step)
    run.event(f"goes on from {path.name} of {total} steps")
    return state


def whole_round(run: Run, newest: Path, total: int) -> Path:
    """The checkpoint to go on from to more steps than were planned: where the newest one lies inside a round of drawn responses, of
    which no checkpoint holds any, the one at the beginning of that round."""
    about = read_json(newest / "trainer_state.json", state=dict)["state"]
    if not about.get("inside_round") or total <= about["total_steps"]:
        return newest
    for step, path in checkpoints(run.folder):
        earlier = step < about["step"] and is_complete(path)
        if earlier and not read_json(path / "trainer_state.json", state=dict)["state"].get("inside_round"):
            run.event(f"{newest.name} lies inside a round, so the steps since {path.name} are taken again, with the same responses")
            return path
    run.event(f"{newest.name} lies inside a round, and no checkpoint is older: the responses that were left of it are not learned from")
    return newest
