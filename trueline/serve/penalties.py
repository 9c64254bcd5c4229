"""What penalties and biases do to the logits of one response, kept up to date token by token. No torch.

    tally = Tally.of(sampling, prompt)      None where the sampling shifts nothing
    tally.accept(token)                     after every drawn token; costs the same however long the response is
    tally.ids_K, tally.numbers_3K           bias, ratio and minus of the K tokens that are touched at all

    logit + bias, then divided (above 0) or multiplied (below 0) by ratio, then - minus

    ratio   repetition_penalty for tokens of prompt and response, else 1 (CTRL, 1909.05858, equation 5, as in transformers)
    minus   presence_penalty + frequency_penalty * count for tokens of the response (OpenAI, vLLM), else 0

The order is that of transformers and vLLM: bias, repetition, frequency and presence.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from trueline.records import Sampling


class Tally:
    """One response's touched tokens and what is done to each."""

    def __init__(self, sampling: Sampling, prompt: np.ndarray) -> None:
        """`prompt` is int [P]; only a repetition penalty reads it."""
        self._sampling = sampling
        self._penalises = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (
            1,
            0,
            0,
        )
        repeated = np.unique(prompt) if sampling.repetition_penalty != 1 else np.empty(0, dtype=np.int64)
        biases = dict(sampling.logit_bias)
        touched = np.union1d(repeated, np.fromiter(biases, dtype=np.int64)).astype(np.int64)
        self._ids = touched
        self._numbers = np.zeros((3, len(touched)), dtype=np.float32)
        self._numbers[0] = [biases.get(token, 0.0) for token in touched.tolist()]
        self._numbers[1] = np.where(np.isin(touched, repeated), sampling.repetition_penalty, 1.0)
        self._place = {token: place for place, token in enumerate(touched.tolist())}
        self._counts: dict[int, int] = {}

    @staticmethod
    def of(sampling: Sampling, prompt: np.ndarray, ids: Iterable[int] = ()) -> Tally | None:
        """For a response that holds `ids` so far; None where nothing is shifted, which is the usual case."""
        if not sampling.shifts:
            return None
        tally = Tally(sampling, prompt)
        for token in ids:
            tally.accept(token)
        return tally

    @property
    def ids_K(self) -> np.ndarray:
        """int64 [K], each token once."""
        return self._ids[: len(self._place)]

    @property
    def numbers_3K(self) -> np.ndarray:
        """float32 [3, K]: bias, ratio, minus."""
        return self._numbers[:, : len(self._place)]

    def accept(self, token: int) -> None:
        """The response holds one more token."""
        if not self._penalises:
            return
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            more = max(32, place)  # doubled: appending costs the same on average
            self._ids = np.concatenate((self._ids, np.zeros(more, dtype=np.int64)))
            self._numbers = np.concatenate((self._numbers, np.zeros((3, more), dtype=np.float32)), axis=1)
        self._ids[place] = token
        count = self._counts[token] = self._counts.get(token, 0) + 1
        self._numbers[1, place] = self._sampling.repetition_penalty
        self._numbers[2, place] = self._sampling.presence_penalty + self._sampling.frequency_penalty * count

    def after(self, draft: Iterable[int]) -> Tally:
        """What it will be if the response goes on with these tokens: a copy."""
        copy = object.__new__(Tally)
        copy.__dict__.update(self.__dict__)
        copy._ids, copy._numbers = self._ids.copy(), self._numbers.copy()
        copy._place, copy._counts = dict(self._place), dict(self._counts)
        for token in draft:
            copy.accept(token)
        return copy
