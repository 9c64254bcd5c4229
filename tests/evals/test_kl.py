"""KL estimators against closed forms of Gaussians (the sheet's table) and of listed distributions."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.evals.kl import discrete_kl, kl_report, kl_terms, sequence_kl


def gaussian(shift: float, n: int = 400000) -> tuple[np.ndarray, np.ndarray]:
    """Log-densities of x ~ N(0, 1) under N(0, 1) and N(shift, 1); their KL is shift^2 / 2."""
    x = np.random.default_rng(0).normal(size=n)
    return -(x**2) / 2, -((x - shift) ** 2) / 2


@pytest.mark.parametrize(("kl", "relative_sd"), [(0.005, (20.0, 1.42, 1.42)), (0.5, (2.0, 1.73, 1.67))])
def test_estimators_of_the_sheet(kl: float, relative_sd: tuple[float, ...]) -> None:
    policy, reference = gaussian(np.sqrt(2 * kl))
    terms = {name: kl_terms(policy, reference, name) for name in ("k1", "k2", "k3")}
    assert terms["k1"].mean() == pytest.approx(kl, rel=0.1)
    assert terms["k3"].mean() == pytest.approx(kl, rel=0.02)
    assert terms["k2"].mean() == pytest.approx(kl * (1.25 if kl == 0.5 else 1.0025), rel=0.02)  # biased by 25% at 0.5
    for name, expected in zip(terms, relative_sd, strict=True):
        assert terms[name].std() / kl == pytest.approx(expected, rel=0.06), name
    assert (terms["k2"] >= 0).all() and (terms["k3"] >= 0).all() and (terms["k1"] < 0).any()


def test_sequence_kl_has_an_honest_error() -> None:
    policy, reference = gaussian(1.0, 4000)
    found = sequence_kl(policy, reference)
    assert abs(found.estimate - 0.5) < 3 * found.se and found.se == pytest.approx(1 / np.sqrt(4000), rel=0.05)


def test_report_of_a_markov_chain_is_the_exact_kl() -> None:
    """Two-token sequences over three tokens: the sum over both tokens estimates the KL of the whole."""
    rng = np.random.default_rng(0)
    p1, q1 = rng.dirichlet([3] * 3), rng.dirichlet([3] * 3)
    p2, q2 = rng.dirichlet([3] * 3, size=3), rng.dirichlet([3] * 3, size=3)
    exact = discrete_kl(p1, q1) + sum(p1[i] * discrete_kl(p2[i], q2[i]) for i in range(3))
    joint = discrete_kl((p1[:, None] * p2).ravel(), (q1[:, None] * q2).ravel())
    assert joint == pytest.approx(exact)
    a = rng.choice(3, size=8000, p=p1)
    b = (rng.random(8000)[:, None] > np.cumsum(p2, 1)[a]).sum(1)
    policy = list(np.log(np.stack([p1[a], p2[a, b]], 1)))
    reference = list(np.log(np.stack([q1[a], q2[a, b]], 1)))
    found = kl_report(policy, reference)
    for estimate in (found.k1, found.k3):
        assert abs(estimate.estimate - exact) < 4 * estimate.se
    assert found.k3.se < found.k1.se
    assert found.per_token == pytest.approx(found.k1.estimate / 2) and found.clamped == 0


def test_overflow_is_clamped_and_counted() -> None:
    found = kl_report([np.array([-900.0, -1.0])], [np.array([-1.0, -1.0])])
    assert np.isfinite(found.k3.estimate) and found.clamped == 1
    assert kl_terms([-30.0], [-1.0], "k3")[0] == pytest.approx(np.expm1(20) - 20)


def test_refusals_and_zeros() -> None:
    with pytest.raises(ValueError, match="use one of k1, k2, k3"):
        kl_terms([0.0], [0.0], "k4")
    with pytest.raises(ValueError, match="score the same tokens"):
        kl_terms([0.0], [0.0, 1.0])
    assert discrete_kl([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert discrete_kl([0.5, 0.5], [1.0, 0.0]) == np.inf
