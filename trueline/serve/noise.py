"""Randomness that depends on the request alone: not on its neighbours, its slot, or when it runs. No torch.

    noise_key(seed, prompt, repeat, response) -> 64-bit key       one per response
    uniforms(keys_B, steps_B) -> float64 [B] in [0, 1)            a pure function of key and token number

The stream of a key is SplitMix64 (Steele, Lea, Flood 2014) read at any position, so nothing has to be kept between steps:
a response that is stopped and started again draws the same tokens. The prompt is part of the key, so one seed for many
prompts does not give them the same noise.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def noise_key(seed: int, prompt: np.ndarray, repeat: int, response: int) -> int:
    """64 bits that name a response: same seed, prompt, repeat number and response number, same key."""
    digest = blake2b(f"{seed}/{repeat}/{response}/".encode() + prompt.astype("<i4").tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def uniforms(keys_B: np.ndarray, steps_B: np.ndarray) -> np.ndarray:
    """Uniform float64 [B] in [0, 1 - 2^-52] for keys uint64 [B] at steps [B]."""
    state = keys_B + (steps_B.astype(np.uint64) + np.uint64(1)) * _GAMMA
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(12)).astype(np.float64) * 2.0**-52
