"""Groups of scored responses for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from trueline.align.group import Group, prompt_key
from trueline.records import Message, Sample


@pytest.fixture
def make_group() -> Callable[..., Group]:
    """make_group(scores, name=..., texts=...) -> a judged group of samples whose ids are their number."""

    def make(scores: Sequence[float], name: str = "p", texts: Sequence[str] | None = None) -> Group:
        prompt = (Message(role="user", content=name),)
        samples = tuple(
            Sample(
                prompt_ids=np.array([7, 8], dtype=np.int32), ids=np.array([k, 9], dtype=np.int32),
                logps=np.array([-1.0, -0.5], dtype=np.float32), mask=np.array([True, True]), finish_reason="stop",
            )
            for k in range(len(scores))
        )  # fmt: skip
        shown = texts if texts is not None else [f"r{k}" for k in range(len(scores))]
        responses = tuple((Message(role="assistant", content=text),) for text in shown)
        return Group(key=prompt_key(prompt), prompt=prompt, responses=responses, samples=samples, scores=tuple(scores))

    return make
