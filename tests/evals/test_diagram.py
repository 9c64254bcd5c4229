"""The picture says what the numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from trueline.evals.calibration import pair_calibration, reliability
from trueline.evals.diagram import LEFT, SIZE, TOP, WIDTH, calibration_svg

SVG = "{http://www.w3.org/2000/svg}"


def circles(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    return [(float(one.get("cx", "")), float(one.get("cy", "")), one[0].text or "") for one in root.findall(f"{SVG}circle")]


def test_points_lie_where_the_bins_are() -> None:
    found = reliability([0.6] * 10 + [0.9] * 30, [1] * 5 + [0] * 5 + [1] * 27 + [0] * 3, bins=10)
    root = ElementTree.fromstring(calibration_svg(found, units="responses"))
    (low, high), radii = circles(root), [float(one.get("r", "")) for one in root.findall(f"{SVG}circle")]
    assert low[:2] == pytest.approx((LEFT + 0.2 * SIZE, TOP + 0.5 * SIZE), abs=0.1)  # confidence goes from 1/2 to 1, accuracy from 0
    assert high[:2] == pytest.approx((LEFT + 0.8 * SIZE, TOP + 0.1 * SIZE), abs=0.1)
    assert low[2] == "10 responses: says 60.0%, right 50.0%" and radii[0] < radii[1]
    assert float(root.get("width", "")) == WIDTH and not root.findall(f"{SVG}g")
    spread = ElementTree.fromstring(calibration_svg(reliability([0.1, 0.9], [0, 1])))
    assert circles(spread)[0][0] == pytest.approx(LEFT + 0.1 * SIZE, abs=0.1)  # from 0 where confidences lie below 1/2


def test_gaps_stand_beside_it_with_the_curve_that_the_model_states() -> None:
    found = pair_calibration(np.random.default_rng(0).normal(0.3, 1, 300))
    root = ElementTree.fromstring(calibration_svg(found.reliability, found.by_gap, log_odds=True))
    assert sum(int(text.split()[0]) for _, _, text in circles(root)) == 300 and float(root.get("width", "")) == 2 * WIDTH
    (panel,) = root.findall(f"{SVG}g")
    assert len(circles(panel)) == 5 and len(panel.findall(f"{SVG}path")) == 1
    for (x, y, _), one in zip(circles(panel), found.by_gap, strict=True):
        assert LEFT <= x <= LEFT + SIZE and y == pytest.approx(TOP + (1 - one.accuracy) * SIZE, abs=0.1)
    of_worth = ElementTree.fromstring(calibration_svg(found.reliability, found.by_gap))
    assert not of_worth.find(f"{SVG}g").findall(f"{SVG}path")  # type: ignore[union-attr]  # utilities are no log-odds


def test_pairs_that_are_all_alike_can_be_drawn() -> None:
    found = pair_calibration([0.0, 0.0])
    ElementTree.fromstring(calibration_svg(found.reliability, found.by_gap, log_odds=True))
