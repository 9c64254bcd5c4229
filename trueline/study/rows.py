"""Who may see which prompt, and a preference as the record that an objective trains on.

    split(pairs)            train | judge | tuning | report, by a hash of the prompt: a prompt keeps its side as the data grow
    records_for(kind, ...)  comparisons as they are; conversations (the preferred response); ratings (both halves); prompts

The judge's part is taken only where no true judge is given: a reward model that no method has seen is trained on it (the
train-PM / test-PM split of Bai et al., 2204.05862, section 4.2).
Left out: reading files (trueline.rows) and ids (trueline.tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trueline.align.group import prompt_key
from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.records import Comparison, Conversation, Counts, Messages, Rating, Record

REPORT_SHARE = 0.2
TUNING_SHARE = 0.1
JUDGE_SHARE = 0.3
"""Of all prompts; the judge's only where it is needed."""
LEAST = {"train": 4, "judge": 4, "tuning": 2, "report": 4}
"""Prompts without which nothing can be said."""
ENOUGH = 40
"""Prompts that leave as many to every part, as good as always."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Comparisons by use; no prompt has two uses."""

    train: tuple[Comparison, ...]
    judge: tuple[Comparison, ...]
    tuning: tuple[Comparison, ...]
    report: tuple[Comparison, ...]

    def prompts(self, part: str, most: int = 0) -> list[Messages]:
        """Different prompts of a part, in the order of their hashes, at most so many (0: all)."""
        found = {prompt_key(pair.prompt): pair.prompt for pair in self.of(part)}
        kept = sorted(found)[: most or None]
        return [found[key] for key in kept]

    @property
    def everything(self) -> tuple[Comparison, ...]:
        return (*self.train, *self.judge, *self.tuning, *self.report)

    def of(self, part: str) -> tuple[Comparison, ...]:
        return {"train": self.train, "judge": self.judge, "tuning": self.tuning, "report": self.report}[part]


def place(prompt: Messages) -> float:
    """Where a prompt lies in [0, 1): by its hash."""
    return int(prompt_key(prompt), 16) / 16**16


def split(pairs: Sequence[Comparison], *, needs_judge: bool) -> Parts:
    """Every comparison to its side."""
    sides: dict[str, list[Comparison]] = {"train": [], "judge": [], "tuning": [], "report": []}
    for pair in pairs:
        at = place(pair.prompt) - REPORT_SHARE
        side = "report" if at < 0 else "tuning" if at < TUNING_SHARE else "train"
        if needs_judge and TUNING_SHARE <= at < TUNING_SHARE + JUDGE_SHARE:
            side = "judge"
        sides[side].append(pair)
    return checked(Parts(**{side: tuple(found) for side, found in sides.items()}), needs_judge=needs_judge)


def checked(parts: Parts, *, needs_judge: bool) -> Parts:
    """The parts, where each has prompts enough and no prompt has two uses."""
    keys = {side: {prompt_key(pair.prompt) for pair in parts.of(side)} for side in LEAST}
    for side, found in keys.items():
        if len(found) < LEAST[side] and (side != "judge" or needs_judge):
            raise ValueError(
                f"--data has {len(parts.everything)} comparisons, which leave {len(found)} prompts to the {side} part, and it needs "
                f"at least {LEAST[side]}: bring more prompts, some {ENOUGH} in all"
            )
    twice = sum(map(len, keys.values())) - len(set().union(*keys.values()))
    if twice:
        raise ValueError(f"{twice} prompts of the comparisons have several uses: give each to one part, or the report means nothing")
    return parts


def records_for(kind: type[Record], pairs: Sequence[Comparison]) -> list[Record]:
    """Preferences as records of this kind. A conversation is the prompt with the response that was preferred; ratings say of both
    responses of a pair whether they are wanted. To both a tie says nothing; a pair loss knows what to do with it."""
    if kind is Comparison:
        return list(pairs)
    if kind is Conversation:
        decided = [pair for pair in pairs if max(worth(pair)) > min(worth(pair))]
        return [Conversation(messages=pair.prompt + pair.responses[best_first(pair)[0]], source=pair.source) for pair in decided]
    if kind is Rating:
        return [rating for pair in pairs for rating in ratings(pair)]
    raise ValueError(f"a preference file gives no {kind.__name__} records, so a method that trains on them cannot take part")


def worth(pair: Comparison) -> list[float]:
    """One number per response; more is better."""
    if isinstance(pair.judgement, Counts):
        return [float(count) for count in pair.judgement.counts]
    return [-float(rank) for rank in pair.judgement.ranks]


def best_first(pair: Comparison) -> list[int]:
    """Response numbers by how much they are preferred; of tied ones the first."""
    values = worth(pair)
    return sorted(range(len(values)), key=lambda k: -values[k])


def ratings(pair: Comparison) -> list[Rating]:
    """Wanted above the middle between best and worst, unwanted below it."""
    values = worth(pair)
    middle = (max(values) + min(values)) / 2
    return [
        Rating(prompt=pair.prompt, response=response, label=value > middle, source=pair.source)
        for response, value in zip(pair.responses, values, strict=True)
        if value != middle
    ]


def records_of(objective: Objective, parts: Parts) -> list[Record]:
    """What an objective trains on: prompts, where it draws its own responses."""
    if isinstance(objective, OnPolicy):
        return prompts_as_records(parts.prompts("train"))
    return records_for(objective.record, parts.train)


def prompts_as_records(prompts: Sequence[Messages]) -> list[Record]:
    """Prompts for methods that draw their own responses."""
    return [Conversation(messages=prompt) for prompt in prompts]
