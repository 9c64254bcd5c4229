"""Does a summary speak of its own function? Measures against the name and against what people wrote, with shuffled pairs as the yardstick.

    name share   words of the name that the summary speaks of (inflections and abbreviations count), against a random
                 other function's name
    recall       content words of the human docstring that are absent from name and arguments, found in the summary;
                 against other functions' docstrings, with a bootstrap interval of the paired difference: above zero,
                 the summary says something that it read elsewhere

Legend: N functions, P shuffles. A function whose name or docstring has no word to look for is left out (nan) and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trueline.quickstart.functions import Function
from trueline.quickstart.words import STOP_WORDS, content_words, split_name, spoken_of, stem


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Means over functions; intervals are 95 percent, by resampling functions."""

    name_share: float
    name_share_interval: tuple[float, float]
    name_share_other: float
    """The same summaries against a random other function's name: what fluent prose meets by chance."""
    recall: float
    recall_other: float
    """The same summaries against other functions' docstrings."""
    recall_difference: float
    recall_difference_interval: tuple[float, float]
    functions: int
    without_name_words: int
    without_new_words: int


def name_words(function: Function) -> list[str]:
    """Words of the name that can be spoken of: each once, stop words and single letters left out."""
    words = [w for w in dict.fromkeys(split_name(function.name)) if len(w) > 1 and w not in STOP_WORDS]
    return words


def name_share(function: Function, summary: str) -> float:
    """Share of the name's words that the summary speaks of; nan when the name has none."""
    words = name_words(function)
    return float(np.mean(spoken_of(words, {stem(w) for w in content_words(summary)}))) if words else float("nan")


def new_stems(function: Function) -> set[str]:
    """Stems of the human docstring's content words that neither the name nor an argument speaks of."""
    given = {stem(w) for name in (function.name, *function.arguments) for w in split_name(name)}
    words = sorted({w for w in content_words(function.summary) if not w.isdigit()})
    return {stem(w) for w, known in zip(words, spoken_of(words, given), strict=True) if not known}


def new_word_recall(function: Function, summary: str) -> float:
    """Share of `new_stems(function)` that the summary holds; nan when there are none."""
    wanted = new_stems(function)
    return len(wanted & {stem(w) for w in content_words(summary)}) / len(wanted) if wanted else float("nan")


def grounding(
    functions: Sequence[Function], summaries: Sequence[str], *, seed: int = 0, shuffles: int = 10, resamples: int = 2000
) -> Grounding:
    """How far `summaries[n]` speaks of `functions[n]`, and of others by chance."""
    if len(functions) != len(summaries) or len(functions) < 2:
        raise ValueError(
            "grounding needs one summary per function, and two functions at least; "
            f"got {len(functions)} functions and {len(summaries)} summaries"
        )
    rng = np.random.default_rng(seed)
    others_PN = np.stack([other_functions(functions, rng) for _ in range(shuffles)])
    wanted = [new_stems(f) for f in functions]
    said = [{stem(w) for w in content_words(s)} for s in summaries]
    names = [name_words(f) for f in functions]

    def share(n: int, m: int) -> float:
        """Name of n against the summary of m."""
        return float(np.mean(spoken_of(names[n], said[m]))) if names[n] else float("nan")

    def recall(n: int, m: int) -> float:
        return len(wanted[n] & said[m]) / len(wanted[n]) if wanted[n] else float("nan")

    count = range(len(functions))
    share_N = np.array([share(n, n) for n in count])
    share_other_N = np.mean([[share(n, other_N[n]) for n in count] for other_N in others_PN], axis=0)
    recall_N = np.array([recall(n, n) for n in count])
    recall_other_N = np.mean([[recall(n, other_N[n]) for n in count] for other_N in others_PN], axis=0)
    return Grounding(
        name_share=float(np.nanmean(share_N)),
        name_share_interval=bootstrap_mean(share_N, rng, resamples),
        name_share_other=float(np.nanmean(share_other_N)),
        recall=float(np.nanmean(recall_N)),
        recall_other=float(np.nanmean(recall_other_N)),
        recall_difference=float(np.nanmean(recall_N - recall_other_N)),
        recall_difference_interval=bootstrap_mean(recall_N - recall_other_N, rng, resamples),
        functions=len(functions),
        without_name_words=int(np.isnan(share_N).sum()),
        without_new_words=int(np.isnan(recall_N).sum()),
    )


def other_functions(functions: Sequence[Function], rng: np.random.Generator) -> np.ndarray:
    """For each function the index of a random other one that has another name, where there is one: int64 [N]."""
    count = len(functions)
    other_N = (np.arange(count) + rng.integers(1, count, size=count)) % count
    for _ in range(20):
        same = np.array([functions[n].name == functions[other_N[n]].name for n in range(count)])
        if not same.any():
            break
        other_N[same] = (np.flatnonzero(same) + rng.integers(1, count, size=int(same.sum()))) % count
    return other_N


def bootstrap_mean(
    values_N: np.ndarray, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over functions; nan values are left out. Of paired differences it is the paired interval."""
    values = values_N[~np.isnan(values_N)]
    if not len(values):
        return float("nan"), float("nan")
    means = np.array([values[rng.integers(0, len(values), size=len(values))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
