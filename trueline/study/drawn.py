"""Preferences where only prompts and a judge are given: the start draws, the judge orders, the best and the worst are a pair.

    prompts --start--> K responses each --judge--> Comparison(best, worst), a tie where all are equally good

What the training part's responses cost is charged to every method that learns from the pairs. Left out: noise and people
(align.annotator): the judge's order is the preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueline.align.group import prompt_key
from trueline.align.rollouts import rollouts
from trueline.models.files import load_model
from trueline.protocols import Judge
from trueline.records import Comparison, Conversation, Message, Ranking, Sampling
from trueline.serve.engine import Engine
from trueline.store import fingerprint
from trueline.study.cells import Cell
from trueline.study.contest import rated
from trueline.study.settings import Settings
from trueline.study.training import Bench
from trueline.tokens.encode import encode_prompt

RESPONSES = 4
"""Drawn per prompt, where the settings do not say."""
SEED = 2**20
"""Of the drawing: no seed of a study, so that nobody is compared on what it was trained on."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pairs that the start wrote, and what they cost."""

    cell: Cell
    positions: float
    """Token positions sampled per prompt."""
    unknown: frozenset[str] = frozenset()
    """Keys of prompts with a response that the judge said nothing of: nobody learns from them; to answer, they are as good as others."""


def unjudged(prompts: Sequence[Conversation]) -> list[Comparison]:
    """A tie of nothing for every prompt: enough to deal the prompts out."""
    return [Comparison(prompt=prompt.messages, responses=((), ()), judgement=Ranking((1, 1))) for prompt in prompts]


def responses_of(settings: Settings) -> int:
    """Drawn per prompt."""
    return max(2, settings.num_generations or RESPONSES)


def drawn_pairs(bench: Bench, prompts: Sequence[Conversation], judge: Judge, judge_key: str) -> tuple[list[Comparison], Drawn]:
    """One comparison per different prompt."""
    settings = bench.settings
    messages = list({prompt_key(prompt.messages): prompt.messages for prompt in prompts}.values())
    count = responses_of(settings)
    about = {"model": bench.start_key, "prompts": [prompt_key(one) for one in messages], "truth": judge_key, "responses": count,
             "sampling": [settings.temperature, settings.max_new_tokens]}  # fmt: skip
    cell = bench.cells.of("pairs", about | {"prompts": fingerprint(about["prompts"])})

    def compute() -> dict[str, Any]:
        engine = Engine(load_model(bench.start, device=settings.device), bench.tokenizer, max_batch=128)
        sampling = Sampling(n=count, temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=SEED)
        groups = rollouts(messages, engine, None, sampling, encode=lambda one: encode_prompt(one, bench.tokenizer), decode=engine.text)
        found, tokens = [], 0
        for group in rated(groups, judge):
            tokens += len(group.samples[0].prompt_ids) + sum(len(sample.ids) for sample in group.samples)
            known = bool(np.isfinite(group.scores).all())  # else the judge said nothing of one of them
            best, worst = int(np.argmax(group.scores)), int(np.argmin(group.scores))
            worst = worst if best != worst else (best + 1) % count
            texts = [group.responses[k][-1].content for k in (best, worst)]
            found.append([group.responses[best][-1].role, *texts, group.scores[best] > group.scores[worst] if known else None])
        return {"pairs": found, "positions": tokens / max(1, len(messages))}

    kept = cell.once("pairs.json", compute)
    pairs = [
        Comparison(
            prompt=prompt, responses=tuple((Message(role=role, content=text),) for text in (best, worst)),
            judgement=Ranking((1, 2) if decided else (1, 1)),
        )
        for prompt, (role, best, worst, decided) in zip(messages, kept["pairs"], strict=True)
    ]  # fmt: skip
    unknown = frozenset(prompt_key(prompt) for prompt, one in zip(messages, kept["pairs"], strict=True) if one[-1] is None)
    return pairs, Drawn(cell=cell, positions=kept["positions"], unknown=unknown)
