"""Rows with two responses side by side and a column that says which is better.

    {"instruction": ..., "output_1": ..., "output_2": ..., "preference": 2}         AlpacaEval
    {"instruction": ..., "response1": ..., "response2": ..., "annotator1": 1, ...}  PandaLM: annotators -> Counts
    {"conversation_a": ..., "conversation_b": ..., "winner": "model_a"}             arena battles
    {"prompt": ..., "response 1": ..., "response 2": ..., "label": 0}               anything alike

Words ("model_b", "tie", "a is slightly better") say what they mean. Numbers do not: 1 is the first response in one file
and the second in another. So numbers under other names are read only when `verdict` says what they mean
(`trueline data convert --verdict 1=first 2=second 0=tie`); a guess would train a model on the opposite of what people prefer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trueline.records import Counts, Messages, Ranking
from trueline.rows.messages import Reject, assistant, clean, parse_messages, untrained, user

FIRST, SECOND, TIE = Ranking((1, 2)), Ranking((2, 1)), Ranking((1, 1))
MEANINGS = {"first": FIRST, "second": SECOND, "tie": TIE}
PROMPTS = "prompt|instruction|question|input"
VERDICTS = "preference|label|winner|verdict|choice|preferred"


@dataclass(frozen=True)
class Shape:
    """Column names of one kind of row."""

    name: str
    first: str
    second: str
    verdict: str
    prompt: str = PROMPTS

    @property
    def needs(self) -> tuple[str, ...]:
        prompt = () if self.name == "arena battles" else (self.prompt,)
        return (*prompt, self.first, self.second, self.verdict)

    @property
    def uses(self) -> tuple[str, ...]:
        return ("input", "annotator2", "annotator3", "annotator4", "annotator5")


SHAPES = (
    Shape("AlpacaEval annotations", "output_1", "output_2", "preference", "instruction"),
    Shape("PandaLM annotations", "response1", "response2", "annotator1", "instruction"),
    Shape("arena battles", "conversation_a", "conversation_b", "winner"),
    *(
        Shape("two responses and a verdict", f"{word}{first}", f"{word}{second}", VERDICTS)
        for word in ("response", "output", "completion", "answer")
        for first, second in (("_a", "_b"), ("_1", "_2"), ("1", "2"), (" 1", " 2"), ("_0", "_1"))
    ),
)


def read(
    row: Mapping[str, Any], meaning: Mapping[str, str] | None, notes: Counter[str]
) -> tuple[Messages, tuple[Messages, Messages], Ranking | Counts]:
    """Prompt, the two responses, and the judgement."""
    present = {name for name, value in row.items() if value is not None}
    shape = next((s for s in SHAPES if all(set(need.split("|")) & present for need in s.needs)), None)
    if shape is None:
        raise Reject("no prompt, two responses and verdict")
    if shape.name == "arena battles":
        return _battle(row, notes, meaning)
    asked = next(row[name] for name in shape.prompt.split("|") if name in present)
    given = row.get("input")
    if isinstance(given, str) and given.strip() and given != asked:
        asked = f"{asked}\n\n{given}"
    prompt = (user(asked),) if isinstance(asked, str) else untrained(parse_messages(asked, "prompt", notes))
    first, second = (_answer(row[name], notes) for name in (shape.first, shape.second))
    if shape.name == "PandaLM annotations":
        return (
            prompt,
            (first, second),
            _votes([row[name] for name in sorted(present) if re.fullmatch(r"annotator\d+", name)]),
        )
    value = next(row[name] for name in shape.verdict.split("|") if name in present)
    if shape.name == "AlpacaEval annotations" and meaning is None:
        return prompt, (first, second), _alpaca_eval(value)
    return prompt, (first, second), verdict(value, meaning)


def _answer(value: Any, notes: Counter[str]) -> Messages:
    if not isinstance(value, str | list | Mapping):
        raise Reject("a response is neither text nor messages")
    return (assistant(value),) if isinstance(value, str) else parse_messages(value, "a response", notes)


def verdict(value: Any, meaning: Mapping[str, str] | None) -> Ranking:
    """What one value of a verdict column says."""
    said = str(value).strip()
    if meaning is not None:
        found = meaning.get(said, meaning.get(said.removesuffix(".0")))
        if found not in MEANINGS:
            raise Reject(f"verdict {said[:20]!r} was given no meaning (first, second or tie)")
        return MEANINGS[found]
    words = re.sub(r"[^a-z]+", " ", said.lower()).split()
    if "tie" in words or "equal" in words or "both" in words or "bothbad" in words:
        return TIE
    sides = [side for side in (_side(word) for word in words) if side]
    if len(set(sides)) != 1:
        raise Reject(
            f"verdict {said[:20]!r} needs a meaning: trueline data convert --verdict {said[:20]}=first (or second, or tie), "
            "a pair for each value"
        )
    return MEANINGS[sides[0]]


def _side(word: str) -> str:
    return {"a": "first", "first": "first", "left": "first", "b": "second", "second": "second", "right": "second"}.get(
        word, ""
    )


def _alpaca_eval(value: Any) -> Ranking | Counts:
    """1 = the first, 2 = the second, 0 or 1.5 = a draw, in between = the probability of the second plus 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not (value == 0 or 1 <= value <= 2):
        raise Reject("preference is not between 1 and 2")
    if value in (0, 1.5):
        return TIE
    return FIRST if value == 1 else SECOND if value == 2 else Counts((2.0 - value, value - 1.0))


def _votes(values: list[Any]) -> Counts:
    """PandaLM: 1 or 2 = that response is better, 0 = equal (half a vote each)."""
    if not all(value in (0, 1, 2) for value in values):
        raise Reject("an annotator's vote is not 0, 1 or 2")
    first, second = (sum(1.0 if v == side else 0.5 if v == 0 else 0.0 for v in values) for side in (1, 2))
    return Counts((first, second))


def _battle(
    row: Mapping[str, Any], notes: Counter[str], meaning: Mapping[str, str] | None
) -> tuple[Messages, tuple[Messages, Messages], Ranking]:
    """Two whole dialogues with the same questions; only those with one question have a prompt in common."""
    first, second = (parse_messages(row[name], name, notes) for name in ("conversation_a", "conversation_b"))
    shared = 0
    while (
        shared < min(len(first), len(second)) and first[shared] == second[shared] and first[shared].role != "assistant"
    ):
        shared += 1
    if shared == 0:
        raise Reject("the two dialogues share no prompt")
    if any(message.role == "user" for message in (*first[shared:], *second[shared:])):
        raise Reject("a battle of several rounds: its responses answer different dialogues")
    prompt = untrained(first[:shared])
    clean(prompt[-1].content, "user")
    return prompt, (first[shared:], second[shared:]), verdict(row["winner"], meaning)
