"""Answers of a policy to prompts: true and learned reward, KL from the start, length.

    policy --sample--> groups --reward model--> learned scores --select--> answers --truth--> scores
                                                                   |--conditional_kl--> nats per answer

The KL of an answer is the sum over its tokens of KL(policy(.|prefix) || start(.|prefix)), each exact over the whole vocabulary: its
mean over answers is the KL of the sequences, like that of the log-ratio log policy(y) - log start(y) (evals.kl, estimator k1), with
less noise and never below 0. Both are kept.

What is drawn depends on seed and prompt only, so all policies answer the same prompts with the same luck, and are compared in pairs.
Legend: P prompts, A answers per prompt, N scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from trueline.align.group import Group, part, sample_row
from trueline.align.rollouts import rollouts
from trueline.align.select import Select
from trueline.models.attention import Layout, tree_tokens
from trueline.models.decoder import Decoder
from trueline.records import Messages, Row, Sampling
from trueline.serve.engine import Engine
from trueline.study.settings import Settings
from trueline.tokens import Tokenizer
from trueline.tokens.encode import encode_prompt

Rate = Callable[[Sequence[Group]], list[Group]]
"""Groups with scores: of the judge, or of a learned reward."""
CHUNK = 256
"""Positions whose two distributions are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a policy answers: with what it draws, or with what a selector takes of n draws."""

    label: str = ""
    select: Select | None = None
    n: int = 1


def answers(
    policy: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Messages],
    settings: Settings,
    seed: int,
    *,
    truth: Rate | None,
    learned: Rate | None,
    start: Decoder | None,
    ways: Sequence[Way] = (Way(),),
) -> dict[str, Any]:
    """For each way the figures of its answers as lists [P][A], JSON-ready. `start` None: the policy is the start, its KL is 0.
    `truth` None: the judge compares, and is asked later."""
    A, draws = settings.samples, draws_of(settings, ways)
    engine = Engine(policy, tokenizer, max_batch=128)
    sampling = Sampling(n=draws, temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=seed)
    drawn = rollouts(
        prompts, engine, None, sampling, encode=lambda prompt: encode_prompt(prompt, tokenizer), decode=engine.text
    )
    rated = learned(drawn) if learned is not None else None
    by_what = rated or (truth(drawn) if truth is not None and draws > A else drawn)  # where nothing is learned, the judge itself chooses
    chosen = {way.label: [choose(group, way, A, seed) for group in by_what] for way in ways}
    asked = [sorted({k for picks in chosen.values() for k in picks[p]}) for p in range(len(prompts))]
    groups = [part(group, numbers) for group, numbers in zip(drawn, asked, strict=True)]
    judged = truth(groups) if truth is not None else [replace(group, scores=(math.nan,) * len(group)) for group in groups]
    true = [dict(zip(numbers, map(known, group.scores), strict=True)) for group, numbers in zip(judged, asked, strict=True)]
    found: dict[str, Any] = {}
    for way in ways:
        picks = chosen[way.label]
        given = [part(group, numbers) for group, numbers in zip(drawn, picks, strict=True)]
        found[way.label] = {
            "true": [[scores[k] for k in numbers] for scores, numbers in zip(true, picks, strict=True)],
            "learned": rated and [[group.scores[k] for k in numbers] for group, numbers in zip(rated, picks, strict=True)],
            "tokens": [[len(sample.ids) for sample in group.samples] for group in given],
            "finished": [[sample.finish_reason == "stop" for sample in group.samples] for group in given],
            "texts": [["".join(message.content for message in response) for response in group.responses] for group in given],
            "n": way.n,
        }
    if start is not None:
        rows = [sample_row(group, range(A)) for group in drawn]
        kl, log_ratio = conditional_kl(policy, start, rows, settings.temperature, settings.max_tokens_per_batch)
        found[ways[0].label] |= {"kl": kl, "log_ratio": log_ratio}
    found["drawn"] = {
        "mean_tokens": float(np.mean([len(sample.ids) for group in drawn for sample in group.samples])),
        "prompt_tokens": float(np.mean([len(group.samples[0].prompt_ids) for group in drawn])),
    }
    return found


def known(score: float) -> float | None:
    """As JSON has it: None where the judge said nothing."""
    return score if math.isfinite(score) else None


def draws_of(settings: Settings, ways: Sequence[Way]) -> int:
    """Responses per prompt: the answers themselves, and behind them n for each that a selector gives."""
    return settings.samples * (1 + max((way.n for way in ways if way.select is not None), default=0))


def choose(group: Group, way: Way, A: int, seed: int) -> list[int]:
    """The numbers of A answers. Those of a selector are taken of other draws than the A that are answers by themselves: against one of
    those it would win too often, since where it is among the n it is never better."""
    if way.select is None:
        return list(range(A))
    found = []
    for a in range(A):
        rng = np.random.default_rng([seed, int(group.key, 16), a])
        first = A + a * way.n
        if not np.isfinite(group.scores[first : first + way.n]).all():  # who should choose said nothing
            found.append(first)
            continue
        (pick,) = way.select(part(group, range(first, first + way.n)), rng)
        found.append(first + pick[0])
    return found


def conditional_kl(
    policy: Decoder, start: Decoder, rows: Sequence[Row], temperature: float, max_tokens: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Per row and sequence (both [P][K]): sum over scored tokens of the exact KL given the prefix, and of the log-ratio of the token."""
    found: list[list[float]] = []
    ratios: list[list[float]] = []
    training = policy.training
    policy.eval()
    start.eval()
    batch: list[Row] = []
    for number, row in enumerate(rows):
        batch.append(row)
        following = tree_tokens(rows[number + 1]) if number + 1 < len(rows) else max_tokens
        if sum(map(tree_tokens, batch)) + following > max_tokens:
            sums_S, log_S = _kl_of_batch(policy, start, Layout.tree(batch).to(policy.device), temperature)
            ends = np.cumsum([len(one.ids) for one in batch])[:-1]
            found += [part_K.tolist() for part_K in np.split(sums_S, ends)]
            ratios += [part_K.tolist() for part_K in np.split(log_S, ends)]
            batch = []
    policy.train(training)
    return found, ratios


@torch.inference_mode()
def _kl_of_batch(policy: Decoder, start: Decoder, layout: Layout, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Per sequence [S]: exact KL and log-ratio, summed over its scored tokens."""
    hidden_ND, before_ND = (model(layout, wanted_N=layout.predicted_by_N) for model in (policy, start))
    kl_S = torch.zeros(layout.num_sequences, dtype=torch.float64, device=policy.device)
    ratio_S = torch.zeros_like(kl_S)
    for i in range(0, len(hidden_ND), CHUNK):
        c = slice(i, i + CHUNK)
        logps_CV = (policy.head(hidden_ND[c]).float() / temperature).log_softmax(1)
        gap_CV = logps_CV - (start.head(before_ND[c]).float() / temperature).log_softmax(1)
        kl_C = (logps_CV.exp() * gap_CV).sum(1).double()
        ratio_C = gap_CV.gather(1, layout.targets_N[c, None]).squeeze(1).double()
        kl_S.index_add_(0, layout.sequence_of_N[c], kl_C)
        ratio_S.index_add_(0, layout.sequence_of_N[c], ratio_C)
    return kl_S.cpu().numpy(), ratio_S.cpu().numpy()
