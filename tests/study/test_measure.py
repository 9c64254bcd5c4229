"""KL of answers: exact given the prefix, and equal in the mean to the log-ratio's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trueline.evals.kl import discrete_kl
from trueline.models.files import load_model
from trueline.records import Row, Sampling
from trueline.serve.engine import Engine
from trueline.study.measure import conditional_kl


@pytest.fixture
def two(tiny: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The start, and a policy that has moved."""
    start, policy = load_model(tiny), load_model(tiny)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return start, policy


def row(prompt: list[int], *responses: list[int]) -> Row:
    ids = tuple(np.array(prompt + response, np.int32) for response in responses)
    return Row(ids=ids, scored=tuple(np.arange(len(x)) >= len(prompt) for x in ids))


def test_one_token_is_the_closed_form(two) -> None:
    """Whatever the token is, its term is the KL of the two next-token distributions, at the temperature that was asked for."""
    start, policy = two
    kl, ratio = conditional_kl(policy, start, [row([3, 4, 5], [7], [9]), row([8, 6], [2, 7])], 0.7, 8)
    with torch.inference_mode():
        p, q = ((model.logits(torch.tensor([3, 4, 5]))[-1] / 0.7).softmax(0).double().numpy() for model in (policy, start))
    assert kl[0] == pytest.approx([discrete_kl(p, q)] * 2, rel=1e-4)
    assert ratio[0] == pytest.approx([np.log(p[7] / q[7]), np.log(p[9] / q[9])], rel=1e-3, abs=1e-5)
    assert len(kl[1]) == 1 and kl[1][0] > 0
    assert conditional_kl(start, start, [row([3], [7])], 1.0, 64)[0] == [[pytest.approx(0, abs=1e-7)]]


def test_mean_is_that_of_the_log_ratio_with_less_noise(two) -> None:
    start, policy = two
    drawn = Engine(policy, stop_ids=[0]).sample([[3, 4, 5]] * 20, Sampling(n=8, max_new_tokens=4, seed=1))
    rows = [row([3, 4, 5], *(sample.ids.tolist() for sample in group)) for group in drawn]
    kl, ratio = (np.array(values).ravel() for values in conditional_kl(policy, start, rows, 1.0, 512))
    gap = kl - ratio
    assert abs(gap.mean()) < 3 * gap.std() / np.sqrt(len(gap))
    assert kl.min() > 0 and kl.std() < ratio.std() / 2
