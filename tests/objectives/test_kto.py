"""KTO: the reference point, numbers by hand, signs, limits, and the formula on separate sequences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.objectives.plain import Listed, assert_step_is, decoder, listed, logps, loss_of, rows_of
from trueline.models.adapters import attach
from trueline.models.lora import LoRAConfig
from trueline.objectives.base import Arranges, Budget
from trueline.objectives.kto import KTO
from trueline.objectives.mismatched import with_mismatched
from trueline.protocols import Crew
from trueline.records import Row

UNIFORM = -math.log(4)


def labelled(rows: list[Row], labels: list[float]) -> list[Row]:
    """Single responses with labels, and reference log-probs for them and for those under foreign prompts."""
    rng = np.random.default_rng(5)
    marked = [
        replace(row, numbers={"label": np.array([label], np.float32)}) for row, label in zip(rows, labels, strict=True)
    ]
    return [
        replace(row, numbers={**row.numbers, "reference_logps": rng.normal(-24, 2, 2).astype(np.float32)})
        for row in with_mismatched(marked)
    ]


def test_by_hand() -> None:
    r, z0 = torch.tensor([2.0, 2.0, 0.5]), torch.tensor([1.0, 1.0, 0.5])
    losses = KTO(beta=0.5, desirable_weight=1.5, undesirable_weight=2.0).response_loss(
        r, z0, torch.tensor([1.0, 0.0, 1.0])
    )
    s = 1 / (1 + math.exp(-0.5))
    assert losses.tolist() == pytest.approx([1.5 * (1 - s), 2.0 * s, 1.5 * 0.5])


def test_signs_and_saturation() -> None:
    """Desirable is pulled up, undesirable down, both hardest at the reference point, and no further once far beyond it."""
    for label, sign in ((1.0, -1.0), (0.0, 1.0)):
        r = torch.tensor([1.0, 60.0, -60.0], requires_grad=True)
        KTO(beta=0.5).response_loss(r, torch.ones(3), torch.full((3,), label)).sum().backward()
        assert r.grad is not None
        assert r.grad.tolist() == pytest.approx([sign * 0.5 / 4, 0, 0], abs=1e-6)


def test_the_reference_point_is_of_the_foreign_responses() -> None:
    """Uniform over 4; the references of the foreign ones say gains of 0.4 and 0.2: z0 = 0.3. Those of the own ones do not count."""
    rows = [
        listed([1, 2], prompt=0, label=[1, 1], reference_logps=[UNIFORM - 5, UNIFORM - 0.4]),
        listed([2, 1], prompt=3, label=[0, 0], reference_logps=[UNIFORM + 1, UNIFORM - 0.2]),
    ]
    policy = Listed([0.0] * 4)
    loss, means = loss_of(KTO(beta=1.0), policy, rows)
    assert means["kl"] == pytest.approx(0.3, abs=1e-5)
    up, down = 1 / (1 + math.exp(5 - 0.3)), 1 / (1 + math.exp(1 + 0.3))
    assert loss.item() == pytest.approx((up + down) / 2, abs=1e-5)
    assert means["rewards/chosen"] == pytest.approx(5, abs=1e-5) and means["rewards/rejected"] == pytest.approx(
        -1, abs=1e-5
    )
    assert means["rewards/margins"] == pytest.approx(6, abs=1e-5)
    assert means["logps/chosen"] == pytest.approx(UNIFORM, abs=1e-5) == means["logps/rejected"]
    loss.backward()
    assert policy.logits.grad is not None and policy.logits.grad[1] < 0 < policy.logits.grad[2]


def test_the_reference_point_is_never_negative_and_has_no_gradient() -> None:
    rows = [listed([1, 2], label=[1, 1], reference_logps=[UNIFORM, UNIFORM + 3])]
    policy = Listed([0.0] * 4)
    loss, means = loss_of(KTO(beta=1.0), policy, rows)
    assert means["kl"] == 0 and loss.item() == pytest.approx(0.5, abs=1e-6)
    loss.backward()
    assert policy.logits.grad is not None  # of response 1 alone: p - 1 for it, p for the others, times sigmoid'(0)
    assert policy.logits.grad.tolist() == pytest.approx([0.0625, -0.1875, 0.0625, 0.0625], abs=1e-6)
    assert "rewards/margins" not in means and "rewards/rejected" not in means  # nothing was undesirable


def test_foreign_responses_answer_another_prompt() -> None:
    """Also where nearly all rows have one prompt, and where both responses to a prompt stand side by side."""
    prompts, answers = [(5, 5), (6,), (7, 7, 7)], [(20,), (21, 22), (23, 24, 25)]
    for which in ([0, 1, 2], [0] * 7 + [1, 2], [0, 0, 1, 1, 2, 2]):
        rows = []
        for k in which:
            ids = np.array((*prompts[k], *answers[k]), dtype=np.int32)
            rows.append(Row(ids=(ids,), scored=(np.arange(len(ids)) >= len(prompts[k]),)))
        found = with_mismatched(rows)
        for k, row in zip(which, found, strict=True):
            (own, foreign), start = row.ids, len(prompts[k])
            assert own.tolist() == [*prompts[k], *answers[k]]
            assert foreign[:start].tolist() == list(prompts[k]) and row.scored[1].tolist() == [
                i >= start for i in range(len(foreign))
            ]
            others = [list(answers[other])[: 6 - start] for other in range(3) if other != k]  # cut at the longest row
            assert foreign[start:].tolist() in others
        assert [row.ids[1].tolist() for row in with_mismatched(rows)] == [row.ids[1].tolist() for row in found]
    with pytest.raises(ValueError, match="all 3 rows have the same prompt"):
        with_mismatched(rows[:1] * 3)


def test_rows_without_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match="row-0 has no label"):
        KTO().arrange(rows_of(2, 1))
    assert isinstance(KTO(), Arranges)


def test_the_loop_computes_the_formula() -> None:
    """Three of seven desirable; z0 over all seven, whatever the microbatches are."""
    rows, model = labelled(rows_of(7, 1), [1, 0, 0, 1, 0, 1, 0]), decoder()
    objective = KTO(beta=0.2, desirable_weight=4 / 3)
    ratios = []
    for row in rows:
        own, foreign = (one.sum() for one in logps(model, row))
        ratios.append(
            (own - float(row.numbers["reference_logps"][0]), foreign - float(row.numbers["reference_logps"][1]))
        )
    z0 = max(0.0, torch.stack([foreign for _, foreign in ratios]).mean().item())
    assert z0 > 0
    losses = [
        4 / 3 * (1 - torch.sigmoid(0.2 * (own - z0)))
        if row.numbers["label"][0]
        else 1 - torch.sigmoid(0.2 * (z0 - own))
        for (own, _), row in zip(ratios, rows, strict=True)
    ]
    means = assert_step_is(objective, model, rows, torch.stack(losses).mean())
    gains = [0.2 * own.item() for own, _ in ratios]
    chosen = np.mean([gain for gain, row in zip(gains, rows, strict=True) if row.numbers["label"][0]])
    rejected = np.mean([gain for gain, row in zip(gains, rows, strict=True) if not row.numbers["label"][0]])
    assert means["kl"] == pytest.approx(z0, rel=1e-5)
    assert means["rewards/margins"] == pytest.approx(chosen - rejected, rel=1e-5)
    assert (means["rewards/chosen"], means["rewards/rejected"]) == pytest.approx((chosen, rejected), rel=1e-5)


def test_the_reference_point_is_measured_without_dropout() -> None:
    rows, model = labelled(rows_of(4, 1), [1, 0, 1, 0]), decoder()
    attach(model, LoRAConfig(r=4, lora_dropout=0.5))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    model.train()
    (step,) = KTO().steps(rows, Budget(rows=4, tokens=1000))
    with torch.no_grad():
        points = [KTO().prepare(model, step)[0].rows[0].numbers["reference_point"][0] for _ in range(2)]
    assert points[0] == points[1] > 0 and model.training


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"desirable_weight": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KTO(**wrong)


def test_annotate_asks_the_reference_for_both() -> None:
    class Reference:
        fingerprint = "counted"

        def score(self, rows: list[Row]) -> list[np.ndarray]:
            return [np.array([len(ids) for ids in row.ids], np.float32) for row in rows]

    rows = [replace(row, numbers={"label": np.ones(1, np.float32)}) for row in rows_of(3, 1)]
    for row in KTO().annotate(rows, Crew(reference=Reference())):
        assert len(row.ids) == 2 and row.numbers["reference_logps"].tolist() == [len(ids) for ids in row.ids]
