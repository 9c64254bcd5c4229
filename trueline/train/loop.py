"""THE training loop. It knows no method: an objective turns rows into sums by term, the loop turns sums into steps.

    for rows in feed                       a round: the rows of one step, or fresh rollouts
      rows  = objective.annotate(rows)     reference log-probs, rewards, advantages
      for step in objective.steps(rows)    a step is a list of microbatches
        take_step                          gradients of all microbatches and ranks -> optimizer (step.py)
        log                                means since the last line
      evaluate, draw samples, save         on round boundaries

Left out: what a step computes (step), what ranks tell one another (ranks), when a checkpoint is saved (keeper).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trueline.models.value import policy_of
from trueline.objectives.base import Budget, Objective
from trueline.protocols import Crew
from trueline.records import Row
from trueline.run import Run
from trueline.train.config import TrainConfig
from trueline.train.evaluate import evaluate, refuse_unknown_metric
from trueline.train.feed import Feed
from trueline.train.keeper import Keeper
from trueline.train.optim import Optimizer, learning_rate
from trueline.train.ranks import ALONE, Ranks
from trueline.train.signals import stop_signals
from trueline.train.state import TrainState
from trueline.train.step import following, take_step
from trueline.train.stopwatch import Stopwatch
from trueline.train.watch import Watch, step_facts

Evaluation = Callable[[], tuple[dict[str, float], dict[str, float]]]
"""Metrics, and over how many tokens, pairs or responses each is a mean."""
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
    evaluation: Evaluation | None = None,
) -> TrainState:
    """Train from `state` until it has ended, or to a signal (SystemExit, after a checkpoint).

    `evaluation` says how good the policy is; by default the objective's loss and metrics on `eval_rows` do.
    """
    budget = Budget(rows=config.per_device_train_batch_size, tokens=config.max_tokens_per_batch)
    rounds, logged = iter(feed), (time.monotonic(), state.num_tokens)
    keeper = Keeper(run, model, optimizer, feed, write_model, config.save, ranks, state)
    watch, begun, clock = Watch(run.warn, keeper.before), False, Stopwatch()
    if evaluation is None and eval_rows:
        evaluation = partial(evaluate, objective, model, eval_rows, crew, config.bf16, budget, ranks)
    refuse_unknown_metric(objective, model, eval_rows, crew, budget, config.evals.metric_for_best_model)

    def log_window() -> None:
        """The mean since the last line."""
        nonlocal logged
        now = (time.monotonic(), state.num_tokens)
        speed, logged = (now[1] - logged[1]) / max(now[0] - logged[0], 1e-9), now
        place = {"learning_rate": rate, "epoch": feed.epoch, "num_tokens": now[1], "tokens_per_second": speed}
        counts, means = state.counts(), state.take_means()
        run.log(state.step, means | place | clock.take(), counts)
        watch.metrics(means, state.step)

    with stop_signals() as stopping, run.progress(state.total_steps, objective.verb, start=state.step) as bar, keeper.rescue():
        model.train()
        while not state.ended:
            keeper.begin()
            if (rows := next(rounds, None)) is None:
                break
            start, report = state.step, feed.report()
            state.note(report.sums)
            clock.begin(report.seconds)
            annotated = objective.annotate(rows, crew)
            clock.lap("scoring")
            steps = objective.steps(annotated, budget)
            step = next(steps, None)
            while step is not None:
                if not begun:
                    run.event(step_facts(step))
                    begun = True
                rate = learning_rate(config.optim, state.step, state.warmup_steps, state.total_steps)
                sums = take_step(
                    objective, model, optimizer, step, crew, config,
                    number=state.step + 1, rate=rate, folder=run.folder, ranks=ranks,
                )  # fmt: skip
                tokens = sum(batch.layout.num_tokens for batch in step)
                state.advance(sums, tokens)
                bar.update(state.step, loss=sums["loss"][0], tokens=tokens, note=report.note)
                clock.lap("learning")
                if state.step % config.logging_steps == 0 or state.step == state.total_steps:
                    log_window()
                step = following(steps, sums)
                if state.ended:
                    state.inside_round, step = step is not None, None
            crew.refresh(policy_of(model), f"step-{state.step}")

            evals, passed = config.evals, (start, state.step)
            wants_save = crossed(config.save.save_steps, *passed)
            if evaluation is not None and (crossed(evals.eval_steps, *passed) or state.step >= state.total_steps):
                metrics, counts = evaluation()
                run.log(state.step, metrics, counts)
                wants_save |= state.note_evaluation(metrics, evals) and evals.eval_steps > 0  # the best one is kept
                if state.stopped_early:
                    if state.window:  # the steps since the last line
                        log_window()
                    run.event(
                        f"stopped early at step {state.step}: step {state.best_step} has the best {evals.metric_for_best_model}"
                    )
            if draw is not None and ranks.first and crossed(evals.sample_steps, *passed):
                model.eval()
                samples = draw(policy_of(model))
                for sample in samples:
                    run.sample(state.step, sample)
                watch.samples(samples, state.step / state.total_steps)
                model.train()
            stop = ranks.agree_to_stop(stopping)
            if wants_save or stop or (state.ended and config.save.save_steps > 0):
                keeper.keep()
            if stop and not state.ended:
                where = f"after step {state.step} of {state.total_steps}"
                run.event(f"stopped by {signal.Signals(stop).name} {where}; the same command goes on")
                raise SystemExit(128 + stop)
    return state


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]; 0 is never."""
    return every > 0 and after // every > before // every
