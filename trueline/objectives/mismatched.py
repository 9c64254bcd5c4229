"""Responses under prompts that they do not answer: what KTO measures its reference point on.

    prompt 1, response 1      prompt 1, response 3
    prompt 2, response 2  ->  prompt 2, response 1      drawn among the rows of other prompts, once, as second sequence of the row
    prompt 3, response 3      prompt 3, response 2

Left out: tokens across the border of prompt and response (both parts keep the ids that they had).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueline.records import Row


def with_mismatched(rows: Sequence[Row]) -> list[Row]:
    """The rows with a second sequence: the same prompt, answered by the response of a random row of another prompt.

    It is cut at the length of the longest row. The choice depends on the rows and their order only.
    """
    starts = [int(np.argmax(row.scored[0])) for row in rows]
    prompts = [row.ids[0][:start].tobytes() for row, start in zip(rows, starts, strict=True)]
    places = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    if len(places) < 2:
        raise ValueError(
            f"kto compares prompts with one another, and all {len(rows)} rows have the same prompt: add others"
        )
    order = sorted(range(len(rows)), key=lambda k: places[prompts[k]])  # rows of one prompt side by side
    sizes = np.bincount([places[prompt] for prompt in prompts])
    ends = np.cumsum(sizes)
    rng, longest = np.random.default_rng(0), max(len(row.ids[0]) for row in rows)
    found = []
    for row, prompt, start in zip(rows, prompts, starts, strict=True):
        group = places[prompt]
        other = order[(ends[group] + rng.integers(len(rows) - sizes[group])) % len(rows)]
        ids = np.concatenate([row.ids[0][:start], rows[other].ids[0][starts[other] :]])[:longest]
        scored = np.concatenate([row.scored[0][:start], rows[other].scored[0][starts[other] :]])[:longest]
        numbers = {"label": np.repeat(row.numbers["label"], 2)} if "label" in row.numbers else {}
        found.append(replace(row, ids=(row.ids[0], ids), scored=(row.scored[0], scored), numbers=numbers))
    return found
