"""The policy-gradient loss of PPO, RLOO, GRPO and REINFORCE++: they differ in advantages and in what it is averaged over.

    ratio_n = exp(log pi(y_n) - log pi_old(y_n))                          of a token, or
            = exp(mean over the response of the same differences)         of its sequence: Zheng et al. (GSPO), 2507.18071
    L = sum_n w_n max(-A_n ratio_n, -A_n clip(ratio_n, 1 - low, 1 + high)) / W      Schulman et al. (PPO), 1707.06347, equation 7

    averaged over        w_n of a token of response i     W
    tokens               1                                tokens         PPO; DAPO, 2503.14476, equation 8
    sequences            1 / length of i                  responses      GRPO, 2402.03300; GSPO
    sums                 1                                responses      REINFORCE, RLOO: a response is one action
    constant             1 / longest possible             responses      Dr. GRPO, 2503.20783

`low` differs from `high` in DAPO's clip-higher. A response of weight 0 counts nowhere. The value loss is clipped as in PPO's code:
    L_v = sum_n 1/2 max((V_n - R_n)^2, (clip(V_n, V_old - eps, V_old + eps) - R_n)^2) / tokens

Legend: N scored tokens of a microbatch, S sequences.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Level = Literal["token", "sequence"]
Averaged = Literal["tokens", "sequences", "sums", "constant"]


class Clipped(NamedTuple):
    """The loss of each token, and what became of its ratio."""

    loss_N: Tensor
    ratio_N: Tensor
    clipped_N: Tensor
    """True where the clipped side counts: no gradient."""


def ratios(logps_N: Tensor, old_N: Tensor, sequence_of_N: Tensor, num_sequences: int, level: Level) -> Tensor:
    """pi / pi_old of every token; at the level of sequences all tokens of one share the geometric mean."""
    d_N = logps_N - old_N
    if level == "sequence":
        sums_S = d_N.new_zeros(num_sequences).index_add(0, sequence_of_N, d_N)
        d_N = (sums_S / lengths(sequence_of_N, num_sequences).clamp(min=1))[sequence_of_N]
    return d_N.exp()


def clipped_loss(ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Clipped:
    """The pessimistic of the clipped and the unclipped surrogate, as a loss."""
    free_N, held_N = -advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1 - low, 1 + high)
    return Clipped(torch.maximum(free_N, held_N), ratio_N.detach(), (held_N > free_N).detach())


def clipped_value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of every token, and whether its clipped side counts; `clip` 0 does not clip."""
    free_N = (values_N - returns_N).square()
    if not clip:
        return free_N / 2, torch.zeros_like(free_N, dtype=torch.bool)
    held_N = (values_N.clamp(old_N - clip, old_N + clip) - returns_N).square()
    return torch.maximum(free_N, held_N) / 2, (held_N > free_N).detach()


def token_weights(
    weights_S: Tensor, sequence_of_N: Tensor, averaged: Averaged, longest: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(w_n of every token, W as a scalar) from the weight of every response; `longest` is the constant's length."""
    lengths_S = lengths(sequence_of_N, len(weights_S))
    if averaged == "sequences":
        per_token_S = weights_S / lengths_S.clamp(min=1)
    else:
        per_token_S = weights_S / longest if averaged == "constant" else weights_S
    total = (weights_S * lengths_S).sum() if averaged == "tokens" else weights_S.sum()
    return per_token_S[sequence_of_N], total


def lengths(sequence_of_N: Tensor, num_sequences: int) -> Tensor:
    """Scored tokens of every sequence [S], as floats."""
    ones_N = torch.ones(len(sequence_of_N), device=sequence_of_N.device)
    return ones_N.new_zeros(num_sequences).index_add_(0, sequence_of_N, ones_N)
