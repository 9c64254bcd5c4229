"""Logits to tokens, for a whole batch at once.

    changed_BV = bias, penalties, constraint            rows that ask for one; the others are not touched
    odds_BV = softmax(changed / temperature)
    threshold_B = max over top-k, top-p, min-p          a token below its row's threshold is dropped
    token = first place where the running sum of what is left exceeds u * its total, u from the response's own noise

Order as in transformers: bias and penalties, temperature, top-k, then top-p within what top-k left, then min-p. Tokens tied with
the last one kept are kept. Log-probs are those of log softmax(logits / temperature) of the model's own logits, before anything
is changed or dropped (temperature 1 when greedy). What a row gets does not depend on the other rows.
Legend: B rows, V vocabulary, R changed rows, K sorted places or touched tokens, N blocks of WIDTH tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueline.records import Sampling
from trueline.serve.penalties import Tally
from trueline.serve.request import TopLogps

WIDTH = 128
"""Tokens of a block: a draw looks for the block first, then within it."""
ONE_LEVEL = 4096
"""Up to so many tokens one running sum over all is faster."""
NUCLEUS = 512
"""Tokens that are sorted first when only top-p asks; a row that needs more is sorted whole."""


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
    sorted_first: int
    """Tokens of a row that are sorted at first."""

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
            sorted_first=max((s.top_k or NUCLEUS * (s.top_p < 1) for s in samplings), default=0),
        )


class Change(NamedTuple):
    """What happens to one row of logits before its token is drawn."""

    row: int
    tally: Tally | None = None
    """Penalties and biases."""
    mask: np.ndarray | None = None
    """uint8 [W]: bit i % 8 of byte i // 8 says whether token i may be drawn; tokens beyond it may not. W is equal in a batch."""


def with_float64(device: torch.device) -> torch.device:
    """Where a token is drawn: running sums need float64, and Apple's processor (mps) has none, so the CPU does it for it."""
    return torch.device("cpu") if device.type == "mps" else device


def draw(
    logits_BV: Tensor, knobs: Knobs, uniform_B: np.ndarray, changes: Sequence[Change] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one token per row -> ids int64 [B], logps float32 [B]. Overwrites the logits."""
    logits_BV = logits_BV.to(with_float64(logits_BV.device))
    if changes:
        rows_R = torch.tensor([change.row for change in changes], device=logits_BV.device)
        own_RV = _changed(logits_BV, changes, rows_R)
    if knobs.temperature_B1 is not None:
        logits_BV.div_(knobs.temperature_B1)
    odds_BV = logits_BV.softmax(1)
    likeliest_B = None if knobs.greedy_B is None else _likeliest(logits_BV)
    if knobs.all_greedy and likeliest_B is not None:
        ids_B = likeliest_B
    else:
        _truncate(odds_BV, knobs, scratch_BV=logits_BV)  # what is drawn keeps its odds, and so does the likeliest
        ids_B = _inverse_cdf(odds_BV, torch.from_numpy(uniform_B).to(odds_BV.device))
        if likeliest_B is not None and knobs.greedy_B is not None:
            ids_B = torch.where(knobs.greedy_B, likeliest_B, ids_B)
    logps_B = odds_BV.gather(1, ids_B[:, None])[:, 0].log_()
    if changes:
        if knobs.temperature_B1 is not None:
            own_RV.div_(knobs.temperature_B1.index_select(0, rows_R))
        chosen_R1 = ids_B.index_select(0, rows_R)[:, None]
        logps_B.index_copy_(0, rows_R, own_RV.log_softmax(1).gather(1, chosen_R1)[:, 0])
    return ids_B.cpu().numpy(), logps_B.cpu().numpy()


def top_logps(logits_BV: Tensor, temperatures: Sequence[float], counts: Sequence[int]) -> list[TopLogps]:
    """(token id, log-prob) of each row's `counts` likeliest tokens, likeliest first; () where the count is 0.

    Of log softmax(logits / temperature), temperature 1 when greedy (0), as in `draw`, which overwrites the logits: call this before.
    """
    rows = [row for row, count in enumerate(counts) if count]
    found: list[TopLogps] = [()] * len(counts)
    if not rows:
        return found
    divisors_R = torch.tensor([temperatures[row] or 1.0 for row in rows], device=logits_BV.device)
    own_RV = (logits_BV if len(rows) == len(counts) else logits_BV[rows]).float() / divisors_R[:, None]
    best = own_RV.log_softmax(1).topk(min(max(counts), own_RV.shape[1]), 1)
    for row, ids, logps in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
        found[row] = tuple(zip(ids[: counts[row]], logps[: counts[row]], strict=True))
    return found


def _changed(logits_BV: Tensor, changes: Sequence[Change], rows_R: Tensor) -> Tensor:
    """Applies the changes in place; returns what their rows were [R, V]."""
    V, device = logits_BV.shape[1], logits_BV.device
    own_RV = logits_BV.index_select(0, rows_R)
    tallies = [(change.row, change.tally) for change in changes if change.tally is not None]
    if tallies:
        flat = logits_BV.view(-1)
        places_K = torch.from_numpy(np.concatenate([tally.ids_K + row * V for row, tally in tallies])).to(device)
        numbers_3K = torch.from_numpy(np.concatenate([tally.numbers_3K for _, tally in tallies], axis=1)).to(device)
        bias_K, ratio_K, minus_K = numbers_3K.unbind()
        logit_K = flat.index_select(0, places_K).add_(bias_K)
        flat.index_copy_(0, places_K, torch.where(logit_K < 0, logit_K * ratio_K, logit_K / ratio_K).sub_(minus_K))
    masked = [(change.row, change.mask) for change in changes if change.mask is not None]
    if masked:
        bits_MV = np.unpackbits(np.stack([mask for _, mask in masked]), axis=1, count=V, bitorder="little")
        allowed_MV = torch.from_numpy(bits_MV).to(device).view(torch.bool)
        rows_M = rows_R if len(masked) == len(changes) else torch.tensor([row for row, _ in masked], device=device)
        own_MV = logits_BV.index_select(0, rows_M)
        logits_BV.index_copy_(0, rows_M, torch.where(allowed_MV, own_MV, -torch.inf))
    return own_RV


def _likeliest(logits_BV: Tensor) -> Tensor:
    """The first largest of each row. numpy's search is about ten times as fast as torch's on a CPU."""
    return torch.from_numpy(logits_BV.numpy().argmax(1)) if logits_BV.device.type == "cpu" else logits_BV.argmax(1)


def _inverse_cdf(odds_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """First token whose running sum exceeds u * total: never one with odds 0, as its sum equals the one before.

    In two levels: the block whose running sum does, then the same share of the way through its tokens. Running sums are
    float64, in float32 that of a large vocabulary would shift the borders; blocks are summed in float32, which changes no
    token's odds by more than the rounding of the odds themselves.
    """
    V = odds_BV.shape[1]
    uniform_B1 = uniform_B[:, None]
    if V <= ONE_LEVEL:
        return _place(odds_BV, uniform_B1)[:, 0].clamp_max_(
            V - 1
        )  # NaN sums find no place; their log-prob tells the caller
    whole = V - V % WIDTH
    block_BN = odds_BV[:, :whole].unflatten(1, (-1, WIDTH)).sum(2)
    if whole < V:
        block_BN = torch.cat((block_BN, odds_BV[:, whole:].sum(1, keepdim=True)), 1)
    sums_BN = block_BN.cumsum(1, dtype=torch.float64)
    goal_B1 = uniform_B1 * sums_BN[:, -1:]
    block_B1 = torch.searchsorted(sums_BN, goal_B1, right=True).clamp_max_(sums_BN.shape[1] - 1)
    share_B1 = (goal_B1 - sums_BN.gather(1, block_B1)).div_(block_BN.gather(1, block_B1)).add_(1)
    ids_BW = block_B1 * WIDTH + torch.arange(WIDTH, device=odds_BV.device)
    inside_BW = odds_BV.gather(1, ids_BW if whole == V else ids_BW.clamp_max(V - 1))
    if whole < V:
        inside_BW.masked_fill_(ids_BW >= V, 0)
    place_B1 = _place(inside_BW, share_B1.clamp_(0, 1 - 2**-52))
    return (block_B1 * WIDTH + place_B1)[:, 0].clamp_max_(V - 1)


def _place(odds_BV: Tensor, share_B1: Tensor) -> Tensor:
    """Where the running sum first exceeds this share (below 1) of the total, [B, 1]."""
    sums_BV = odds_BV.cumsum(1, dtype=torch.float64)
    return torch.searchsorted(sums_BV, share_B1 * sums_BV[:, -1:], right=True)


def _truncate(odds_BV: Tensor, knobs: Knobs, scratch_BV: Tensor) -> None:
    """Sets the odds of dropped tokens to 0. The scratch is overwritten: another buffer of that size costs more than the work."""
    threshold_B1 = None if knobs.min_p_B is None else odds_BV.amax(1, keepdim=True) * knobs.min_p_B[:, None]
    if knobs.top_k_B is not None or knobs.top_p_B is not None:
        nucleus_B1 = _nucleus_threshold(odds_BV, knobs)
        threshold_B1 = nucleus_B1 if threshold_B1 is None else torch.maximum(threshold_B1, nucleus_B1)
    if threshold_B1 is not None:
        torch.sub(odds_BV, threshold_B1, out=scratch_BV).ge_(0)  # in floats: four times as fast as a mask of bools
        odds_BV.mul_(scratch_BV)


def _nucleus_threshold(odds_BV: Tensor, knobs: Knobs) -> Tensor:
    """Odds of the least likely token that top-k, and top-p within it, keep, [B, 1]; 0 where a row asks for neither.

    Top-p alone needs few tokens where the model is sure: a row is sorted as far as it needs, in at most three rounds.
    """
    B, V = odds_BV.shape
    last_B1 = odds_BV.new_full((B, 1), V - 1, dtype=torch.long) if knobs.top_k_B is None else knobs.top_k_B[:, None] - 1
    first = min(knobs.sorted_first, V)
    if knobs.top_p_B is None:
        sorted_BK = _largest(odds_BV, first)
        return torch.where(last_B1 < V - 1, sorted_BK.gather(1, last_B1.clamp_max(first - 1)), 0.0)
    threshold_B1, open_B = _top_p_threshold(odds_BV, last_B1, knobs.top_p_B[:, None], first)
    for K in (16 * NUCLEUS, V):
        rows_R = open_B.nonzero()[:, 0]
        if len(rows_R) == 0:
            break
        threshold_B1[rows_R], open_B[rows_R] = _top_p_threshold(
            odds_BV[rows_R], last_B1[rows_R], knobs.top_p_B[rows_R, None], min(K, V)
        )
    return threshold_B1


def _top_p_threshold(odds_BV: Tensor, last_B1: Tensor, top_p_B1: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The threshold as far as the K largest odds tell -> [B, 1], and [B] True where they do not. K exceeds every top-k."""
    V = odds_BV.shape[1]
    sorted_BK = _largest(odds_BV, K)
    sums_BK = sorted_BK.cumsum(1, dtype=torch.float64)
    in_top_k_B1, in_top_p_B1 = last_B1 < V - 1, top_p_B1 < 1
    mass_B1 = torch.where(in_top_k_B1, sums_BK.gather(1, last_B1.clamp_max(K - 1)), 1.0)
    goal_B1 = torch.where(in_top_p_B1, top_p_B1 * mass_B1, torch.inf)
    # the smallest set whose mass reaches top_p: as many tokens as have a sum below the goal, and one more
    last_B1 = torch.minimum(last_B1, (sums_BK < goal_B1).sum(1, keepdim=True))
    asked_B1 = in_top_k_B1 | in_top_p_B1
    threshold_B1 = torch.where(asked_B1, sorted_BK.gather(1, last_B1.clamp_max(K - 1)), 0.0)
    return threshold_B1, (asked_B1 & (last_B1 >= K))[:, 0]


def _largest(odds_BV: Tensor, K: int) -> Tensor:
    """The K largest of each row, descending. numpy's sort is about five times as fast as torch's on a CPU."""
    if odds_BV.device.type != "cpu":
        return odds_BV.topk(K, 1).values
    odds = odds_BV.numpy()
    best = odds if odds.shape[1] == K else np.partition(odds, -K, axis=1)[:, -K:]
    return torch.from_numpy(np.ascontiguousarray(np.sort(best, axis=1)[:, ::-1]))
