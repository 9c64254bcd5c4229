"""The fused head and the scorers against the plainest formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trueline.models.files import load_scalar_model, save_model
from trueline.models.head import token_logps
from trueline.models.scorer import PolicyScorer, RewardScorer, ScalarModel
from trueline.records import Row


@pytest.mark.parametrize("temperature, cap", [(1.0, None), (0.7, None), (1.0, 2.0), (0.7, 3.0)])
def test_head_equals_log_softmax(temperature: float, cap: float | None) -> None:
    """Several chunks, repeated rows, an arbitrary upstream gradient, with and without a soft cap."""
    torch.manual_seed(0)
    hidden_TD, weight_VD = torch.randn(20, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    rows_N, targets_N, upstream_N = torch.randint(0, 20, (50,)), torch.randint(0, 13, (50,)), torch.randn(50)
    logits_NV = hidden_TD[rows_N] @ weight_VD.T
    if cap is not None:
        logits_NV = cap * (logits_NV / cap).tanh()
    logps_NV = (logits_NV / temperature).log_softmax(-1)
    expected_N = logps_NV[torch.arange(50), targets_N]
    (expected_N * upstream_N).sum().backward()
    grads = hidden_TD.grad.clone(), weight_VD.grad.clone()
    hidden_TD.grad = weight_VD.grad = None
    for chunk_bytes in (4 * 13 * 7, 1 << 20):
        scores = token_logps(
            hidden_TD[rows_N], weight_VD, targets_N, temperature=temperature, cap=cap, chunk_bytes=chunk_bytes
        )
        hidden_TD.grad = weight_VD.grad = None
        (scores.logps_N * upstream_N).sum().backward()
        torch.testing.assert_close(scores.logps_N, expected_N, atol=1e-5, rtol=0)
        torch.testing.assert_close(hidden_TD.grad, grads[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weight_VD.grad, grads[1], atol=1e-5, rtol=1e-5)
        assert torch.equal(scores.correct_N, logps_NV.argmax(-1) == targets_N)
        torch.testing.assert_close(scores.entropy_N, -(logps_NV.exp() * logps_NV).sum(-1).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept, cap", [(True, None), (False, None), (True, 2.0)])
def test_equal_weights_is_a_hint_only(kept: bool, cap: float | None) -> None:
    """The gradient formed in the forward pass, when the promise is kept and when it is broken."""
    torch.manual_seed(1)
    hidden_TD, weight_VD = torch.randn(20, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    rows_N, targets_N = torch.randint(0, 20, (50,)), torch.randint(0, 13, (50,))
    upstream_N = torch.full((50,), -0.3) if kept else torch.randn(50)
    grads = []
    for hint in (False, True):
        hidden_TD.grad = weight_VD.grad = None
        scores = token_logps(
            hidden_TD[rows_N], weight_VD, targets_N, temperature=0.8, cap=cap, equal_weights=hint, chunk_bytes=4 * 13 * 7
        )
        (scores.logps_N * upstream_N).sum().backward()
        grads.append((hidden_TD.grad.clone(), weight_VD.grad.clone()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_head_of_nothing() -> None:
    hidden_TD, weight_VD = torch.randn(4, 8, requires_grad=True), torch.randn(13, 8)
    nothing = torch.zeros(0, dtype=torch.long)
    token_logps(hidden_TD[nothing], weight_VD, nothing).logps_N.sum().backward()
    assert float(hidden_TD.grad.abs().sum()) == 0


def test_scorers(tiny: Any, sequences: Any, tmp_path: Path) -> None:
    """Row by row as one by one, whatever the budget; a saved reward model gives the same scores."""
    model = tiny(pad_token_id=0)
    rows = []
    for seed, branches in enumerate(([5, 9], [3], [4, 4, 8])):
        trunk, *rest = sequences(seed, [12, *branches])
        ids = tuple(np.concatenate((trunk, x)) for x in rest)
        rows.append(Row(ids=ids, scored=tuple(np.arange(len(x)) >= 12 for x in ids)))
    expected = [
        [
            float(
                model.logits(torch.from_numpy(x).long())
                .detach()
                .log_softmax(-1)[np.arange(11, len(x) - 1), x[12:]]
                .sum()
            )
            for x in row.ids
        ]
        for row in rows
    ]
    for budget in (10, 60, 8192):
        scores = PolicyScorer(model, max_tokens=budget).score(rows)
        assert [s.shape for s in scores] == [(2,), (1,), (3,)]
        np.testing.assert_allclose(np.concatenate(scores), np.concatenate(expected), atol=1e-4)
    reward = ScalarModel(model)
    scores = np.concatenate(RewardScorer(reward, max_tokens=40).score(rows))
    save_model(reward, tmp_path)
    loaded = RewardScorer(load_scalar_model(tmp_path))
    np.testing.assert_allclose(np.concatenate(loaded.score(rows)), scores, atol=1e-5)
    assert loaded.fingerprint == RewardScorer(reward).fingerprint != PolicyScorer(model).fingerprint
