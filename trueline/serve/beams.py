"""Beam search, one prompt: which beams go on, and which hypotheses are done. No cache and no model.

    search = BeamSearch(width, stop_ids, limit, length_penalty)
    moves = search.step(logps_BV)       rows: log-probs of the next token after each running beam, at first of the prompt alone
                                        moves: (row, token) of each beam that runs on; its cache is that row's, forked
    search.done, search.hypotheses      best first

    score = sum of the log-probs / tokens ** length_penalty, the end token counted (GNMT, 1609.08144, with the simpler penalty of
    transformers). Of the 2 * width best continuations (more with several stop ids, so that width of them run on) those among the
    first width that end become hypotheses, and the best width of these are kept.

The search is done when width hypotheses are kept and the best running beam, scored at its present length, is no better than the
worst of them (transformers' early_stopping=False), or at `limit` tokens, where everything ends. Sums are float32, as there.
Legend: B running beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor


class Node(NamedTuple):
    """The newest token of a beam, and the rest of it: beams that share a beginning share its nodes."""

    token: int
    logp: float
    before: Node | None


class Beam(NamedTuple):
    """A running beam."""

    node: Node | None
    sum: float


class Hypothesis(NamedTuple):
    """A beam that has ended."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    score: float


class BeamSearch:
    """The beams of one prompt."""

    def __init__(self, width: int, stop_ids: Collection[int], limit: int, length_penalty: float = 1.0) -> None:
        """`limit` is the longest response in tokens."""
        assert width >= 1 and limit >= 1
        self.width, self.stop_ids, self.limit, self.length_penalty = width, frozenset(stop_ids), limit, length_penalty
        self.beams = [Beam(None, 0.0)]
        """Running, best first; row b of `step` follows beams[b]."""
        self.length = 0
        """Tokens of each running beam."""
        self.done = False
        self._ended: list[tuple[float, Node]] = []

    def step(self, logps_BV: Tensor) -> list[tuple[int, int]]:
        """One token further -> (row, token) of each beam that runs on, best first; none when the search is done."""
        assert not self.done and len(logps_BV) == len(self.beams)
        B, V = logps_BV.shape
        sums_B = torch.tensor([beam.sum for beam in self.beams], dtype=torch.float32, device=logps_BV.device)
        candidates = min(max(2, 1 + len(self.stop_ids)) * self.width, B * V)
        best = (logps_BV.float() + sums_B[:, None]).flatten().topk(candidates)
        logps = logps_BV.flatten()[best.indices].tolist()
        self.length += 1
        moves: list[tuple[int, int]] = []
        beams: list[Beam] = []
        for rank, (total, place, logp) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), logps, strict=True)
        ):
            row, token = divmod(place, V)
            node = Node(token, logp, self.beams[row].node)
            if token in self.stop_ids or self.length == self.limit:
                if rank < self.width:
                    self._ended.append((self._score(total), node))
            elif len(beams) < self.width:
                moves.append((row, token))
                beams.append(Beam(node, total))
        self._ended.sort(key=lambda ended: -ended[0])  # stable: of equal ones the earlier stays
        del self._ended[self.width :]
        full = len(self._ended) == self.width
        self.done = not beams or (full and self._score(beams[0].sum) <= self._ended[-1][0])
        self.beams = [] if self.done else beams
        return [] if self.done else moves

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """What has ended so far, best first; `width` of them when the search is done."""
        found = []
        for score, last in self._ended:
            tokens: list[tuple[int, float]] = []
            node: Node | None = last
            while node is not None:
                tokens.append((node.token, node.logp))
                node = node.before
            ids, logps = zip(*reversed(tokens), strict=True)
            found.append(Hypothesis(ids, logps, score))
        return found

    def _score(self, total: float) -> float:
        return total / self.length**self.length_penalty
