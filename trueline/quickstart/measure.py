"""What the quickstart measures on the held-out packages.

    greedy       SFT and DPO, what one would deploy: judge score, wins, grounding, length
    sampled      at the temperature of the preferences: best-of-n and DPO on the reward-KL plane; KL is between the policies
                 at that temperature
    reward model accuracy and calibration on fresh pairs of SFT samples

The judge's true score is used here and nowhere in training. Intervals are 95%, over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueline.align.annotator import preference
from trueline.align.best_of_n import curve
from trueline.align.group import Group, sample_row, scored
from trueline.evals.calibration import pair_calibration
from trueline.evals.interval import bootstrap_mean, normal_mean, paired_difference
from trueline.evals.kl import sequence_kl
from trueline.evals.result import Interval
from trueline.evals.winrate import win_rate
from trueline.models.decoder import Decoder
from trueline.models.files import load_model, load_scalar_model
from trueline.models.scorer import PolicyScorer, RewardScorer
from trueline.quickstart.grounding import grounding
from trueline.quickstart.harvest import Function
from trueline.quickstart.pep257 import Pep257Judge
from trueline.quickstart.stages import MAX_SUMMARY_TOKENS, NOISE, TEMPERATURE, draw, prompt_of
from trueline.quickstart.words import split_name
from trueline.records import Message, Sampling
from trueline.tokens import Tokenizer

BEST_OF = 8
EXAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The same held-out prompts for every model."""

    functions: tuple[Function, ...]
    tokenizer: Tokenizer
    judge: Pep257Judge
    seed: int

    def draw(self, model: Decoder, sampling: Sampling, what: str) -> list[Group]:
        """Judged samples, one group per function."""
        return draw(model, self.functions, self.tokenizer, self.judge, sampling, what)[0]

    def score(self, summaries: Sequence[str]) -> np.ndarray:
        """The judge's score of one text per function."""
        return np.array(
            [
                self.judge.judge(prompt_of(f, self.tokenizer), [(Message(role="assistant", content=text),)])[0]
                for f, text in zip(self.functions, summaries, strict=True)
            ]
        )


def measure(bench: Bench, sft: Path, reward: Path, dpo: Path) -> dict[str, Any]:
    """models, frontier, reward_model, examples, gaming: everything in the report that is about the models."""
    sft_model, dpo_model = load_model(sft), load_model(dpo)
    greedy = Sampling(temperature=0, max_new_tokens=MAX_SUMMARY_TOKENS)
    texts = {
        "human": [f.summary for f in bench.functions],
        "sft": first_texts(bench.draw(sft_model, greedy, "SFT's summaries")),
        "best-of-n": [""],
        "dpo": first_texts(bench.draw(dpo_model, greedy, "DPO's summaries")),
    }
    sampled = bench.draw(
        sft_model,
        Sampling(n=BEST_OF, temperature=TEMPERATURE, max_new_tokens=MAX_SUMMARY_TOKENS, seed=bench.seed),
        "SFT's samples",
    )
    rated = scored(sampled, RewardScorer(load_scalar_model(reward)))
    texts["best-of-n"] = [g.responses[int(np.argmax(g.scores))][-1].content for g in rated]
    scores = {name: bench.score(said) for name, said in texts.items()}
    dpo_sampled = bench.draw(
        dpo_model,
        Sampling(n=2, temperature=TEMPERATURE, max_new_tokens=MAX_SUMMARY_TOKENS, seed=bench.seed),
        "DPO's samples",
    )
    kl = policy_kl(dpo_sampled, sft_model)
    models = {name: describe(bench, texts[name], scores[name], scores) for name in texts}
    models["sft"]["kl"] = {"mean": 0.0, "se": 0.0}
    models["dpo"]["kl"] = {"mean": kl.estimate, "se": kl.se}
    models["dpo"]["gain_over_sft"] = spread(paired_difference(scores["dpo"], scores["sft"], seed=bench.seed))
    models["best-of-n"]["gain_over_sft"] = spread(
        paired_difference(scores["best-of-n"], scores["sft"], seed=bench.seed)
    )
    return {
        "num_test": len(bench.functions),
        "best_of": BEST_OF,
        "models": models,
        "sampled_gain": spread(paired_difference(group_means(dpo_sampled), group_means(sampled), seed=bench.seed)),
        "frontier": frontier(sampled, rated, dpo_sampled, kl),
        "reward_model": reward_quality(sampled, rated, bench.seed),
        "examples": examples(bench, texts, scores),
        "gaming": gaming(bench),
    }


def first_texts(groups: Sequence[Group]) -> list[str]:
    return [group.responses[0][-1].content for group in groups]


def group_means(groups: Sequence[Group]) -> np.ndarray:
    return np.array([float(np.mean(group.scores)) for group in groups])


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


def policy_kl(groups: Sequence[Group], reference: Decoder) -> Interval:
    """KL(policy || reference) per response in nats, from the policy's own samples (estimator k1)."""
    rows = [sample_row(group, range(len(group))) for group in groups]
    reference_logps = np.concatenate(PolicyScorer(reference, temperature=TEMPERATURE).score(rows))
    policy_logps = np.array([float(sample.logps.sum()) for group in groups for sample in group.samples])
    return sequence_kl(policy_logps, reference_logps, [group.key for group in groups for _ in group.samples])


def frontier(
    sampled: Sequence[Group], rated: Sequence[Group], dpo_sampled: Sequence[Group], kl: Interval
) -> list[dict[str, Any]]:
    """Points of the reward-KL plane; best-of-n's KL is the bound log n - (n-1)/n, its score the unbiased estimate."""
    points = []
    for n, bound, values_P in curve(rated, [1, 2, 4, BEST_OF], [group.scores for group in sampled]):
        mean = normal_mean(values_P)
        label, model = ("SFT", "sft") if n == 1 else (f"best of {n}", "best-of-n")
        points.append(
            {"label": label, "model": model, "kl": bound, "kl_se": 0.0, "score": mean.estimate, "score_se": mean.se}
        )
    mean = normal_mean(group_means(dpo_sampled))
    points.append(
        {"label": "DPO", "model": "dpo", "kl": kl.estimate, "kl_se": kl.se, "score": mean.estimate, "score_se": mean.se}
    )
    return points


def reward_quality(sampled: Sequence[Group], rated: Sequence[Group], seed: int) -> dict[str, Any]:
    """Two random samples per prompt: against the annotator's noisy choice, and against the judge's own order."""
    rng = np.random.default_rng([seed, 11])
    gaps, clean = [], []
    for truth, rating in zip(sampled, rated, strict=True):
        a, b = rng.permutation(len(truth))[:2]
        if truth.responses[a] == truth.responses[b]:
            continue
        better = truth.scores[a] - truth.scores[b]
        gap = rating.scores[a] - rating.scores[b]
        gaps.append(gap if rng.random() < preference(better, NOISE) else -gap)
        if better != 0:
            clean.append(float(gap * better > 0))
    found = pair_calibration(gaps, bins=10, seed=seed)
    bins = [
        {"confidence": b.confidence, "accuracy": b.accuracy, "count": b.count}
        for b in found.reliability.bins
        if b.count
    ]
    return {
        "accuracy": found.accuracy.estimate,
        "accuracy_interval": [found.accuracy.low, found.accuracy.high],
        "accuracy_clean": float(np.mean(clean)),
        "num_pairs": len(gaps),
        "ece": found.reliability.ece,
        "null_ece": found.null_ece,
        "temperature": found.temperature,
        "reliability": bins,
    }


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
