"""The objective's own loss and metrics on held-out rows, under the names eval_*."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from trueline.objectives.base import Budget, Objective
from trueline.protocols import Crew
from trueline.records import Row
from trueline.train.ranks import ALONE, Ranks

ROUND = 256
"""Rows laid out at a time: bounds memory, does not change the result."""


@torch.no_grad()
def evaluate(
    objective: Objective,
    model: nn.Module,
    rows: Sequence[Row],
    crew: Crew,
    bf16: bool,
    budget: Budget,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, float], dict[str, float]]:
    """{"eval_loss": ..., "eval_<metric>": ...}: totals over all rows, each divided once; and over how many tokens or pairs
    each is a mean. Ranks share the microbatches."""
    device = next(model.parameters()).device
    terms: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    metrics: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    trained = model.training
    model.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for start in range(0, len(rows), ROUND):
            for step in objective.steps(objective.annotate(rows[start : start + ROUND], crew), budget):
                step = [replace(batch, layout=batch.layout.to(device)) for batch in step]
                for batch in ranks.deal(objective.prepare(model, step)):
                    losses = objective.loss(model, batch, crew)
                    for name, term in losses.terms.items():
                        terms[name] = (terms[name][0] + float(term), terms[name][1] + batch.weights[name])
                    for name, (total, count) in losses.metrics.items():
                        metrics[name] = (metrics[name][0] + float(total), metrics[name][1] + count)
    model.train(trained)
    summed, found = ranks.sum(terms), ranks.sum(metrics)
    loss = sum(total / count for total, count in summed.values() if count)
    means = {"eval_loss": loss} | {f"eval_{name}": total / count for name, (total, count) in found.items() if count}
    counts = {"eval_loss": summed["loss"][1]} if len(summed) == 1 and "loss" in summed else {}
    return means, counts | {f"eval_{name}": count for name, (_, count) in found.items() if count}


@torch.no_grad()
def refuse_unknown_metric(
    objective: Objective, model: nn.Module, rows: Sequence[Row], crew: Crew, budget: Budget, wanted: str
) -> None:
    """Say before training, not at its first evaluation, that there is no such metric: one row tells the names."""
    wanted = "eval_" + wanted.removeprefix("eval_")
    if not rows or wanted == "eval_loss":
        return
    device = next(model.parameters()).device
    trained = model.training
    model.eval()
    step = next(objective.steps(objective.annotate(rows[:1], crew), budget))
    (batch, *_) = objective.prepare(model, [replace(batch, layout=batch.layout.to(device)) for batch in step])
    names = ["eval_loss", *(f"eval_{name}" for name in objective.loss(model, batch, crew).metrics)]
    model.train(trained)
    if wanted not in names:
        raise ValueError(f"metric_for_best_model is {wanted!r}, and an evaluation gives {', '.join(names)}")
