"""The objective's own loss and metrics on held-out rows, under the names eval_*."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from trueline.objectives.base import Budget, Objective
from trueline.protocols import Crew
from trueline.records import Row
from trueline.train.config import TrainConfig

ROUND = 256
"""Rows laid out at a time: bounds memory, does not change the result."""


@torch.no_grad()
def evaluate(objective: Objective, model: nn.Module, rows: Sequence[Row], crew: Crew, config: TrainConfig, budget: Budget) -> dict[str, float]:
    """{"eval_loss": ..., "eval_<metric>": ...}: totals over all rows, each divided once."""
    device = next(model.parameters()).device
    totals: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    terms: set[str] = set()
    trained = model.training
    model.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
        for start in range(0, len(rows), ROUND):
            for step in objective.steps(objective.annotate(rows[start : start + ROUND], crew), budget):
                step = [replace(batch, layout=batch.layout.to(device)) for batch in step]
                for batch in objective.prepare(model, step):
                    losses = objective.loss(model, batch, crew)
                    for name, term in losses.terms.items():
                        terms.add(name)
                        totals[f"term/{name}"] += float(term)
                        counts[f"term/{name}"] += batch.weights[name]
                    for name, (total, count) in losses.metrics.items():
                        totals[name] += float(total)
                        counts[name] += count
    model.train(trained)
    means = {name: totals[name] / counts[name] for name in totals if counts[name]}
    loss = sum(means.pop(f"term/{name}", 0.0) for name in terms)
    return {"eval_loss": loss} | {f"eval_{name}": value for name, value in means.items()}
