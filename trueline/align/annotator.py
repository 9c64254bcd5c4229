"""A simulated annotator: preferences from known scores, with a stated noise.

    P(a preferred to b) = sigmoid((score_a - score_b) / noise)        Bradley-Terry (1952): pairs_by_bradley_terry
    order of K = by score / noise + Gumbel noise                      Plackett-Luce (1975): rankings_by_plackett_luce

Of any two responses in a Plackett-Luce ranking the one ahead is as in Bradley-Terry, so a ranking of K holds K(K-1)/2 such choices.
noise 0 is a perfect annotator (ties by a coin); a larger noise errs more. The scores themselves stay out of the records, as
with people.
Left out: people, and bias by position or length (wrap the scores to simulate them).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from trueline.align.group import Group
from trueline.records import Comparison, Counts, Ranking


def preference(gaps: Sequence[float] | np.ndarray | float, noise: float) -> np.ndarray:
    """Probability that the first is preferred, from score gaps (first minus second)."""
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}: 0 is a perfect annotator")
    gap_N = np.asarray(gaps, dtype=np.float64)
    if noise == 0:
        return (np.sign(gap_N) + 1) / 2
    return np.exp(-np.logaddexp(0, -gap_N / noise))


def pairs_by_bradley_terry(
    groups: Sequence[Group],
    noise: float,
    seed: int,
    *,
    pairs: int = 1,
    exact: bool = False,
    annotator: str = "",
    source: str = "",
) -> list[Comparison]:
    """Up to `pairs` random pairs per prompt of responses that differ in text, each preferred by chance.

    A Comparison lists the preferred response first. With `exact` no label is drawn: the judgement holds both probabilities as
    Counts, responses in random order. The draw depends on seed and prompt only, not on the order of groups.
    """
    if pairs < 1:
        raise ValueError(f"pairs per prompt must be at least 1, got {pairs}")
    found = []
    for group in groups:
        if len(group.scores) != len(group):
            raise ValueError(f"prompt {group.key} has no scores: judge the groups before the annotator sees them")
        rng = np.random.default_rng([seed, int(group.key, 16)])
        texts = [tuple(message.content for message in response) for response in group.responses]
        differing = [pair for pair in combinations(range(len(group)), 2) if texts[pair[0]] != texts[pair[1]]]
        for number in rng.permutation(len(differing))[:pairs]:
            a, b = rng.permutation(differing[number])  # the order shown must not say which is better
            p = float(preference(group.scores[a] - group.scores[b], noise))
            first, second = (a, b) if exact or rng.random() < p else (b, a)
            found.append(
                Comparison(
                    prompt=group.prompt,
                    responses=(group.responses[first], group.responses[second]),
                    judgement=Counts((p, 1 - p)) if exact else Ranking((1, 2)),
                    annotator=annotator or f"bradley-terry(noise={noise:g})",
                    source=source,
                )
            )
    return found


def rankings_by_plackett_luce(
    groups: Sequence[Group], noise: float, seed: int, *, annotator: str = "", source: str = ""
) -> list[Comparison]:
    """One noisy ranking per prompt of its responses that differ in text; prompts with fewer than two are left out.

    Adding Gumbel noise to score / noise and sorting draws from Plackett-Luce. A Comparison lists the preferred response first.
    """
    if not noise > 0:
        raise ValueError(f"noise must be above 0, got {noise}: a perfect annotator ranks by the scores themselves")
    found = []
    for group in groups:
        if len(group.scores) != len(group):
            raise ValueError(f"prompt {group.key} has no scores: judge the groups before the annotator sees them")
        rng = np.random.default_rng([seed, int(group.key, 16)])
        first_of = {tuple(m.content for m in response): k for k, response in reversed(list(enumerate(group.responses)))}
        kept = sorted(first_of.values())
        if len(kept) < 2:
            continue
        worth_K = np.array([group.scores[k] for k in kept]) / noise + rng.gumbel(size=len(kept))
        order = [kept[i] for i in np.argsort(-worth_K)]
        found.append(
            Comparison(
                prompt=group.prompt,
                responses=tuple(group.responses[k] for k in order),
                judgement=Ranking(tuple(range(1, len(order) + 1))),
                annotator=annotator or f"plackett-luce(noise={noise:g})",
                source=source,
            )
        )
    return found
