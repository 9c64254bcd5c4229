"""One optimizer step: gradients of all its microbatches, clipped, checked, taken.

    sums = take_step(objective, model, optimizer, step, ...)      loss, gradient norm and metrics as (sum, count)

    totals = weights over the step     counted before the first forward: 8 microbatches of 1 = 1 of 8
    for batch in step                  terms / totals -> backward
    sum over ranks -> clip -> finite check -> optimizer

Left out: what a step's rows are (feeds and objectives), and what follows it (loop).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import GeneratorType

import numpy as np
import torch
from torch import Tensor, nn

from trueline.objectives.base import Batch, Objective
from trueline.protocols import Crew
from trueline.train.config import TrainConfig
from trueline.train.data import keep_rows
from trueline.train.optim import Optimizer
from trueline.train.ranks import ALONE, Ranks
from trueline.train.state import Sums


def take_step(
    objective: Objective,
    model: nn.Module,
    optimizer: Optimizer,
    step: list[Batch],
    crew: Crew,
    config: TrainConfig,
    *,
    number: int,
    rate: float,
    folder: Path,
    ranks: Ranks,
) -> dict[str, tuple[float, float]]:
    """Move the weights by one step at this learning rate; nothing moves when loss or gradient is not finite."""
    sums = backward(objective, model, step, crew, config.bf16, ranks, noise=(config.seed, number))
    sums["grad_norm"] = (clip(model, config.optim.max_grad_norm), 1.0)
    refuse_nonfinite(sums, step, number, folder, ranks)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return sums


def following(steps: Iterator[list[Batch]], sums: Sums) -> list[Batch] | None:
    """The next step of a round, or None. An objective's generator is told what the step before it measured."""
    try:
        return steps.send(sums) if isinstance(steps, GeneratorType) and _listens(steps) else next(steps)
    except StopIteration:
        return None


def _listens(steps: object) -> bool:
    """False in the middle of `yield from` a list: there is nobody to be told."""
    while isinstance(steps, GeneratorType) and steps.gi_yieldfrom is not None:
        steps = steps.gi_yieldfrom
    return isinstance(steps, GeneratorType)


def backward(
    objective: Objective, model: nn.Module, step: list[Batch], crew: Crew, bf16: bool, ranks: Ranks = ALONE,
    noise: tuple[int, int] = (0, 0),
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Add the gradient of a step: each term's sum over all its microbatches, divided by the term's weight over all of them.

    Each rank computes its share of the microbatches; gradients and metrics are summed over the ranks. `noise` is (seed, step):
    with a microbatch's number in the step it seeds what that one draws.
    """
    device = next(model.parameters()).device
    step = [replace(batch, layout=batch.layout.to(device)) for batch in step]
    found: list[tuple[str, Tensor, float]] = []
    autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=bf16)
    with torch.no_grad(), autocast():
        step = objective.prepare(model, step)
    totals = {name: sum(batch.weights[name] for batch in step) or 1.0 for name in step[0].weights}
    for place, batch in ranks.deal(list(enumerate(step))):
        (drawn_from,) = np.random.SeedSequence([*noise, place]).generate_state(1, np.uint64).tolist()
        torch.manual_seed(drawn_from)
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
        raise ValueError(
            f"step {number} has loss {loss} and gradient norm {norm}: not taken; its rows are in {path}; lower learning_rate (by "
            "ten, to begin with) and leave out bf16, from the start or from the last good checkpoint (--model CHECKPOINT --out ANOTHER)"
        )
