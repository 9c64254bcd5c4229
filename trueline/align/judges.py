"""Judges: what gives responses their scores.

    RuleJudge(rule)               a Python function of prompt and response
    ScorerJudge(scorer, encode)   a reward model, through the Scorer protocol

Both are `Judge`s of trueline.protocols. Left out: stored votes, language models as judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trueline.protocols import Scorer
from trueline.records import Messages, Row


@dataclass(frozen=True)
class RuleJudge:
    """Scores each response by a function of prompt and response."""

    rule: Callable[[Messages, Messages], float]
    name: str = "rule"

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response."""
        return [float(self.rule(prompt, response)) for response in responses]


@dataclass(frozen=True)
class ScorerJudge:
    """Scores text with a reward model. For drawn ids `align.group.scored` is exact and batches all groups."""

    scorer: Scorer
    encode: Callable[[Messages, Sequence[Messages]], Row]
    """Prompt and K responses to a Row of K sequences, in their order."""
    name: str = "reward model"

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response."""
        return [float(score) for score in self.scorer.score([self.encode(prompt, responses)])[0]]
