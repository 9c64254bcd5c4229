"""Rollouts: prompts in, groups of sampled and judged responses out.

    prompts --encode--> ids --sampler--> Samples --decode--> text --judge--> Group(prompt, responses, samples, scores)

The sampler, the judge, and the two functions between text and ids are handed in. One call draws everything in one batch.
Left out: what becomes of the groups (`select`, `annotator`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from trueline.align.group import Group, judged, prompt_key
from trueline.protocols import Judge, Sampler
from trueline.records import TEXT, Message, Messages, Sample, Sampling


def rollouts(
    prompts: Sequence[Messages],
    sampler: Sampler,
    judge: Judge | None,
    sampling: Sampling,
    *,
    encode: Callable[[Messages], np.ndarray],
    decode: Callable[[Sample], str],
) -> list[Group]:
    """`sampling.n` responses per prompt, scored by the judge (None leaves them unscored), one group per prompt in order.

    `encode` is `encode_prompt` with its tokenizer, `decode` the engine's `text`. Change `sampling.seed` from round to round:
    the same seed, prompt and weights draw the same responses.
    """
    drawn = sampler.sample([encode(prompt) for prompt in prompts], sampling)
    groups = []
    for prompt, samples in zip(prompts, drawn, strict=True):
        role = TEXT if prompt and prompt[-1].role == TEXT else "assistant"
        key = prompt_key(prompt)
        groups.append(
            Group(
                key=key,
                prompt=prompt,
                responses=tuple((Message(role=role, content=decode(sample)),) for sample in samples),
                samples=tuple(replace(sample, group=key) for sample in samples),
            )
        )
    return groups if judge is None else judged(groups, judge)
