"""What do counts of words know of a preference? Logistic regression on the difference of the two last responses' words.

    python -m recipes.human_preferences_words --data pairs.jsonl

    P(first preferred) = sigmoid(w . (x(first) - x(second)))        x: log(1 + count) of every word

Any file of pairs that Trueline reads will do. Accuracy is out of fold: no opening question is in two folds, and the strength of the
L2 penalty is chosen by cross-validation inside the training folds. Beside it, the difference of lengths alone. Ties are trained on as
probability 1/2 and are not counted in accuracies.

Cost: seconds for a few thousand pairs. A reward model that does not beat this baseline has learned little but vocabulary.
Legend: N pairs, V words. Left out: n-grams, the prompt (its words are the same on both sides).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trueline.evals.calibration import pair_calibration
from trueline.evals.interval import bootstrap_mean
from trueline.evals.result import Interval
from trueline.records import Comparison, Messages, Ranking
from trueline.rows import read_rows

FOLDS = 5
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class TextPair:
    """Two responses, the preferred one first."""

    group: str
    """The opening question: what may not be in two folds."""
    first: str
    second: str
    preferred: float
    """Probability that the first is preferred: 1, a share of votes, or 1/2 for a tie."""


def text_pair(record: Comparison) -> TextPair:
    """The first two responses of a comparison, best first; a tie keeps its order."""
    judged = record.judgement
    a, b = judged.ranks[:2] if isinstance(judged, Ranking) else judged.counts[:2]
    votes = (float(a < b), float(b < a)) if isinstance(judged, Ranking) else (a, b)
    preferred = votes[0] / sum(votes) if sum(votes) else 0.5
    texts = [last_text(response) for response in record.responses[:2]]
    if preferred < 0.5:
        texts, preferred = texts[::-1], 1 - preferred
    return TextPair(opening(record.prompt), texts[0], texts[1], preferred)


def opening(prompt: Messages) -> str:
    """The first human turn; of plain text, its first paragraph that says something."""
    said = next((message.content for message in prompt if message.role == "user"), prompt[0].content)
    return next((part.strip() for part in re.split(r"\n\n(?:Human|Assistant):", said) if part.strip()), said)


def last_text(response: Messages) -> str:
    return response[-1].content


def fold_of(group: str, folds: int, salt: str = "") -> int:
    """A fold by hash: stays the same as data grows and in every program."""
    return int.from_bytes(hashlib.sha256(f"{salt}{group}".encode()).digest()[:8], "big") % folds


def words(text: str) -> Counter[str]:
    """Lower-case words with their apostrophes."""
    return Counter(re.findall(r"[a-z0-9']+", text.lower()))


def word_differences(pairs: Sequence[TextPair]) -> tuple[np.ndarray, list[str]]:
    """[N, V] log(1 + count) in the first response minus the same in the second, and the words. A word that the training pairs do not
    have gets no weight from them, so the columns may be those of all pairs."""
    counts = [(words(pair.first), words(pair.second)) for pair in pairs]
    vocabulary = sorted({word for both in counts for one in both for word in one})
    column = {word: v for v, word in enumerate(vocabulary)}
    table_NV = np.zeros((len(pairs), len(vocabulary)))
    for n, both in enumerate(counts):
        for sign, one in zip((1, -1), both, strict=True):
            for word, count in one.items():
                table_NV[n, column[word]] += sign * math.log1p(count)
    return table_NV, vocabulary


def length_differences(pairs: Sequence[TextPair]) -> np.ndarray:
    """[N, 1] words of the first minus words of the second, in units of 50 words."""
    return np.array([[(words(p.first).total() - words(p.second).total()) / 50] for p in pairs])


def fit(kernel_NN: np.ndarray, preferred_N: np.ndarray, penalty: float, steps: int = 30) -> np.ndarray:
    """a [N] with weights w = X^T a that minimise  sum_n cross-entropy(preferred_n, sigmoid(x_n . w)) + penalty/2 |w|^2.

    Newton's method in the dual, where K = X X^T:  (penalty I + W K) a = preferred - s + W f  with f = K a, s = sigmoid(f),
    W = s (1 - s). Cheap however many words there are.
    """
    a_N = np.zeros(len(preferred_N))
    for _ in range(steps):
        f_N = kernel_NN @ a_N
        s_N = 1 / (1 + np.exp(-f_N))
        w_N = s_N * (1 - s_N)
        new_N = np.linalg.solve(penalty * np.eye(len(a_N)) + w_N[:, None] * kernel_NN, preferred_N - s_N + w_N * f_N)
        done = np.abs(new_N - a_N).max() < 1e-6
        a_N = new_N
        if done:
            break
    return a_N


def choose_penalty(kernel_NN: np.ndarray, preferred_N: np.ndarray, groups: Sequence[str], folds: int = 3) -> float:
    """The penalty of the least held-out cross-entropy, by folds of another hash than the outer ones."""
    fold_N = np.array([fold_of(group, folds, "inner ") for group in groups])

    def loss(penalty: float) -> float:
        gaps_N = held_out(kernel_NN, preferred_N, fold_N, lambda kernel, preferred, train: penalty)
        return float((preferred_N * np.logaddexp(0, -gaps_N) + (1 - preferred_N) * np.logaddexp(0, gaps_N)).mean())

    return min(PENALTIES, key=loss)


def held_out(kernel_NN: np.ndarray, preferred_N: np.ndarray, fold_N: np.ndarray, penalty_of: Callable[..., float]) -> np.ndarray:
    """Log-odds [N] of every pair from the other folds' pairs. `penalty_of(kernel, preferred, where)` is asked per fold."""
    gaps_N = np.zeros(len(preferred_N))
    for fold in np.unique(fold_N):
        train, test = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        inside = kernel_NN[np.ix_(train, train)]
        a_T = fit(inside, preferred_N[train], penalty_of(inside, preferred_N[train], train))
        gaps_N[test] = kernel_NN[np.ix_(test, train)] @ a_T
    return gaps_N


def out_of_fold(
    features_NV: np.ndarray, pairs: Sequence[TextPair], folds: int = FOLDS, penalty: float | None = None
) -> np.ndarray:
    """Log-odds [N] that the first response is preferred, each from folds that do not hold its question. Without a penalty it is
    chosen inside the training folds."""
    preferred_N = np.array([pair.preferred for pair in pairs])
    fold_N = np.array([fold_of(pair.group, folds) for pair in pairs])
    return held_out(
        features_NV @ features_NV.T, preferred_N, fold_N,
        lambda kernel, preferred, train: penalty or choose_penalty(kernel, preferred, [pairs[i].group for i in train]),
    )  # fmt: skip


def right(gaps: Sequence[float] | np.ndarray) -> np.ndarray:
    """1 where the preferred response is ahead, 0 where it is behind, 1/2 where neither is."""
    return (np.sign(np.asarray(gaps)) + 1) / 2


def strongest(
    features_NV: np.ndarray, pairs: Sequence[TextPair], vocabulary: Sequence[str], count: int = 12
) -> tuple[list[str], list[str]]:
    """Words that speak most for a response and most against it, fitted on all pairs."""
    preferred_N, kernel_NN = np.array([pair.preferred for pair in pairs]), features_NV @ features_NV.T
    weights_V = features_NV.T @ fit(kernel_NN, preferred_N, choose_penalty(kernel_NN, preferred_N, [pair.group for pair in pairs]))
    order = np.argsort(weights_V)
    return [vocabulary[v] for v in order[::-1][:count]], [vocabulary[v] for v in order[:count]]


def line(name: str, gaps_N: np.ndarray, pairs: Sequence[TextPair]) -> str:
    """A row of the table, over decided pairs."""
    decided = [n for n, pair in enumerate(pairs) if pair.preferred != 0.5]
    share = bootstrap_mean(right(gaps_N[decided]), [pairs[n].group for n in decided])
    found = pair_calibration(gaps_N[decided])
    return f"| {name} | {len(decided):,} | {percent(share)} | {found.nll:.3f} | {found.reliability.ece:.3f} | {found.null_ece:.3f} |"


def percent(share: Interval) -> str:
    return f"{100 * share.estimate:.1f}% ({100 * share.low:.1f} to {100 * share.high:.1f})"


def run(path: Path, folds: int) -> str:
    """The table of one file."""
    rows = read_rows(path, Comparison)
    pairs = [text_pair(row) for row in rows if isinstance(row, Comparison)]
    table_NV, vocabulary = word_differences(pairs)
    lengths_N1 = length_differences(pairs)
    good, bad = strongest(table_NV, pairs, vocabulary)
    questions = len({pair.group for pair in pairs})
    return "\n".join(
        [
            f"{len(pairs):,} pairs of {rows.read:,} rows, {questions:,} opening questions, {len(vocabulary):,} words, {folds} folds",
            "",
            "| model | decided pairs | accuracy (95%) | log loss | ECE | ECE by chance |",
            "|---|---|---|---|---|---|",
            line("bag of words", out_of_fold(table_NV, pairs, folds), pairs),
            line("length alone", out_of_fold(lengths_N1, pairs, folds, penalty=1.0), pairs),
            "",
            f"for a response: {', '.join(good)}",
            f"against it: {', '.join(bad)}",
        ]
    )


def rehearse(folder: Path) -> None:
    """Pairs of which one word tells all."""
    rows = [{"prompt": f"Question {i}", "chosen": f"sorry, no {i}", "rejected": f"yes, take {i}"} for i in range(40)]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    said = run(path, 3)
    assert "| bag of words | 40 | 100.0%" in said and "for a response: no, sorry" in said


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="file of pairs")
    parser.add_argument("--folds", type=int, default=FOLDS)
    args = parser.parse_args()
    print(run(args.data, args.folds))


if __name__ == "__main__":
    main()
