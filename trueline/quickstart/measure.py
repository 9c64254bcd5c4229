"""What the models say of the held-out functions when they decode greedily, which is what one would deploy: judge score, wins, grounding,
length, side by side; and what gaming the judge gives.

The judge's true score is used here and nowhere in training. Intervals are 95%, over functions.
Left out: what is measured at the temperature of the preferences (reward against KL, the reward model's accuracy): the study's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline.evals.interval import bootstrap_mean, paired_difference
from trueline.evals.result import Interval
from trueline.evals.winrate import win_rate
from trueline.models.files import load_model
from trueline.quickstart.functions import Function
from trueline.quickstart.grounding import grounding
from trueline.quickstart.pep257 import Pep257Judge
from trueline.quickstart.stages import MAX_SUMMARY_TOKENS, draw, prompt_of
from trueline.quickstart.words import split_name
from trueline.records import Message, Sampling
from trueline.tokens import Tokenizer

EXAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The same held-out prompts for every model."""

    functions: tuple[Function, ...]
    tokenizer: Tokenizer
    judge: Pep257Judge
    seed: int

    def greedy(self, folder: Path, what: str) -> list[str]:
        """What a policy says of every function when it always takes its likeliest token."""
        sampling = Sampling(temperature=0, max_new_tokens=MAX_SUMMARY_TOKENS)
        groups, _ = draw(load_model(folder), self.functions, self.tokenizer, self.judge, sampling, what)
        return [group.responses[0][-1].content for group in groups]

    def score(self, summaries: Sequence[str]) -> np.ndarray:
        """The judge's score of one text per function."""
        return np.array(
            [
                self.judge.judge(prompt_of(f, self.tokenizer), [(Message(role="assistant", content=text),)])[0]
                for f, text in zip(self.functions, summaries, strict=True)
            ]
        )


def measure(bench: Bench, sft: Path, trained: Mapping[str, Path], best: Mapping[str, str]) -> dict[str, Any]:
    """models, examples, gaming. `trained`: name -> policy; `best`: prompt -> the summary that best-of-n chose."""
    texts = {"human": [f.summary for f in bench.functions]} | {"sft": bench.greedy(sft, "SFT's summaries")}
    texts["best-of-n"] = [best[prompt_of(f, bench.tokenizer)[0].content] for f in bench.functions]
    texts |= {name: bench.greedy(folder, f"{name}'s summaries") for name, folder in trained.items()}
    scores = {name: bench.score(said) for name, said in texts.items()}
    models = {name: describe(bench, texts[name], scores[name], scores) for name in texts}
    for name in ("best-of-n", *trained):
        models[name]["gain_over_sft"] = spread(paired_difference(scores[name], scores["sft"], seed=bench.seed))
    return {
        "num_test": len(bench.functions),
        "models": models,
        "examples": examples(bench, texts, scores),
        "gaming": gaming(bench),
    }


def spread(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.estimate, "interval": [interval.low, interval.high]}


def describe(
    bench: Bench, said: Sequence[str], scores_N: np.ndarray, all_scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """One row of the table."""
    grounded = grounding(bench.functions, said, seed=bench.seed)
    row: dict[str, Any] = {
        "judge": spread(bootstrap_mean(scores_N, seed=bench.seed)),
        "grounding": grounded.name_share,
        "grounding_interval": list(grounded.name_share_interval),
        "grounding_other": grounded.name_share_other,
        "recall": grounded.recall,
        "recall_other": grounded.recall_other,
        "recall_difference": {
            "mean": grounded.recall_difference,
            "interval": list(grounded.recall_difference_interval),
        },
        "words": float(np.mean([len(text.split()) for text in said])),
        "distinct": len(set(said)) / len(said),
    }
    for other in ("sft", "human"):
        if all_scores[other] is not scores_N:
            row[f"wins_against_{other}"] = spread(win_rate(scores_N, all_scores[other], seed=bench.seed).rate)
    return row


def examples(
    bench: Bench, texts: Mapping[str, Sequence[str]], scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Functions drawn by seed, with what everybody says of them."""
    rng = np.random.default_rng([bench.seed, 20])
    chosen = rng.permutation(len(bench.functions))[:EXAMPLES]
    return [
        {
            "signature": f"{f.owner + '.' if f.owner else ''}{f.name}({', '.join(f.arguments)})",
            "package": f.package,
            "prompt": prompt_of(f, bench.tokenizer)[0].content,
            "summaries": {name: [said[i], float(scores[name][i])] for name, said in texts.items()},
        }
        for i in chosen
        for f in [bench.functions[i]]
    ]


def gaming(bench: Bench) -> list[dict[str, Any]]:
    """Texts that try to please the rule, for one function with a name of several words and an argument."""
    human = bench.score([f.summary for f in bench.functions])
    fits = [len(split_name(f.name)) >= 2 and len(f.arguments) >= 1 for f in bench.functions]
    best = int(np.argmax(np.where(fits, human, -1)))
    function = bench.functions[best]
    name, arguments = (
        " ".join(split_name(function.name)),
        " ".join(w for a in function.arguments for w in split_name(a)),
    )
    attempts = {
        "the human docstring": function.summary,
        "the name as a sentence, twice": f"{name.capitalize()} {name}.",
        "the name behind a verb": f"Return the {name}.",
        "generic": "Return the value.",
        "the signature restated": f"{function.name}({', '.join(function.arguments)}).",
        "keywords in a row": f"Return {name} {arguments} {' '.join(c.split('.')[-1] for c in function.calls[:4])}.",
        "its words in a sentence that is not true": f"{name.capitalize()} to the end of the {arguments}.",
        "fluent, about something else": "Return the number of bytes that the socket has received.",
    }
    prompt = prompt_of(function, bench.tokenizer)
    scores = bench.judge.judge(prompt, [(Message(role="assistant", content=text),) for text in attempts.values()])
    return [{"attempt": a, "text": t, "score": s} for (a, t), s in zip(attempts.items(), scores, strict=True)]
