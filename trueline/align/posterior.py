"""How people would judge a response: one judge's prior, updated by the picks of people or personas.

    alpha = c prior + sum of smoothed picks          shares = alpha / sum(alpha)          c: strength, in picks

The Dirichlet-multinomial posterior: with n picks the prior weighs c / (n + c). Per category it is the same mean as a
Beta(alpha_i, sum - alpha_i). A pick is smoothed by moving a share e of it to its neighbours: people who picked a category could
nearly have picked the next. With a prior the neighbours get it in proportion to the prior, else in equal parts; at the ends there
is one neighbour.
    rows of one pick each --pooled--> one Rating per response, whose counts are alpha        what trueline dprm trains on
Li et al., 2402.09764 (a language model gives the prior and plays the personas); c and e are not stated there, and are ours.
Left out: asking the judge and the personas. Legend: C categories, worst first; N picks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trueline.align.group import prompt_key
from trueline.records import Rating

Shares = Sequence[float] | np.ndarray


def smoothed(counts: Shares, smoothing: float, prior: Shares | None = None) -> np.ndarray:
    """Counts [C] with the share `smoothing` of each moved to its neighbours; their sum stays."""
    counts_C = np.asarray(counts, dtype=np.float64)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}: it must be at least 0 and below 1")
    C = len(counts_C)
    weight_C = np.ones(C) if prior is None else np.asarray(prior, dtype=np.float64)
    moved_C = (1 - smoothing) * counts_C
    for i in range(C):
        near = [j for j in (i - 1, i + 1) if 0 <= j < C]
        total = sum(weight_C[j] for j in near)
        for j in near:
            share = weight_C[j] / total if total > 0 else 1 / len(near)
            moved_C[j] += smoothing * counts_C[i] * share
    return moved_C


def posterior(counts: Shares, prior: Shares | None = None, *, strength: float = 4.0, smoothing: float = 0.0) -> np.ndarray:
    """alpha [C], the pseudo-counts; divided by their sum they are the posterior mean. Without a prior, the smoothed counts."""
    counts_C = np.asarray(counts, dtype=np.float64)
    if counts_C.ndim != 1 or not np.isfinite(counts_C).all() or (counts_C < 0).any():
        raise ValueError(f"counts are {np.asarray(counts).tolist()}: give one number of at least 0 per category")
    if prior is None:
        return smoothed(counts_C, smoothing)
    prior_C = np.asarray(prior, dtype=np.float64)
    if prior_C.shape != counts_C.shape or (prior_C < 0).any() or not 0 < prior_C.sum() < np.inf:
        raise ValueError(f"the prior is {prior_C.tolist()} for counts of {len(counts_C)} categories: give one share for each")
    if not 0 <= strength < np.inf:
        raise ValueError(f"strength is {strength}: it must be at least 0, in picks")
    prior_C = prior_C / prior_C.sum()
    return strength * prior_C + smoothed(counts_C, smoothing, prior_C)


def pooled(
    ratings: Iterable[Rating], levels: Sequence[float] = (), *, judge: str = "", strength: float = 4.0, smoothing: float = 0.0
) -> list[Rating]:
    """One Rating per response, in order of first appearance, whose counts are the posterior of all ratings of it.

    levels   the scores that the categories stand for, worst first; for ratings with a score
    judge    the annotator whose ratings are the prior; all others' are picks
    """
    counts: dict[tuple[str, str], np.ndarray] = {}
    priors: dict[tuple[str, str], np.ndarray] = {}
    first: dict[tuple[str, str], Rating] = {}
    for rating in ratings:
        key = prompt_key(rating.prompt), prompt_key(rating.response)
        of_judge = bool(judge) and rating.annotator == judge
        found, picks_C = (priors if of_judge else counts), picks_of(rating, levels)
        known = next(iter(first.values()), None)
        if known is not None and len(picks_of(known, levels)) != len(picks_C):
            raise ValueError(f"{rating.source or 'a rating'} has {len(picks_C)} categories, others have another number")
        first.setdefault(key, rating)
        found[key] = found[key] + picks_C if key in found else picks_C
    if judge and not priors:
        raise ValueError(f"no rating is by the annotator {judge!r}: nothing to take the prior from")
    result = []
    for key, rating in first.items():
        own_C = counts.get(key, np.zeros_like(priors.get(key, np.zeros(1))))
        alpha_C = posterior(own_C, priors.get(key), strength=strength, smoothing=smoothing)
        if alpha_C.sum() > 0:
            shares = tuple(float(value) for value in alpha_C)
            result.append(
                Rating(prompt=rating.prompt, response=rating.response, counts=shares, source=rating.source, annotator="pooled")
            )
    return result


def picks_of(rating: Rating, levels: Sequence[float] = ()) -> np.ndarray:
    """Counts [C] of one rating: its own, or 1 for the category of its score or label."""
    if rating.counts is not None:
        return np.asarray(rating.counts, dtype=np.float64)
    if rating.label is not None:
        return np.array([not rating.label, rating.label], dtype=np.float64)
    assert rating.score is not None
    if rating.score not in levels:
        named = f"are {', '.join(f'{level:g}' for level in levels)}" if levels else "have no scores"
        raise ValueError(
            f"{rating.source or 'a rating'} has score {rating.score:g}, and the categories {named}: name all scores, worst first"
        )
    return np.eye(len(levels))[list(levels).index(rating.score)]
