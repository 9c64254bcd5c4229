"""Pairwise losses against hand-computed numbers, signs and limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueline.models.attention import Layout
from trueline.models.config import DecoderConfig
from trueline.models.decoder import ScalarModel
from trueline.models.files import new_model
from trueline.models.head import TokenScores, token_logps
from trueline.objectives.base import Batch, Budget
from trueline.objectives.dpo import DPO, hinge_loss, ipo_loss, sigmoid_loss, smooth, unflip
from trueline.objectives.pairs import pairs_of
from trueline.objectives.reward import Reward, bradley_terry
from trueline.protocols import Crew
from trueline.records import Row

BUDGET = Budget(rows=10**6, tokens=10**9)


def row(K: int, key: str = "", **numbers: list[float]) -> Row:
    ids = tuple(np.array([9, k], dtype=np.int32) for k in range(K))
    scored = (np.array([False, True]),) * K
    return Row(
        ids=ids,
        scored=scored,
        key=key,
        numbers={name: np.array(value, dtype=np.float32) for name, value in numbers.items()},
    )


class Scores(nn.Module):
    """A reward model that is a table: the score of a response is that of its last token."""

    def __init__(self, scores: list[float]):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, layout: Layout) -> Tensor:
        return self.scores[layout.ids_T[layout.last_S]]


def one_batch(objective: DPO | Reward, rows: list[Row]) -> Batch:
    ((batch,),) = objective.steps(rows, BUDGET)
    return batch


def test_dpo_losses_by_hand() -> None:
    h = torch.tensor([0.0, 2.0, -3.0])
    assert sigmoid_loss(h, 0.5).tolist() == pytest.approx(
        [math.log(2), math.log(1 + math.exp(-1)), math.log(1 + math.exp(1.5))]
    )
    assert ipo_loss(h, 0.5).tolist() == pytest.approx([1.0, 1.0, 16.0])  # (h - 1)^2
    assert hinge_loss(h, 0.5).tolist() == pytest.approx([1.0, 0.0, 2.5])


def test_label_smoothing_is_conservative_dpo() -> None:
    h, certain = torch.tensor([0.7]), torch.ones(1)
    smoothed = DPO(beta=1.0, label_smoothing=0.1).pair_loss(h, certain)
    assert smoothed.item() == pytest.approx(0.9 * math.log(1 + math.exp(-0.7)) + 0.1 * math.log(1 + math.exp(0.7)))
    best = torch.tensor([math.log(9.0)], requires_grad=True)  # the optimum lies at log((1-e)/e)/beta
    DPO(beta=1.0, label_smoothing=0.1).pair_loss(best, certain).backward()
    assert best.grad is not None and best.grad.abs().item() < 1e-6


def test_robust_dpo_is_unbiased_under_flips() -> None:
    h = torch.tensor([0.7])
    robust = DPO(beta=1.0, loss_type="robust", label_smoothing=0.2)
    expected = 0.8 * robust.pair_loss(h, torch.ones(1)) + 0.2 * robust.pair_loss(h, torch.zeros(1))
    assert expected.item() == pytest.approx(DPO(beta=1.0).pair_loss(h, torch.ones(1)).item())
    by_paper = (0.8 * math.log(1 + math.exp(-0.7)) - 0.2 * math.log(1 + math.exp(0.7))) / 0.6
    assert robust.pair_loss(h, torch.ones(1)).item() == pytest.approx(by_paper)
    assert unflip(smooth(torch.tensor(0.3), 0.2), 0.2).item() == pytest.approx(0.3)


def test_dpo_gradient_weight_is_the_probability_of_misranking() -> None:
    for margin in (-4.0, 0.0, 4.0):
        h = torch.tensor([margin], requires_grad=True)
        DPO(beta=0.5).pair_loss(h, torch.ones(1)).sum().backward()
        assert h.grad is not None
        assert h.grad.item() == pytest.approx(-0.5 / (1 + math.exp(0.5 * margin)))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"loss_type": "sigmoids"}, {"label_smoothing": 0.5}])
def test_dpo_refuses_nonsense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DPO(**wrong)  # type: ignore[arg-type]


def test_dpo_without_reference_says_so() -> None:
    with pytest.raises(ValueError, match="reference"):
        DPO().annotate([row(2)], Crew())


def test_preferences_from_counts_ranks_and_order() -> None:
    assert pairs_of([row(2)]).preferred_P.tolist() == [1.0]
    assert pairs_of([row(2, counts=[3, 1])]).preferred_P.tolist() == [0.75]
    assert pairs_of([row(2, rank=[1, 1])]).preferred_P.tolist() == [0.5]
    assert pairs_of([row(2, rank=[2, 1])]).preferred_P.tolist() == [0.0]
    pairs = pairs_of([row(2, rank=[2, 1]), row(2, counts=[0, 0]), row(3, rank=[1, 2, 2])])
    assert pairs.chosen_P.tolist() == [1, 2, 4, 4, 5] and pairs.rejected_P.tolist() == [0, 3, 5, 6, 6]
    assert pairs.weight_P.tolist() == pytest.approx([1, 0, 1 / 3, 1 / 3, 1 / 3])  # a prompt weighs 1 whatever its K
    assert pairs.decided_P.tolist() == [1, 0, 1, 1, 0]
    voted = pairs_of([row(3, counts=[2, 0, 0])])  # nobody voted on the last pair: the others share its weight
    assert voted.preferred_P.tolist() == [1, 1, 0.5] and voted.weight_P.tolist() == [0.5, 0.5, 0]
    with pytest.raises(ValueError, match="at least 2"):
        pairs_of([row(1)])


def test_bradley_terry_by_hand() -> None:
    model = Scores([1.0, -0.5, 0.0])
    losses = Reward().loss(model, one_batch(Reward(), [row(3, rank=[1, 3, 2], weight=[2, 2, 2])]), Crew())
    pairs = [1.5, 1.0, 0.5]  # score differences, better minus worse
    expected = 2 / 3 * sum(math.log(1 + math.exp(-d)) for d in pairs)
    assert losses.terms["loss"].item() == pytest.approx(expected)
    metrics = {name: (round(value.item(), 6), count) for name, (value, count) in losses.metrics.items()}
    assert metrics == {"accuracy": (3.0, 3.0), "margin": (3.0, 3.0), "mean_reward": (0.5, 3.0)}
    losses.terms["loss"].backward()
    assert model.scores.grad is not None
    assert model.scores.grad[0] < 0 < model.scores.grad[1]  # a step of descent lifts the best and lowers the worst
    assert model.scores.grad.sum().item() == pytest.approx(0, abs=1e-6)  # only differences matter


def test_ties_count_in_no_accuracy() -> None:
    rows = [row(2, rank=[1, 1]), row(2, rank=[1, 2])]
    losses = Reward().loss(Scores([1.0, 0.0]), one_batch(Reward(), rows), Crew())
    assert {name: losses.metrics[name][0].item() for name in ("accuracy", "margin")} == {"accuracy": 1, "margin": 1}
    assert losses.metrics["accuracy"][1] == 1  # pairs


def test_dropped_ties_weigh_nothing_and_the_rest_share_their_weight() -> None:
    """Ranks 1, 2, 2: two pairs remain, each 1/2; a prompt of ties alone drops out of the mean."""
    rows, objective = [row(3, rank=[1, 2, 2]), row(2, rank=[1, 1]), row(2, counts=[3, 3])], Reward(ties="drop")
    batch, model = one_batch(objective, rows), Scores([1.0, 0.0, -1.0])
    assert batch.weights == {"loss": 1.0} and one_batch(Reward(), rows).weights == {"loss": 3.0}
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    found = objective.loss(model, batch, Crew())
    assert found.terms["loss"].item() == pytest.approx(expected) and found.metrics["accuracy"][1] == 2
    half = Reward().loss(model, one_batch(Reward(), rows), Crew()).terms["loss"].item()
    tied = [1.0, 1.0, 1.0]  # scores 0 and -1 within the first row, and 1 and 0 in the two others
    both = [(math.log(1 + math.exp(-d)) + math.log(1 + math.exp(d))) / 2 for d in tied]
    assert half == pytest.approx((2 * expected + both[0]) / 3 + both[1] + both[2])
    with pytest.raises(ValueError, match="ties"):
        Reward(ties="keep")  # type: ignore[arg-type]


def test_all_pairs_of_a_prompt_come_from_one_forward() -> None:
    """K = 6 in one tree, against 15 rows of a pair each weighing 1/15: the same loss and gradient, prompt and responses read
    once instead of 15 and 5 times each."""
    rng, K, P, R = np.random.default_rng(0), 6, 12, 5
    prompt = rng.integers(2, 40, P)
    ids = [np.concatenate([prompt, [k + 2], rng.integers(2, 40, R - 1)]).astype(np.int32) for k in range(K)]
    scored = np.arange(P + R) >= P
    ranked = Row(ids=tuple(ids), scored=(scored,) * K, numbers={"rank": np.arange(K, dtype=np.float32)})
    weight = np.full(2, 1 / 15, dtype=np.float32)
    pairs = [
        Row(ids=(ids[i], ids[j]), scored=(scored,) * 2, numbers={"weight": weight}) for i in range(K) for j in range(i + 1, K)
    ]
    config = DecoderConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = ScalarModel(new_model(config, 1)).double()
    found = []
    for rows in ([ranked], pairs):
        batch = one_batch(Reward(), rows)
        loss = Reward().loss(model, batch, Crew()).terms["loss"]
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        found.append((loss.item(), torch.cat([g.flatten() for g in gradient]), batch.layout.num_tokens, batch.weights["loss"]))
    (loss, gradient, positions, weighs), (loss_2, gradient_2, positions_2, weighs_2) = found
    assert loss == pytest.approx(loss_2, abs=1e-6) and weighs == pytest.approx(weighs_2) == 1
    assert (gradient - gradient_2).abs().max() <= 1e-6 * gradient.abs().max()
    assert (positions, positions_2) == (P + K * R, 15 * (P + 2 * R))


def test_margin_and_centering() -> None:
    assert bradley_terry(torch.tensor(2.0), torch.tensor(1.0), 2.0).item() == pytest.approx(math.log(2))
    model, pair = Scores([1.0, 0.5]), row(2, margin=[0.5, 0.5])
    objective = Reward(center_rewards_coefficient=0.1)
    assert objective.loss(model, one_batch(objective, [pair]), Crew()).terms["loss"].item() == pytest.approx(
        math.log(2) + 0.1 * 2.25
    )


def test_margins_are_per_row_however_rows_are_batched() -> None:
    model, rows = Scores([1.0, 0.5]), [row(2), row(2, margin=[0.5, 0.5])]
    alone = sum(Reward().loss(model, one_batch(Reward(), [one]), Crew()).terms["loss"].item() for one in rows)
    for order in (rows, rows[::-1]):
        together = Reward().loss(model, one_batch(Reward(), order), Crew()).terms["loss"].item()
        assert together == pytest.approx(alone) == pytest.approx(math.log(1 + math.exp(-0.5)) + math.log(2))


def test_bradley_terry_recovers_rewards_up_to_a_constant() -> None:
    true = np.random.default_rng(1).normal(0, 1.5, 9)
    model = Scores([0.0] * 9)
    batch = one_batch(Reward(), [row(9, counts=list(np.exp(true)))])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = Reward().loss(model, batch, Crew()).terms["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    found = model.scores.detach().numpy()
    np.testing.assert_allclose(found - found.mean(), true - true.mean(), atol=2e-3)


class Uniform(nn.Module):
    """A policy of fixed logits per last token."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.0] * 10] * 10))

    def token_logps(self, layout: Layout) -> TokenScores:
        return token_logps(self.logits[layout.ids_T[layout.predicted_by_N]], torch.eye(10), layout.targets_N)


def test_dpo_starts_at_ln_2_and_pushes_the_right_way() -> None:
    reference = np.array([-math.log(10)] * 2, dtype=np.float32)
    annotated = replace(row(2), numbers={"reference_logps": reference})
    model = Uniform()
    losses = DPO(beta=0.1).loss(model, one_batch(DPO(), [annotated]), Crew())
    assert losses.terms["loss"].item() == pytest.approx(math.log(2), abs=1e-6)
    means = {name: (value / count).item() for name, (value, count) in losses.metrics.items()}
    assert means["rewards/margins"] == pytest.approx(0, abs=1e-6) and means["rewards/accuracies"] == 0
    assert means["logps/chosen"] == pytest.approx(-math.log(10), abs=1e-5)
    losses.terms["loss"].backward()
    assert model.logits.grad is not None
    assert model.logits.grad[9, 0] < 0 < model.logits.grad[9, 1]
    assert model.logits.grad[9, 0].item() == pytest.approx(-0.05, abs=1e-6)  # -beta sigmoid(0) (1 - 0)


def test_dpo_measures_from_the_reference() -> None:
    """A uniform policy, a reference that finds the first response more likely: h = 0 - (-1 + 3) = -2."""
    annotated = replace(row(2), numbers={"reference_logps": np.array([-1.0, -3.0], dtype=np.float32)})
    losses = DPO(beta=0.1).loss(Uniform(), one_batch(DPO(), [annotated]), Crew())
    assert losses.terms["loss"].item() == pytest.approx(math.log(1 + math.exp(0.2)), abs=1e-6)
    means = {name: (value / count).item() for name, (value, count) in losses.metrics.items()}
    assert means["rewards/chosen"] == pytest.approx(0.1 * (1 - math.log(10)), abs=1e-6)
    assert means["rewards/margins"] == pytest.approx(-0.2, abs=1e-6) and means["rewards/accuracies"] == 0
