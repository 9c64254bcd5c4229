"""THE training loop. It knows no method: an objective turns rows into sums by term, the loop turns sums into steps.

    for rows in feed                       a round: the rows of one step, or fresh rollouts
      rows  = objective.annotate(rows)     reference log-probs, rewards, advantages
      for step in objective.steps(rows)    a step is a list of microbatches
        totals = weights over the step     counted before the first forward: 8 microbatches of 1 = 1 of 8
        for batch in this rank's share     terms / totals -> backward
        gradients and metrics summed over ranks -> clip -> finite check -> optimizer -> schedule -> log
      evaluate, draw samples, save         on round boundaries

Left out: what ranks tell one another (ranks), what a checkpoint is (checkpoint).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueline.objectives.base import Batch, Budget, Objective
from trueline.protocols import Crew
from trueline.records import Row
from trueline.run import Run
from trueline.train.checkpoint import prune_checkpoints, save_checkpoint
from trueline.train.config import TrainConfig
from trueline.train.data import keep_rows
from trueline.train.evaluate import evaluate, refuse_unknown_metric
from trueline.train.feed import Feed
from trueline.train.optim import Optimizer, learning_rate
from trueline.train.ranks import ALONE, Ranks
from trueline.train.signals import stop_signals
from trueline.train.state import Sums, TrainState
from trueline.train.watch import Watch, step_facts

Draw = Callable[[nn.Module], Sequence[Mapping[str, Any]]]
"""Draws a few responses from the live model: [{"prompt": ..., "response": ...}]."""


def run_loop(
    objective: Objective,
    model: nn.Module,
    optimizer: Optimizer,
    feed: Feed,
    crew: Crew,
    config: TrainConfig,
    run: Run,
    state: TrainState,
    *,
    write_model: Callable[[nn.Module, Path], None],
    eval_rows: Sequence[Row] = (),
    draw: Draw | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    """Train from `state` until it has ended, or to a signal (SystemExit, after a checkpoint)."""
    budget = Budget(rows=config.per_device_train_batch_size, tokens=config.max_tokens_per_batch)
    rounds, saved, logged = iter(feed), state.step, (time.monotonic(), state.num_tokens)
    watch, begun = Watch(run.warn), False
    refuse_unknown_metric(objective, model, eval_rows, crew, budget, config.evals.metric_for_best_model)
    with stop_signals() as stopping, run.progress(state.total_steps, objective.verb, start=state.step) as bar:
        model.train()
        while not state.ended and (rows := next(rounds, None)) is not None:
            start = state.step
            for step in objective.steps(objective.annotate(rows, crew), budget):
                if not begun:
                    run.event(step_facts(step))
                    begun = True
                ranks.seed(config.seed, state.step)
                with explain_memory(budget):
                    sums = backward(objective, model, step, crew, config.bf16, ranks)
                sums["grad_norm"] = (clip(model, config.optim.max_grad_norm), 1.0)
                refuse_nonfinite(sums, step, state.step + 1, run.folder, ranks)
                rate = learning_rate(config.optim, state.step, state.warmup_steps, state.total_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                tokens = sum(batch.layout.num_tokens for batch in step)
                state.advance(sums, tokens)
                bar.update(state.step, loss=sums["loss"][0], tokens=tokens)
                if state.step % config.logging_steps == 0 or state.step == state.total_steps:
                    now = (time.monotonic(), state.num_tokens)
                    speed, logged = (now[1] - logged[1]) / max(now[0] - logged[0], 1e-9), now
                    place = {"learning_rate": rate, "epoch": feed.epoch, "num_tokens": now[1]}
                    counts = state.counts()
                    means = state.take_means()
                    run.log(state.step, means | place | {"tokens_per_second": speed}, counts)
                    watch.metrics(means)
            crew.refresh(model, f"step-{state.step}")

            evals, passed = config.evals, (start, state.step)
            wants_save = crossed(config.save.save_steps, *passed)
            if eval_rows and (crossed(evals.eval_steps, *passed) or state.step >= state.total_steps):
                metrics, counts = evaluate(objective, model, eval_rows, crew, config.bf16, budget, ranks)
                run.log(state.step, metrics, counts)
                wants_save |= state.note_evaluation(metrics, evals) and evals.eval_steps > 0  # the best one is kept
                if state.stopped_early:
                    if state.window:  # the steps since the last line
                        place = {"learning_rate": rate, "epoch": feed.epoch, "num_tokens": state.num_tokens}
                        counts = state.counts()
                        run.log(state.step, state.take_means() | place, counts)
                    run.event(
                        f"stopped early at step {state.step}: step {state.best_step} has the best {evals.metric_for_best_model}"
                    )
            if draw is not None and ranks.first and crossed(evals.sample_steps, *passed):
                model.eval()
                samples = draw(model)
                for sample in samples:
                    run.sample(state.step, sample)
                watch.samples(samples, state.step / state.total_steps)
                model.train()
            stop = ranks.agree_to_stop(stopping)
            if (wants_save or stop or (state.ended and config.save.save_steps > 0)) and saved < state.step:
                if ranks.first:
                    save_checkpoint(run.folder, model, optimizer, state, feed.state(), write_model)
                    prune_checkpoints(run.folder, config.save.save_total_limit, state.best_step)
                saved = state.step
                ranks.gather("saved")  # nobody goes on, or ends, before it is there
            if stop and not state.ended:
                where = f"after step {state.step} of {state.total_steps}"
                run.event(f"stopped by {signal.Signals(stop).name} {where}; the same command goes on")
                raise SystemExit(128 + stop)
    return state


def backward(
    objective: Objective, model: nn.Module, step: list[Batch], crew: Crew, bf16: bool, ranks: Ranks = ALONE
) -> dict[str, tuple[float, float]]:
    """Add the gradient of a step: each term's sum over all its microbatches, divided by the term's weight over all of them.

    Each rank computes its share of the microbatches; gradients and metrics are summed over the ranks.
    """
    device = next(model.parameters()).device
    step = [replace(batch, layout=batch.layout.to(device)) for batch in step]
    found: list[tuple[str, Tensor, float]] = []
    autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=bf16)
    with torch.no_grad(), autocast():
        step = objective.prepare(model, step)
    totals = {name: sum(batch.weights[name] for batch in step) or 1.0 for name in step[0].weights}
    for batch in ranks.deal(step):
        with autocast():  # of its own: casts of weights that `prepare` left behind carry no gradient
            losses = objective.loss(model, batch, crew)
        terms = {name: term / totals[name] for name, term in losses.terms.items()}
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        once = float(batch is step[0])  # a step has one loss, of as many parts as microbatches
        parts = {"loss": loss} | ({f"loss/{name}": term for name, term in terms.items()} if len(terms) > 1 else {})
        found += [(name, part.detach(), once) for name, part in parts.items()]
        found += [(name, total, count) for name, (total, count) in losses.metrics.items()]
    sums: dict[str, tuple[float, float]] = {}
    values = torch.stack([value.float() for _, value, _ in found]).tolist() if found else []  # one wait for the device
    for (name, _, count), value in zip(found, values, strict=True):
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + value, before[1] + count)
    ranks.sum_gradients(model)
    return ranks.sum(sums)


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]; 0 is never."""
    return every > 0 and after // every > before // every


def clip(model: nn.Module, limit: float) -> float:
    """Scale the gradient down to the limit (0: no limit); its norm before."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit if limit > 0 else math.inf))


def refuse_nonfinite(sums: Sums, step: Sequence[Batch], number: int, folder: Path, ranks: Ranks) -> None:
    """Stop before a step that would ruin the weights, and keep its rows."""
    loss, norm = sums["loss"][0], sums["grad_norm"][0]
    if not (math.isfinite(loss) and math.isfinite(norm)):
        path = folder / f"nonfinite-step-{number}.json"
        if ranks.first:
            keep_rows(path, [row for batch in step for row in batch.rows])
        ranks.gather("kept")
        raise ValueError(f"step {number} has loss {loss} and gradient norm {norm}: not taken; its rows are in {path}")


@contextmanager
def explain_memory(budget: Budget) -> Iterator[None]:
    """Say what to do when the device's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory: lower max_tokens_per_batch (now {budget.tokens}) or max_length") from error
