"""Judges: what gives responses their scores.

    RuleJudge(rule)               a Python function of prompt and response
    ScorerJudge(scorer, encode)   a reward model, through the Scorer protocol

Both are `Judge`s of trueline.protocols, and so are `verifiers` (what is right is known), `llm_judge` and `votes`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trueline.protocols import Scorer
from trueline.records import Messages, Row


@dataclass(frozen=True)
class RuleJudge:
    """Scores each response by a function of prompt and response."""

    rule: Callable[[Messages, Messages], float]
    name: str = "rule"

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response. ValueError: the function failed, or gave no number."""
        return [self._one(prompt, response) for response in responses]

    def _one(self, prompt: Messages, response: Messages) -> float:
        try:
            score = self.rule(prompt, response)
        except Exception as error:  # whatever the user's function raises
            frame = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(
                f"judge {self.name} failed ({said}, {Path(frame.filename).name}:{frame.lineno}) on the response "
                f"{''.join(message.content for message in response)[:60]!r}: a rule returns a number for every response"
            ) from error
        try:
            return float(score)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"judge {self.name} returned {repr(score)[:60]} for the response "
                f"{''.join(message.content for message in response)[:60]!r}: a rule returns a number for every response"
            ) from error


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
