"""Selection: which responses of a group become rows. Methods differ here, not in their loops.

    all_responses            every response alone                             PPO, RLOO, GRPO
    best_of_n                the best one alone                               RAFT, rejection-sampling fine-tuning
    best_vs_worst            best first, worst second                         online DPO, iterate
    main_vs_enhancer         one of each player, the better one first         iterate with an enhancer
    statistical_rejection    pairs of those that rejection sampling accepts   RSO

A selector maps a group to picks: tuples of response numbers, preferred first, each a row. It is a pure function of the group and
a random generator that `picks` derives from seed and prompt; ties go by the generator, never by position.
    rows(groups, best_vs_worst, seed) -> Rows of the drawn ids        comparisons(...) -> records of text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from trueline.align.group import Group, sample_row
from trueline.align.rejection import accept, first_round, tournament
from trueline.records import Comparison, Conversation, Ranking, Row

Pick = tuple[int, ...]
Select = Callable[[Group, np.random.Generator], list[Pick]]


def all_responses(group: Group, rng: np.random.Generator) -> list[Pick]:
    """Every response, alone."""
    return [(k,) for k in range(len(group))]


def whole_group(group: Group, rng: np.random.Generator, *, drop_flat: bool = False) -> list[Pick]:
    """All responses together, in the order drawn; with `drop_flat` none where all scores are equal."""
    if drop_flat and np.ptp(_scores(group)) == 0:
        return []
    return [tuple(range(len(group)))]


def best_of_n(group: Group, rng: np.random.Generator, *, n: int | None = None) -> list[Pick]:
    """The response with the highest score among the first n (all by default)."""
    if n is not None and not 1 <= n <= len(group):
        raise ValueError(
            f"best_of_n asks for {n} responses, but prompt {group.key} has {len(group)}: draw more or lower n"
        )
    return [(_first(_scores(group)[:n], rng),)]


def best_vs_worst(group: Group, rng: np.random.Generator, *, margin: float = 0.0) -> list[Pick]:
    """The best and the worst response as a pair; none where their scores differ by at most `margin`."""
    scores = _scores(group)
    if len(scores) < 2 or scores.max() - scores.min() <= margin:
        return []
    return [(_first(scores, rng), _first(-scores, rng))]


def main_vs_enhancer(group: Group, rng: np.random.Generator, *, margin: float = 0.0) -> list[Pick]:
    """Of all pairs of a response of the first half (the main policy's) and one of the second (the enhancer's) that whose scores are
    furthest apart, the better one first; none where they differ by at most `margin`. Of an odd number the main policy has one more."""
    scores = _scores(group)
    mains = len(scores) - len(scores) // 2
    ahead_ME = scores[:mains, None] - scores[None, mains:]
    if not ahead_ME.size or np.abs(ahead_ME).max() <= margin:
        return []
    m, e = rng.choice(np.argwhere(np.abs(ahead_ME) == np.abs(ahead_ME).max())).tolist()
    return [(m, mains + e) if ahead_ME[m, e] > 0 else (mains + e, m)]


def statistical_rejection(
    group: Group,
    rng: np.random.Generator,
    *,
    beta: float = 0.5,
    num_samples: int = 8,
    ranking: Literal["first_round", "tournament"] = "first_round",
) -> list[Pick]:
    """Pairs among the responses that rejection sampling accepts (RSO, 2309.06657); a text that was drawn twice counts once.

    `beta` is in units of the score. "first_round" gives num_samples / 2 random pairs, "tournament" the num_samples - 1 games
    of a knock-out between them.
    """
    scores = _scores(group)
    first = {
        tuple(message.content for message in response): k for k, response in reversed(list(enumerate(group.responses)))
    }
    places = sorted(first.values())  # as they were drawn
    kept = [places[k] for k in accept(scores[places], num_samples, beta, rng)]
    return list({"first_round": first_round, "tournament": tournament}[ranking](kept, scores, rng))


def picks(groups: Sequence[Group], select: Select, seed: int = 0) -> list[tuple[Group, Pick]]:
    """What the selector picks from each group, with randomness that depends on seed and prompt, not on the order of groups."""
    found: list[tuple[Group, Pick]] = []
    for group in groups:
        rng = np.random.default_rng([seed, int(group.key, 16)])
        found.extend((group, pick) for pick in select(group, rng))
    return found


def rows(groups: Sequence[Group], select: Select, seed: int = 0) -> list[Row]:
    """Picks as rows of the drawn ids, with numbers["reward"], and numbers["rank"] where a pick has several responses."""
    return [sample_row(group, pick) for group, pick in picks(groups, select, seed)]


def comparisons(groups: Sequence[Group], select: Select, seed: int = 0, *, source: str = "") -> list[Comparison]:
    """Picks of two or more responses as text records, best first."""
    return [
        Comparison(
            prompt=group.prompt,
            responses=tuple(group.responses[k] for k in pick),
            judgement=Ranking(tuple(range(1, len(pick) + 1))),
            source=source,
        )
        for group, pick in picks(groups, select, seed)
        if len(pick) > 1
    ]


def conversations(groups: Sequence[Group], select: Select, seed: int = 0, *, source: str = "") -> list[Conversation]:
    """The preferred response of every pick as a conversation, for supervised tuning."""
    return [
        Conversation(messages=group.prompt + group.responses[pick[0]], source=source)
        for group, pick in picks(groups, select, seed)
    ]


def _scores(group: Group) -> np.ndarray:
    if len(group.scores) != len(group):
        raise ValueError(f"prompt {group.key} has no scores: judge the groups before selecting from them")
    return np.array(group.scores)


def _first(scores: np.ndarray, rng: np.random.Generator) -> int:
    """A response with the highest score, one of the tied ones at random."""
    return int(rng.choice(np.flatnonzero(scores == scores.max())))
