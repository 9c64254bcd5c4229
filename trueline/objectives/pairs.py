"""Pairs of responses and who prefers which: shared by the pairwise methods.

A row of K responses gives K(K-1)/2 pairs that together weigh as much as one pair (InstructGPT, 2203.02155: a prompt is one
element whatever its K). How strongly the first of a pair is preferred, a probability:

    numbers["counts"]   c_i / (c_i + c_j)                votes, or exact probabilities; a pair nobody voted on weighs
                                                         nothing, and the row's other pairs share its weight
    numbers["rank"]     1 better, 0 worse, 1/2 a tie     a tie says that both are equally good; it is kept, unless `ties` is
                                                         "drop": then it weighs nothing, and the others share its weight
    neither             1                                responses come best first

numbers["weight"] multiplies a row's weight (its first entry counts); numbers["margin"] is read by the reward objective.

Legend: P pairs, S sequences of a microbatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueline.objectives.base import Batch
from trueline.protocols import Crew
from trueline.records import Row


class Pairs(NamedTuple):
    """Index into the sequences of a layout over the same rows."""

    first_P: Tensor
    second_P: Tensor
    preferred_P: Tensor
    """Probability that the first is preferred."""
    weight_P: Tensor
    chosen_P: Tensor
    """The more preferred of the two (the first one of a tie)."""
    rejected_P: Tensor
    decided_P: Tensor
    """1.0 where there is a preference, 0.0 for ties and for what nobody voted on."""


def pairs_of(rows: Sequence[Row], device: torch.device | str = "cpu", *, ties: str = "half") -> Pairs:
    """All pairs of all rows, row by row."""
    table: list[tuple[int, int, float, float]] = []
    start = 0
    for row in rows:
        K = len(row.ids)
        if K < 2:
            raise ValueError(f"row {row.key[:12] or 'without a key'} has {K} response: a preference needs at least 2")
        preferences = {(i, j): _preferred(row, i, j) for i in range(K) for j in range(i + 1, K)}
        if ties == "drop":
            preferences = {pair: None if p == 0.5 else p for pair, p in preferences.items()}
        share = float(row.numbers["weight"][0]) if "weight" in row.numbers else 1.0
        share /= max(1, sum(preferred is not None for preferred in preferences.values()))
        for (i, j), preferred in preferences.items():
            weight = 0.0 if preferred is None else share
            table.append((start + i, start + j, 0.5 if preferred is None else preferred, weight))
        start += K
    first, second, preferred_, weights = (np.array(column) for column in zip(*table, strict=True))
    ahead = preferred_ >= 0.5
    decided = (weights > 0) & (preferred_ != 0.5)
    integers = (
        torch.from_numpy(x.astype(np.int64))
        for x in (first, second, np.where(ahead, first, second), np.where(ahead, second, first))
    )
    first_P, second_P, chosen_P, rejected_P = (x.to(device) for x in integers)
    preferred_P, weight_P, decided_P = (
        torch.from_numpy(x.astype(np.float32)).to(device) for x in (preferred_, weights, decided)
    )
    return Pairs(first_P, second_P, preferred_P, weight_P, chosen_P, rejected_P, decided_P)


def _preferred(row: Row, i: int, j: int) -> float | None:
    """Probability that response i is preferred to j; None when nothing is known."""
    if "counts" in row.numbers:
        a, b = float(row.numbers["counts"][i]), float(row.numbers["counts"][j])
        return a / (a + b) if a + b > 0 else None
    if "rank" in row.numbers:
        a, b = float(row.numbers["rank"][i]), float(row.numbers["rank"][j])
        return 0.5 if a == b else float(a < b)
    return 1.0


def pair_weights(rows: Sequence[Row], *, ties: str = "half") -> dict[str, float]:
    """The weight of pairwise losses."""
    return {"loss": float(pairs_of(rows, ties=ties).weight_P.sum())}


def numbers_of(
    rows: Sequence[Row], name: str, device: torch.device | str = "cpu", *, missing: float | None = None
) -> Tensor:
    """One number per sequence [S], row by row; `missing` stands in for rows that have none."""
    columns = [
        np.full(len(row.ids), missing) if missing is not None and name not in row.numbers else row.numbers[name]
        for row in rows
    ]
    return torch.from_numpy(np.concatenate(columns).astype(np.float32)).to(device)


def with_reference_logps(rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
    """The rows with numbers["reference_logps"], log pi_ref per response, asked of the crew's reference where missing."""
    if all("reference_logps" in row.numbers for row in rows):
        return rows
    if crew.reference is None:
        raise ValueError("a loss against a reference policy needs one: pass crew=Crew(reference=PolicyScorer(model))")
    return [replace(row, numbers={**row.numbers, "reference_logps": logps_K})
            for row, logps_K in zip(rows, crew.reference.score(rows), strict=True)]  # fmt: skip


def summed_logps(model: Any, batch: Batch) -> Tensor:
    """log pi [S] of each response: the sum over its tokens, with gradient."""
    layout = batch.layout
    logps_N = model.token_logps(layout).logps_N
    return logps_N.new_zeros(layout.num_sequences).index_add(0, layout.sequence_of_N, logps_N)


def mean_logps(model: Any, batch: Batch) -> Tensor:
    """log pi [S] of each response divided by its number of tokens, with gradient."""
    counts = [float(scored.sum()) for row in batch.rows for scored in row.scored]
    logps_S = summed_logps(model, batch)
    return logps_S / logps_S.new_tensor(counts)


def policy_and_ratios(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """log pi [S] of each response, summed over its tokens, and log pi - log pi_ref [S]; both with gradient."""
    logps_S = summed_logps(model, batch)
    return logps_S, logps_S - numbers_of(batch.rows, "reference_logps", logps_S.device)


def implicit_reward_metrics(beta: float, logps_S: Tensor, ratio_S: Tensor, pairs: Pairs) -> dict[str, tuple[Tensor, float]]:
    """TRL's names; means over pairs with a preference. rewards = beta log(pi / pi_ref)."""
    logps_S, ratio_S = logps_S.detach(), ratio_S.detach()
    chosen_P, rejected_P = beta * ratio_S[pairs.chosen_P], beta * ratio_S[pairs.rejected_P]
    values = {
        "rewards/chosen": chosen_P,
        "rewards/rejected": rejected_P,
        "rewards/margins": chosen_P - rejected_P,
        "rewards/accuracies": (chosen_P > rejected_P).float(),
        "logps/chosen": logps_S[pairs.chosen_P],
        "logps/rejected": logps_S[pairs.rejected_P],
    }
    count = float(pairs.decided_P.sum())
    return {name: ((value_P * pairs.decided_P).sum(), count) for name, value_P in values.items()}
