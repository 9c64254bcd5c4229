"""THE training loop. It knows no method: an objective turns rows into sums by term, the loop turns sums into steps.

    for rows in feed                       a round: the rows of one step, or fresh rollouts
      rows  = objective.annotate(rows)     reference log-probs, rewards, advantages
      for step in objective.steps(rows)    a step is a list of microbatches
        totals = weights over the step     counted before the first forward: 8 microbatches of 1 = 1 of 8
        for batch in step                  terms / totals -> backward
        clip -> finite check -> optimizer -> schedule -> log
      evaluate, draw samples, save         on round boundaries

Left out: several ranks (their weights and gradients will be summed where `totals` and the gradient are complete).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueline.objectives.base import Batch, Budget, Objective
from trueline.protocols import Crew
from trueline.records import Row
from trueline.run import Run
from trueline.train.checkpoint import TrainState, prune_checkpoints, save_checkpoint
from trueline.train.config import TrainConfig
from trueline.train.evaluate import evaluate
from trueline.train.feed import Feed
from trueline.train.optim import learning_rate
from trueline.train.signals import stop_signals

Draw = Callable[[nn.Module], Sequence[Mapping[str, Any]]]
"""Draws a few responses from the live model: [{"prompt": ..., "response": ...}]."""


def run_loop(
    objective: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    feed: Feed,
    crew: Crew,
    config: TrainConfig,
    run: Run,
    state: TrainState,
    *,
    write_model: Callable[[nn.Module, Path], None],
    eval_rows: Sequence[Row] = (),
    draw: Draw | None = None,
) -> TrainState:
    """Train from `state` to its total_steps, to early stopping, or to a signal (SystemExit, after a checkpoint)."""
    budget = Budget(rows=config.per_device_train_batch_size, tokens=config.max_tokens_per_batch)
    rounds, logged, logged_tokens, saved = iter(feed), time.monotonic(), state.num_tokens, state.step

    def save() -> None:
        nonlocal saved
        if saved < state.step:
            save_checkpoint(run.folder, model, optimizer, state, feed.state(), write_model)
            prune_checkpoints(run.folder, config.save.save_total_limit, state.best_step)
            saved = state.step

    with stop_signals() as stopping, run.progress(state.total_steps, objective.verb, start=state.step) as bar:
        model.train()
        while state.step < state.total_steps and not state.done:
            rows = next(rounds, None)
            if rows is None:
                break
            first = state.step
            for step in objective.steps(objective.annotate(rows, crew), budget):
                rate = learning_rate(config.optim, state.step, warmup_steps=state.warmup_steps, total_steps=state.total_steps)
                try:
                    sums = optimizer_step(objective, model, optimizer, step, crew, config, rate)
                except torch.OutOfMemoryError as error:
                    raise ValueError(f"out of memory at step {state.step + 1}: lower max_tokens_per_batch (now {budget.tokens}) or max_length") from error
                loss, norm = sums["loss"][0], sums["grad_norm"][0]
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    path = _keep(run.folder / f"nonfinite-step-{state.step + 1}.json", step)
                    raise ValueError(f"step {state.step + 1}: loss {loss} and gradient norm {norm} are not both finite; its rows are kept in {path}")
                optimizer.step()
                tokens = sum(batch.layout.num_tokens for batch in step)
                state.step, state.num_tokens = state.step + 1, state.num_tokens + tokens
                for name, (total, count) in sums.items():
                    before = state.window.get(name, (0.0, 0.0))
                    state.window[name] = (before[0] + total, before[1] + count)
                bar.update(state.step, loss=loss, tokens=tokens)
                if state.step % config.logging_steps == 0 or state.step == state.total_steps:
                    now = time.monotonic()
                    means = {name: total / count for name, (total, count) in state.window.items() if count}
                    speed = (state.num_tokens - logged_tokens) / max(now - logged, 1e-9)
                    position = {"learning_rate": rate, "epoch": feed.epoch, "num_tokens": state.num_tokens, "tokens_per_second": speed}
                    run.log(state.step, means | position)
                    state.window, logged, logged_tokens = {}, now, state.num_tokens

            def due(every: int, first: int = first) -> bool:
                return every > 0 and state.step // every > first // every

            crew.refresh(model, f"step-{state.step}")
            if eval_rows and (due(config.evals.eval_steps) or state.step >= state.total_steps):
                metrics = evaluate(objective, model, eval_rows, crew, config, budget)
                run.log(state.step, metrics)
                if note_best(state, metrics, config) and config.evals.eval_steps > 0:
                    save()
            if draw is not None and due(config.evals.sample_steps):
                for sample in draw(model):
                    run.sample(state.step, sample)
            if due(config.save.save_steps) or (config.save.save_steps > 0 and (state.done or state.step >= state.total_steps)) or stopping:
                save()
            if stopping and state.step < state.total_steps:
                run.event(f"stopped by {stopping[0].name} after step {state.step} of {state.total_steps}; the same command goes on from here")
                raise SystemExit(128 + stopping[0].value)
    return state


def optimizer_step(
    objective: Objective, model: nn.Module, optimizer: torch.optim.Optimizer, step: list[Batch], crew: Crew, config: TrainConfig, rate: float
) -> dict[str, tuple[float, float]]:
    """Gradients of one step, clipped and ready for optimizer.step(); {metric: (sum, count)} with loss and grad_norm."""
    device = next(model.parameters()).device
    step = [replace(batch, layout=batch.layout.to(device)) for batch in step]
    optimizer.zero_grad(set_to_none=True)
    names: list[tuple[str, float]] = []
    values: list[Tensor] = []
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
        with torch.no_grad():
            step = objective.prepare(model, step)
        totals = sum((Counter(batch.weights) for batch in step), Counter[str]())
        for batch in step:
            losses = objective.loss(model, batch, crew)
            terms = {name: term / totals[name] for name, term in losses.terms.items()}
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()
            names += [("loss", 0.0)] + [(f"loss/{name}", 0.0) for name in terms if len(terms) > 1]
            values += [loss.detach()] + [term.detach() for term in terms.values() if len(terms) > 1]
            names += [(name, count) for name, (_, count) in losses.metrics.items()]
            values += [total for total, _ in losses.metrics.values()]
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    limit = config.optim.max_grad_norm if config.optim.max_grad_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(trained, limit)
    for group in optimizer.param_groups:
        group["lr"] = rate
    sums: dict[str, tuple[float, float]] = {}
    for (name, count), value in zip(names, torch.stack([value.float() for value in values]).tolist(), strict=True):
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + value, before[1] + count)
    parts = {name: (total, 1.0) for name, (total, count) in sums.items() if name == "loss" or name.startswith("loss/")}
    return sums | parts | {"grad_norm": (float(norm), 1.0)}


def note_best(state: TrainState, metrics: Mapping[str, float], config: TrainConfig) -> bool:
    """Whether this evaluation is the best so far; early stopping after too many that are not."""
    name, patience = config.evals.metric_for_best_model, config.evals.early_stopping_patience
    if name not in metrics:
        raise ValueError(f"metric_for_best_model is {name!r}, and an evaluation gives {', '.join(sorted(metrics))}")
    value, best = metrics[name], state.best_metric
    better = best is None or (value > best if config.evals.maximize else value < best)
    state.last_eval = dict(metrics)
    if better:
        state.best_metric, state.best_step, state.evaluations_without_gain = value, state.step, 0
    else:
        state.evaluations_without_gain += 1
        state.done = 0 < patience <= state.evaluations_without_gain
    return better


def _keep(path: Path, step: list[Batch]) -> Path:
    """The rows of a step, to be looked at."""
    rows = [row for batch in step for row in batch.rows]
    about = [
        {
            "key": row.key,
            "ids": [ids.tolist() for ids in row.ids],
            "scored": [scored.astype(int).tolist() for scored in row.scored],
            "numbers": {name: [str(value) for value in values] for name, values in row.numbers.items()},
        }
        for row in rows
    ]
    path.write_text(json.dumps(about), encoding="utf-8")
    return path
