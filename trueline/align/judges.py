"""Judges: what gives responses their scores.

    RuleJudge(rule)               a Python function of prompt and response
    ScorerJudge(scorer, encode)   a reward model, through the Scorer protocol, that reads text

Both are `Judge`s of trueline.protocols, and so are `verifiers` (what is right is known), `llm_judge` and `votes`.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trueline.align.group import prompt_key
from trueline.protocols import Scorer
from trueline.records import Messages, Row


@dataclass(frozen=True)
class RuleJudge:
    """Scores each response by a function of prompt and response."""

    rule: Callable[[Messages, Messages], float]
    name: str = "rule"
    fingerprint: str = ""
    """Of the file that holds the function."""

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
    """Scores text with a reward model, whatever its tokenizer. For ids that it can read `align.group.scored` is exact."""

    scorer: Scorer
    encode: Callable[[Messages, Messages], Row | None]
    """Prompt and one response to a Row of one sequence; None: it cannot be read."""
    name: str = "reward model"
    fingerprint: str = ""
    """Of the weights, and of what turns text into ids."""
    remarks: Callable[[], list[str]] = list
    """What `encode` has to say of what it read so far."""
    unjudged: set[str] = field(default_factory=set)
    """Keys of prompts with a response that could not be read: its score is the middle of the others, which says nothing."""
    tally: Counter[str] = field(default_factory=Counter)
    """Responses: "scored", "unread"."""

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response."""
        return self.judge_all([(prompt, responses)])[0]

    def judge_all(self, asked: Sequence[tuple[Messages, Sequence[Messages]]]) -> list[list[float]]:
        """The same of many prompts; the scorer batches them."""
        encoded = [[self.encode(prompt, response) for response in responses] for prompt, responses in asked]
        rows = [together([row for row in rows_K if row is not None]) for rows_K in encoded]
        found = iter(self.scorer.score([row for row in rows if row.ids]))
        scores = [[float(score) for score in next(found)] if row.ids else [] for row in rows]
        for (prompt, responses), known in zip(asked, scores, strict=True):
            self.tally.update({"scored": len(known), "unread": len(responses) - len(known)})
            if len(known) < len(responses):
                self.unjudged.add(prompt_key(prompt))
        return [filled(rows_K, known) for rows_K, known in zip(encoded, scores, strict=True)]

    def take_unjudged(self) -> set[str]:
        """Keys of prompts since the last call."""
        found = set(self.unjudged)
        self.unjudged.clear()
        return found

    def lines(self) -> list[str]:
        """What could not be read, or not whole."""
        unread = self.tally["unread"]
        whole = f"{unread:,} of {unread + self.tally['scored']:,} responses could not be read by {self.name}"
        return [*([whole] if unread else []), *self.remarks()]


def together(rows: Sequence[Row]) -> Row:
    """Rows of one sequence as one row of them all."""
    return Row(ids=tuple(row.ids[0] for row in rows), scored=tuple(row.scored[0] for row in rows))


def filled(rows: Sequence[Row | None], known: Sequence[float]) -> list[float]:
    """A score per row, in their order: the known ones, and their mean where there is no row."""
    left, middle = iter(known), sum(known) / len(known) if known else 0.0
    return [middle if row is None else next(left) for row in rows]
