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

ROUND = 256
"""Rows laid out at a time: bounds memory, does not change the result."""


@torch.no_grad()
def evaluate(
    objective: Objective, model: nn.Module, rows: Sequence[Row], crew: Crew, bf16: bool, budget: Budget
) -> dict[str, float]:
    """{"eval_loss": ..., "eval_<metric>": ...}: totals over all rows, each divided once."""
    device = next(model.parameters()).device
    terms: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    metrics: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    trained = model.training
    model.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for start in range(0, len(rows), ROUND):
            for step in objective.steps(objective.annotate(rows[start : start + ROUND], crew), budget):
                step = [replace(batch, layout=batch.layout.to(device)) for batch in step]
                for batch in objective.prepare(model, step):
                    losses = objective.loss(model, batch, crew)
                    found = [(terms[name], term, batch.weights[name]) for name, term in losses.terms.items()]
                    found += [(metrics[name], total, count) for name, (total, count) in losses.metrics.items()]
                    for sums, total, count in found:
                        sums[0] += float(total)
                        sums[1] += count
    model.train(trained)
    loss = sum(total / count for total, count in terms.values() if count)
    return {"eval_loss": loss} | {f"eval_{name}": total / count for name, (total, count) in metrics.items() if count}
