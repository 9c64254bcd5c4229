"""The distributional reward model: its targets, its loss on a table of logits, and a tiny model trained and stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueline.models.attention import Layout
from trueline.models.config import DecoderConfig
from trueline.models.decoder import ScalarModel
from trueline.models.files import load_scalar_model, new_model, save_model
from trueline.models.scorer import RewardScorer
from trueline.objectives.base import Budget
from trueline.objectives.dprm import DPRM, target_of
from trueline.objectives.transport import wasserstein
from trueline.protocols import Crew
from trueline.records import Row
from trueline.train import train

BUDGET = Budget(rows=10**6, tokens=10**9)


def row(last: int, key: str = "", **numbers: object) -> Row:
    ids = (np.array([9, last], dtype=np.int32),)
    found = {name: np.array(value, dtype=np.float32) for name, value in numbers.items()}
    return Row(ids=ids, scored=(np.array([False, True]),), key=key, numbers=found)


class Table(nn.Module):
    """A model that is a table: the logits of a response are those of its last token."""

    def __init__(self, logits: list[list[float]]):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(logits))
        self.utilities: tuple[float, ...] = ()

    def logits(self, layout: Layout) -> Tensor:
        return self.table[layout.ids_T[layout.last_S]]


def test_targets_by_hand() -> None:
    worth = (-1.0, 0.0, 0.0, 2.0)
    assert target_of(row(0, counts=[[1, 0, 2, 1]]), worth).tolist() == [[0.25, 0, 0.5, 0.25]]
    assert target_of(row(0, label=[1]), worth).tolist() == [[0, 0, 0, 1]]
    assert target_of(row(0, label=[0]), worth).tolist() == [[1, 0, 0, 0]]
    for score, expected in ((-1, [1, 0, 0, 0]), (-0.25, [0.25, 0.75, 0, 0]), (0.5, [0, 0, 0.75, 0.25]), (2, [0, 0, 0, 1])):
        found = target_of(row(0, score=[score]), worth)
        assert found.tolist() == [expected] and found @ worth == pytest.approx(score)  # its expectation is the score
    for numbers, said in (
        ({"counts": [[1, 2, 3]]}, "counts of 3 categories and there are 4 utilities"),
        ({"counts": [[0, 0, 0, 0]]}, "one of them above 0"),
        ({"score": [2.5]}, "utilities go from -1 to 2"),
        ({}, "says nothing about categories"),
    ):
        with pytest.raises(ValueError, match=said):
            target_of(row(0, **numbers), worth)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"utilities": (1.0,)}, "at least two"), ({"utilities": (0.0, 1.0, 0.5)}, "do not fall"),
     ({"utilities": (1.0, 1.0)}, "worth the same"), ({"loss_type": "ce"}, "loss_type"),
     ({"utilities": (0.0, 1.0), "loss_type": "plane"}, "one of each per category"), ({"epsilon": 0.0}, "epsilon")],
)  # fmt: skip
def test_nonsense_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DPRM(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss_type", ["cross_entropy", "wasserstein", "transport", "plane"])
def test_every_loss_learns_the_shares(loss_type: str) -> None:
    """Two responses of six categories with pooled votes: the table becomes their shares, and the metrics say so."""
    objective = DPRM(loss_type=loss_type)  # type: ignore[arg-type]
    model, votes = Table([[0.0] * 6, [0.0] * 6]), [[1, 1, 2, 2, 6, 8], [9, 3, 2, 2, 2, 2]]
    rows = objective.annotate([row(k, counts=[counts]) for k, counts in enumerate(votes)], Crew())
    ((batch,),) = objective.steps(rows, BUDGET)
    (batch,) = objective.prepare(model, [batch])
    assert batch.weights == {"loss": 2.0} and model.utilities == objective.utilities
    optimizer = torch.optim.Adam(model.parameters(), lr=0.15)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 0.15 * (1 - step / 80)  # the transport losses have kinks
        losses = objective.loss(model, batch, Crew())
        optimizer.zero_grad()
        losses.terms["loss"].backward()
        optimizer.step()
    shares = model.table.detach().softmax(-1)
    target = torch.tensor(votes, dtype=torch.float32) / 20
    if loss_type == "transport":  # which of the two categories worth -1 is open to it
        shares, target = (torch.cat([x[:, :2], x[:, 2:4].sum(1, keepdim=True), x[:, 4:]], 1) for x in (shares, target))
    torch.testing.assert_close(shares, target, atol=0.02, rtol=0)
    means = {name: value.item() / count for name, (value, count) in losses.metrics.items()}
    assert means["rewards/error"] < 0.05 and means["accuracy"] == 1
    expected = float((torch.tensor(votes) / 20 @ torch.tensor(objective.utilities)).mean())
    assert means["mean_reward"] == pytest.approx(expected, abs=0.05)


def test_loss_and_metrics_by_hand() -> None:
    """Logits 0 give 1/2 each; the target is 3/4 on the better one."""
    objective = DPRM(utilities=(-1.0, 3.0), loss_type="transport")
    rows = objective.annotate([row(0, counts=[[1, 3]])], Crew())
    ((batch,),) = objective.steps(rows, BUDGET)
    losses = objective.loss(Table([[0.0, 0.0]]), batch, Crew())
    assert losses.terms["loss"].item() == pytest.approx(0.25 * 4)
    found = {name: value.item() for name, (value, _) in losses.metrics.items()}
    assert found["cross_entropy"] == pytest.approx(math.log(2)) and found["wasserstein"] == pytest.approx(0.25)
    assert found["rewards/error"] == pytest.approx(1.0) and found["mean_reward"] == pytest.approx(1.0)


def test_a_model_is_trained_stored_and_scored(tmp_path: Path) -> None:
    """Responses that end in token 5 divide people, those that end in 6 please nearly all; the folder is a reward model."""
    config = DecoderConfig(
        model_type="qwen3", vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, qk_norm=True, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    save_model(new_model(config, 0), tmp_path / "lm")
    votes = {5: [[5, 0, 5]], 6: [[0, 1, 9]]}
    rows = [row(5 + number % 2, f"row-{number}", counts=votes[5 + number % 2]) for number in range(24)]
    objective = DPRM(utilities=(-1.0, 0.0, 1.0), loss_type="wasserstein")
    options = {"max_steps": 40, "learning_rate": 0.02, "save_steps": 20, "per_device_train_batch_size": 8}
    out = train(objective, tmp_path / "lm", rows, out=tmp_path / "rm", eval_rows=rows[:4], eval_steps=20, **options)
    model = load_scalar_model(out)
    assert isinstance(model, ScalarModel) and model.utilities == (-1.0, 0.0, 1.0)
    shares_SC = torch.from_numpy(np.concatenate(RewardScorer(model).shares([row(5), row(6)])))
    assert wasserstein(shares_SC, torch.tensor([[0.5, 0, 0.5], [0, 0.1, 0.9]])).max() < 0.1
    np.testing.assert_allclose(np.concatenate(RewardScorer(model).score([row(5), row(6)])), [0, 0.9], atol=0.1)
    again = train(objective, tmp_path / "lm", rows, out=out, eval_rows=rows[:4], eval_steps=20, **options)  # finished
    assert again == out
    with pytest.raises(ValueError, match="dprm trains a ScalarModel of 3 categories, not a ScalarModel"):
        train(objective, ScalarModel(new_model(config, 0)), rows, out=tmp_path / "other")
    with pytest.raises(ValueError, match="no place for what categories are worth"):
        train(objective, tmp_path / "lm", rows, out=tmp_path / "adapter", lora_r=2)
