"""Logits to tokens, for a whole batch at once.

    odds_BV = exp(logits / temperature - largest)      the most likely token has odds 1
    threshold_B = max over top-k, top-p, min-p          a token below its row's threshold is dropped
    token = first place where the running sum of what is left exceeds u * its total, u from the response's own noise

Order as in transformers: temperature, top-k, then top-p within what top-k left, then min-p. Tokens tied with the last one kept
are kept. Log-probs are those of log softmax(logits / temperature) before anything is dropped (temperature 1 when greedy).
Legend: B responses, V vocabulary, K sorted places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueline.records import Sampling


@dataclass(frozen=True)
class Knobs:
    """The sampling values of a batch as columns; None where no row uses one."""

    temperature_B1: Tensor | None
    greedy_B: Tensor | None
    top_k_B: Tensor | None
    """V where a row keeps all."""
    top_p_B: Tensor | None
    min_p_B: Tensor | None
    all_greedy: bool

    @staticmethod
    def of(samplings: Sequence[Sampling], vocab_size: int, device: torch.device) -> Knobs:
        """Columns from one Sampling per row, where `draw` computes for logits of this device."""
        device = with_float64(device)

        def column(values: list[float], neutral: float, dtype: torch.dtype) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)

        temperature_B = column([s.temperature or 1.0 for s in samplings], 1.0, torch.float32)
        return Knobs(
            temperature_B1=None if temperature_B is None else temperature_B[:, None],
            greedy_B=column([s.temperature == 0 for s in samplings], False, torch.bool),
            top_k_B=column([min(s.top_k or vocab_size, vocab_size) for s in samplings], vocab_size, torch.long),
            top_p_B=column([s.top_p for s in samplings], 1.0, torch.float64),
            min_p_B=column([s.min_p for s in samplings], 0.0, torch.float32),
            all_greedy=all(s.temperature == 0 for s in samplings),
        )


def with_float64(device: torch.device) -> torch.device:
    """Where a token is drawn: running sums need float64, and Apple's processor (mps) has none, so the CPU does it for it."""
    return torch.device("cpu") if device.type == "mps" else device


def draw(logits_BV: Tensor, knobs: Knobs, uniform_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws one token per row -> ids int64 [B], logps float32 [B]. Overwrites the logits."""
    logits_BV = logits_BV.to(with_float64(logits_BV.device))
    scaled_BV = logits_BV if knobs.temperature_B1 is None else logits_BV.div_(knobs.temperature_B1)
    largest_B1 = scaled_BV.amax(1, keepdim=True)
    odds_BV = (scaled_BV - largest_B1).exp_()
    total_B = odds_BV.sum(1)
    if knobs.all_greedy:
        ids_B = scaled_BV.argmax(1)
    else:
        ids_B = _inverse_cdf(_truncated(odds_BV, knobs), torch.from_numpy(uniform_B).to(odds_BV.device))
        if knobs.greedy_B is not None:
            ids_B = torch.where(knobs.greedy_B, scaled_BV.argmax(1), ids_B)
    logps_B = scaled_BV.gather(1, ids_B[:, None])[:, 0] - largest_B1[:, 0] - total_B.log()
    return ids_B.cpu().numpy(), logps_B.cpu().numpy()


def _inverse_cdf(odds_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """First token whose running sum exceeds u * total: never one with odds 0, as its sum equals the one before."""
    sums_BV = odds_BV.cumsum(1, dtype=torch.float64)  # in float32 the sum of a large vocabulary would shift the borders
    ids_B = torch.searchsorted(sums_BV, (uniform_B * sums_BV[:, -1])[:, None], right=True)[:, 0]
    return ids_B.clamp_max(sums_BV.shape[1] - 1)  # NaN sums find no place; their log-prob tells the caller


def _truncated(odds_BV: Tensor, knobs: Knobs) -> Tensor:
    """Odds with the dropped tokens at 0."""
    threshold_B = knobs.min_p_B
    if knobs.top_k_B is not None or knobs.top_p_B is not None:
        nucleus_B = _nucleus_threshold(odds_BV, knobs.top_k_B, knobs.top_p_B)
        threshold_B = nucleus_B if threshold_B is None else torch.maximum(threshold_B, nucleus_B)
    if threshold_B is None:
        return odds_BV
    return odds_BV.masked_fill(odds_BV < threshold_B[:, None], 0.0)


def _nucleus_threshold(odds_BV: Tensor, top_k_B: Tensor | None, top_p_B: Tensor | None) -> Tensor:
    """Odds of the least likely token that top-k, and top-p within it, keep."""
    V = odds_BV.shape[1]
    K = V if top_k_B is None else int(top_k_B.max())
    sorted_BK = odds_BV.sort(1, descending=True).values if K == V else odds_BV.topk(K, 1).values
    last_B = odds_BV.new_full((len(odds_BV),), K - 1, dtype=torch.long) if top_k_B is None else top_k_B - 1
    if top_p_B is not None:
        sums_BK = sorted_BK.cumsum(1, dtype=torch.float64)
        goal_B1 = top_p_B[:, None] * sums_BK.gather(1, last_B[:, None])
        # the smallest set whose mass reaches top_p: as many tokens as have a sum below the goal, and one more
        last_B = torch.minimum(last_B, (sums_BK < goal_B1).sum(1))
    return sorted_BK.gather(1, last_B[:, None])[:, 0]
