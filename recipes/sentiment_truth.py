"""Is a sentence about a film for it or against it? Logistic regression over words and pairs of words, as the truth of recipes.sentiment.

    TRUELINE_DATA=DATA python -m recipes.sentiment_truth --out out/sentiment/truth

    P(positive) = sigmoid(b + sum_f w_f / sqrt(F))        f: the F different words and neighbouring pairs of the text that are known

It learns from reviews of all lengths: one sentence (Pang and Lee 2005), whole articles (Pang and Lee 2004), IMDb with its
counterfactual copies (Kaushik et al. 2020). A fifth of the sentences, by a hash, is kept for the accuracy and for prompts; nothing
else of the recipe sees them. Being presence and not count, a word that is said again adds nothing, and the square root keeps long texts
from being sure of themselves.

Cost: 10 seconds. Left out: order beyond neighbours, and so most negations and all irony.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.human_preferences_words import fold_of
from trueline.store import write_atomic

FOLDS, LEAST, PENALTY = 5, 3, 0.3
"""Fold 0 of the sentences is held out; features that fewer texts have are left out; weight of half the squared weights."""
Labelled = tuple[str, bool]
"""A text, and whether it speaks for the film."""


@dataclass(frozen=True)
class Truth:
    """The trained classifier."""

    weights: Mapping[str, float]
    bias: float

    def logit(self, text: str) -> float:
        """Log odds of being positive."""
        found = [self.weights[feature] for feature in features(text) if feature in self.weights]
        return self.bias + sum(found) / math.sqrt(max(1, len(found)))

    def positive(self, text: str) -> float:
        """P(positive)."""
        return 1 / (1 + math.exp(-self.logit(text)))


def features(text: str) -> set[str]:
    """Words in lower case, and neighbouring pairs of them."""
    words = re.findall(r"[a-z0-9']+", text.lower().replace("<br />", " "))
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def fit(texts: Sequence[Labelled], penalty: float = PENALTY, least: int = LEAST) -> Truth:
    """Maximum likelihood less the penalty, by L-BFGS on all texts."""
    found = [features(text) for text, _ in texts]
    count = Counter(feature for one in found for feature in one)
    column = {feature: v for v, feature in enumerate(sorted(f for f, n in count.items() if n >= least))}
    known = [sorted(column[feature] for feature in one if feature in column) for one in found]
    sizes = np.array([len(one) for one in known])
    of_text, features_ = torch.from_numpy(np.repeat(np.arange(len(known)), sizes)), torch.tensor([v for one in known for v in one])
    scale = torch.from_numpy(1 / np.sqrt(np.maximum(sizes, 1))).float()
    wanted = torch.tensor([float(positive) for _, positive in texts])
    weights, bias = torch.zeros(len(column), requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        logits = bias + scale * torch.zeros(len(texts)).index_add(0, of_text, weights[features_])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        loss = loss + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Truth(dict(zip(column, weights.detach().tolist(), strict=True)), float(bias.detach()))


def sentences(data: Path, *, held: bool) -> list[Labelled]:
    """One-sentence reviews: those that are held out, or the others."""
    rows = lines(data / "sentence_polarity.jsonl.gz")
    return [(row["text"], row["label"] == "pos") for row in rows if (fold_of(row["text"], FOLDS) == 0) == held]


def articles(data: Path) -> list[Labelled]:
    """Long reviews, one sentence per line."""
    return [(row["text"], row["label"] == "pos") for row in lines(data / "movie_reviews_2000.jsonl.gz")]


def imdb(data: Path, part: str) -> list[Labelled]:
    """IMDb reviews and their copies of the opposite sentiment: "train" or "dev"."""
    rows = lines(data / f"imdb_counterfactual_pairs_{part}.jsonl.gz")
    return [(row[side], side == "positive") for row in rows for side in ("positive", "negative")]


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def accuracy(truth: Truth, texts: Sequence[Labelled]) -> float:
    """Share of texts whose label it finds."""
    return sum((truth.logit(text) > 0) == positive for text, positive in texts) / len(texts)


def truth_of(data: Path, out: Path) -> Truth:
    """Trained once: OUT/truth.json, and beside it OUT/accuracy.json."""
    if not (out / "accuracy.json").exists():
        truth = fit([*sentences(data, held=False), *articles(data), *imdb(data, "train")])
        write_atomic(out / "truth.json", json.dumps({"bias": truth.bias, "weights": truth.weights}))
        held, long = sentences(data, held=True), imdb(data, "dev")
        right = {name: [len(texts), accuracy(truth, texts)] for name, texts in (("sentences", held), ("imdb", long))}
        about = {"features": len(truth.weights)} | right
        write_atomic(out / "accuracy.json", json.dumps(about))
    found = json.loads((out / "truth.json").read_text(encoding="utf-8"))
    return Truth(found["weights"], found["bias"])


def made_up(folder: Path, count: int = 60) -> Path:
    """Files like the real ones, of invented reviews."""
    good, bad = ("a warm and moving film about {} .", "a great story of {} ."), ("a dull and empty film about {} .", "a weak story of {} .")
    things = [f"{a} {b}" for a in ("old", "new", "lost", "small") for b in ("dogs", "kings", "towns", "boats", "songs")]
    texts = [(side[i % 2].format(things[i % len(things)]) + f" part {i} .", side is good) for i in range(count) for side in (good, bad)]
    files: dict[str, list[dict[str, Any]]] = {
        "sentence_polarity": [{"text": text, "label": "pos" if positive else "neg"} for text, positive in texts],
        "movie_reviews_2000": [{"text": f"{text} \n{text}", "label": "pos" if positive else "neg"} for text, positive in texts[:20]],
        "imdb_counterfactual_pairs_train": [{"positive": a, "negative": b} for (a, _), (b, _) in zip(texts[::2], texts[1::2], strict=True)],
        "imdb_counterfactual_pairs_dev": [{"positive": texts[0][0], "negative": texts[1][0]}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def data_folder() -> Path:
    """TRUELINE_DATA's reviews."""
    data = Path(os.environ.get("TRUELINE_DATA", "")) / "sentiment"
    if not (data / "sentence_polarity.jsonl.gz").is_file():
        raise SystemExit(f"TRUELINE_DATA names no folder with sentiment/sentence_polarity.jsonl.gz: {data} has none")
    return data


def rehearse(folder: Path) -> None:
    """On invented reviews."""
    truth = truth_of(made_up(folder / "data"), folder / "truth")
    assert truth.positive("a warm and moving film") > 0.5 > truth.positive("a dull film")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the classifier; trained once")
    parser.add_argument("--text", nargs="*", default=[], help="texts to judge")
    args = parser.parse_args()
    truth = truth_of(data_folder(), args.out)
    print((args.out / "accuracy.json").read_text(encoding="utf-8"))
    for text in args.text:
        print(f"{truth.positive(text):.3f}  {text}")


if __name__ == "__main__":
    main()
