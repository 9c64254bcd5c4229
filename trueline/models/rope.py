"""Rotary position embeddings with their scalings: plain, linear, Llama 3, YaRN and LongRoPE's short factors.

    rope(config, positions_T) -> cos_TR, sin_TR (R = half of a head's rotated numbers), once per forward in float32

References: RoPE 2104.09864 (the halves are rotated, as in the released weights), linear 2306.15595, YaRN 2309.00071,
LongRoPE 2402.13753, Llama 3.1's smoothed cut between wavelengths.

Left out: dynamic NTK and LongRoPE's long factors, whose frequencies depend on the length of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trueline.models.config import DecoderConfig


def frequencies(config: DecoderConfig, *, sliding: bool = False) -> tuple[Tensor, float]:
    """Inverse frequencies float32 [rotary_dim / 2], and the factor on cos and sin (1 except for YaRN and LongRoPE).

    `sliding` asks for those of layers with a window, where the config gives them their own theta.
    """
    width, theta, scaling = config.rotary_dim, config.rope_theta, config.rope_scaling
    if sliding and config.sliding_rope_theta is not None:
        theta, scaling = config.sliding_rope_theta, {}
    plain_R = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return plain_R / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(
            plain_R,
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["original_max_position_embeddings"],
        ), 1.0
    if kind == "yarn":
        return _yarn(plain_R, config)
    if kind == "longrope":
        return _longrope(plain_R, config)
    return plain_R, 1.0


def rope(config: DecoderConfig, positions_T: Tensor, *, sliding: bool = False) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, rotary_dim / 2]."""
    frequencies_R, factor = frequencies(config, sliding=sliding)
    angles_TR = positions_T.float()[:, None] * frequencies_R.to(positions_T.device)
    return angles_TR.cos() * factor, angles_TR.sin() * factor


def _llama3(plain_R: Tensor, factor: float, low: float, high: float, old_length: float) -> Tensor:
    turns_R = old_length * plain_R / (2 * math.pi)  # rotations within the old context
    keep_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return plain_R * keep_R + plain_R / factor * (1 - keep_R)


def _longrope(plain_R: Tensor, config: DecoderConfig) -> tuple[Tensor, float]:
    """The factors for sequences within the old context, which is then the longest that is computed."""
    scaling = config.rope_scaling
    old_length = scaling["original_max_position_embeddings"]
    attention, factor = scaling.get("attention_factor"), scaling.get("factor")
    factor = factor or config.max_position_embeddings / old_length
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(old_length)) if factor > 1 else 1.0
    return plain_R / torch.tensor(scaling["short_factor"], dtype=torch.float32), float(attention)


def _yarn(plain_R: Tensor, config: DecoderConfig) -> tuple[Tensor, float]:
    scaling, width = config.rope_scaling, config.rotary_dim
    factor, old_length = scaling["factor"], scaling["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        """Where a dimension makes this many turns within the old context (equation 19)."""
        return width * math.log(old_length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp_R = ((torch.arange(width // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies_R = plain_R / factor * ramp_R + plain_R * (1 - ramp_R)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = magnitude(over) / magnitude(under) if over and under else magnitude(1.0)
    return frequencies_R, float(attention)
