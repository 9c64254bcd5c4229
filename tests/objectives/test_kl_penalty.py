"""KL estimators, their gradients, and the coefficient that steers to a target."""

from __future__ import annotations

import math

import pytest
import torch

from trueline.objectives.kl import KLPenalty, kl_terms, steered


def test_estimators_by_hand() -> None:
    logps, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])  # d = 0.5, -1
    assert kl_terms(logps, reference, "k1").tolist() == pytest.approx([0.5, -1.0])
    assert kl_terms(logps, reference, "k2").tolist() == pytest.approx([0.125, 0.5])
    assert kl_terms(logps, reference, "k3").tolist() == pytest.approx([math.exp(-0.5) - 0.5, math.e - 2])
    assert torch.isfinite(kl_terms(torch.tensor([-500.0]), torch.tensor([0.0]), "k3")).all()


def test_expectations_and_gradients_are_what_the_page_says() -> None:
    """Exact sums over four outcomes: k1 and k3 are unbiased; as losses on drawn tokens k2 and k3 give the two KLs' gradients."""
    logits = torch.tensor([0.3, -0.7, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    logps, reference = logits.log_softmax(0), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    p, q = logps.exp().detach(), reference.exp()
    kl = float((p * (logps.detach() - reference)).sum())
    for estimator in ("k1", "k3"):
        assert float((p * kl_terms(logps.detach(), reference, estimator)).sum()) == pytest.approx(kl)  # type: ignore[arg-type]
    assert float((p * kl_terms(logps.detach(), reference, "k2")).sum()) != pytest.approx(kl, rel=0.01)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    forward, backward = (logps.exp() * (logps - reference)).sum(), (q * (reference - logps)).sum()
    expected = {"k1": torch.zeros(4, dtype=torch.float64), "k2": gradient(forward), "k3": gradient(backward)}
    for estimator, wanted in expected.items():
        found = gradient((p * kl_terms(logps, reference, estimator)).sum())  # type: ignore[arg-type]
        assert torch.allclose(found, wanted, atol=1e-12), estimator


def test_the_coefficient_moves_towards_the_target() -> None:
    assert steered(0.15, 12.0, 6.0, 0.1) == pytest.approx(0.15 * 1.02)  # twice the target: clipped at +20%
    assert steered(0.15, 0.0, 6.0, 0.1) == pytest.approx(0.15 * 0.98)
    assert steered(0.15, 6.6, 6.0, 1.0) == pytest.approx(0.15 * 1.1)
    assert steered(0.15, 6.0, 6.0, 1.0) == 0.15
    assert steered(0.15, 0.0, 6.0, 8.0) == pytest.approx(0.15 * 0.8)  # a round of eight horizons: never below 0


def test_a_steered_coefficient_is_remembered() -> None:
    memory: dict[str, float] = {}
    penalty = KLPenalty(kl_coef=0.1, kl_target=2.0, kl_horizon=100)
    assert penalty.coefficient(memory) == 0.1
    penalty.steer(memory, kl=4.0, responses=50)
    assert KLPenalty(kl_coef=0.1, kl_target=2.0).coefficient(dict(memory)) == pytest.approx(0.11)
    fixed = KLPenalty(kl_coef=0.1)
    fixed.steer(memory, kl=4.0, responses=50)
    assert fixed.coefficient(memory) == 0.1 and memory == {"kl_coef": pytest.approx(0.11)}


@pytest.mark.parametrize("wrong", [{"kl_coef": -1.0}, {"kl_estimator": "k4"}, {"kl_horizon": 0}, {"kl_coef": 0.0, "kl_target": 1.0}])
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KLPenalty(**wrong)  # type: ignore[arg-type]
