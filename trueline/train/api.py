"""`train`: one call from rows to a model folder; the same call again goes on where it was stopped.

    folder = train(NextToken(), "base", rows, out="runs/one", tokenizer=tok, max_steps=1000)

Left out: what rows mean (rows), how they become ids (tokens), what a step does (loop).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trueline.models.decoder import Decoder
from trueline.models.files import fingerprint as weights_fingerprint
from trueline.models.files import load_model, save_model
from trueline.objectives.base import Objective
from trueline.protocols import Crew
from trueline.records import Row
from trueline.run import Run
from trueline.store import fingerprint
from trueline.tokens.encode import row_key
from trueline.tokens.tokenizer import Tokenizer
from trueline.train.checkpoint import TrainState, checkpoints, load_checkpoint, newest_checkpoint
from trueline.train.config import SCHEDULES, TrainConfig, flatten, identity, override
from trueline.train.feed import StoredFeed, hold_out
from trueline.train.loop import Draw, run_loop
from trueline.train.optim import adamw, warmup_of


def train(
    objective: Objective,
    model: str | Path | Decoder,
    rows: Sequence[Row],
    *,
    out: str | Path,
    tokenizer: Tokenizer | None = None,
    eval_rows: Sequence[Row] | None = None,
    crew: Crew | None = None,
    config: TrainConfig | None = None,
    draw: Draw | None = None,
    sinks: Sequence[Any] = (),
    **overrides: Any,
) -> Path:
    """Train and return the model folder `out`. Options not given are the objective's defaults, then TrainConfig's."""
    config = override(config or override(TrainConfig(), **objective.defaults), **overrides)
    held: Sequence[Row] = eval_rows or ()
    if eval_rows is None and config.evals.eval_share > 0:
        rows, held = hold_out(rows, config.evals.eval_share)
    policy = model if isinstance(model, Decoder) else load_model(model)
    total = config.total_steps(len(rows))
    data = {"rows": len(rows), "train": rows_fingerprint(rows), "eval": rows_fingerprint(held)}
    method = {"method": objective.verb} | dataclasses.asdict(objective)  # type: ignore[call-overload]
    same = {"objective": method, "model": weights_fingerprint(policy), "data": data, "config": identity(config)}
    about = {"objective": method, "model": policy.source, "data": data, "config": flatten(config)}

    def write_model(live: nn.Module, folder: Path) -> None:
        save_model(live, folder)
        if tokenizer is not None:
            tokenizer.save(folder)

    with Run(out, about, identity=same, total=total, sinks=sinks) as run:
        if run.finished:
            run.event(f"{run.folder} is finished: nothing to do (a higher max_steps would go on)")
            return run.folder
        seed_everything(config.seed)
        policy.activation_checkpointing = config.gradient_checkpointing
        policy.to(config.device)
        optimizer = adamw(policy, config.optim)
        limit = None if config.max_steps > 0 else round(config.num_train_epochs * len(rows))
        feed = StoredFeed(rows, config.rows_per_step, config.seed, limit)
        state = resume(run, policy, optimizer, feed, config, total)
        state = run_loop(objective, policy, optimizer, feed, crew or Crew(), config, run, state,
                         write_model=write_model, eval_rows=held, draw=draw)  # fmt: skip
        if config.save.load_best_model_at_end and state.best_step:
            copy_weights(policy, run.folder / f"checkpoint-{state.best_step}")
        write_model(policy, run.folder)
        run.finish({"steps": state.step, "num_tokens": state.num_tokens, **state.last_eval})
    return run.folder


def resume(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, feed: StoredFeed, config: TrainConfig, total: int) -> TrainState:
    """The state to go on from: the newest whole checkpoint's, else the start's."""
    path = newest_checkpoint(run.folder, run.event) if checkpoints(run.folder) else None
    if path is None:
        run.truncate(0)
        return TrainState(warmup_steps=warmup_of(config.optim, total), total_steps=total)
    copy_weights(model, path)
    state, position = load_checkpoint(path, model, optimizer)
    feed.load(position)
    if total != state.total_steps and config.optim.lr_scheduler_type != "constant":
        raise ValueError(
            f"{run.folder} was planned for {state.total_steps} steps and this command asks for {total}, which would change its "
            f"{config.optim.lr_scheduler_type} schedule: give max_steps = {state.total_steps}, or start anew from {path} "
            f"with another --out (one of {', '.join(SCHEDULES)}: constant can be extended)"
        )
    state.total_steps = total
    run.truncate(state.step)
    run.event(f"goes on from {path.name} of {total} steps")
    return state


def copy_weights(model: nn.Module, folder: Path) -> None:
    """The stored weights of a checkpoint into a live model."""
    with torch.no_grad():
        model.load_state_dict(load_model(folder).state_dict())


def rows_fingerprint(rows: Sequence[Row]) -> str:
    """Names the rows and their order: ids, masks and numbers."""
    return fingerprint([[row_key(row.ids, row.scored), {name: np.asarray(value) for name, value in row.numbers.items()}] for row in rows])


def seed_everything(seed: int) -> None:
    """The generators that training may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
