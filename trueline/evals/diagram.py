"""Calibration as a picture: an SVG file that any browser opens, without a library that draws.

    calibration_svg(reliability, by_gap, log_odds=True) -> "<svg ...>"

Left: confidence against the share that was right, a point per bin, its area the number of predictions in it; a model whose word can be
taken lies on the dashed line. Right, where there are gaps: the share that was right by size of the score gap, with 95% intervals
(Wilson), beside what the model says, sigmoid(gap), where gaps are log-odds (Bai et al., 2204.05862, draw this curve).
Greys and one colour, so that it can be read on light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trueline.evals.calibration import Bin, Reliability
from trueline.evals.interval import wilson

SIZE, LEFT, TOP, WIDTH, HEIGHT = 260, 46, 12, 340, 330
"""Of a panel, in pixels: the plotted square, what is left of it and above it, all of it."""
STYLE = ("text{font:12px sans-serif;fill:#777}.g{stroke:#777;stroke-opacity:.25}.d{stroke:#777;stroke-dasharray:4 4;fill:none}"
         ".i{stroke:#8d6cc4;stroke-width:1.5}circle{fill:#8d6cc4;fill-opacity:.85}")  # fmt: skip
At = Callable[[float, float], tuple[float, float]]


def calibration_svg(found: Reliability, by_gap: Sequence[Bin] = (), *, log_odds: bool = False, units: str = "pairs") -> str:
    """One panel, or two where `by_gap` has bins. `units` are what was counted, for the titles of the points."""
    parts, gap_bins = _reliability(found, units), [one for one in by_gap if one.count]
    if gap_bins:
        parts += [f'<g transform="translate({WIDTH} 0)">', *_gaps(gap_bins, log_odds, units), "</g>"]
    width = WIDTH * (2 if gap_bins else 1)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}">'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</svg>\n"


def _reliability(found: Reliability, units: str) -> list[str]:
    bins = [one for one in found.bins if one.count]
    least = 0.5 if min(one.confidence for one in bins) >= 0.5 else 0.0
    at, parts = _panel((least, 1.0), "it says", "share right")
    parts.append(f'<path d="{_path(at, [(least, least), (1.0, 1.0)])}" class="d"/>')
    most = max(one.count for one in bins)
    for one in bins:
        x, y = at(one.confidence, one.accuracy)
        about = f"{one.count} {units}: says {one.confidence:.1%}, right {one.accuracy:.1%}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 9 * (one.count / most) ** 0.5:.1f}"><title>{about}</title></circle>')
    return parts


def _gaps(bins: Sequence[Bin], log_odds: bool, units: str) -> list[str]:
    end = 1.05 * max(one.confidence for one in bins) or 1.0
    at, parts = _panel((0.0, end), "score gap" if log_odds else "gap of the expected utility", "share right")
    if log_odds:
        curve = [(end * i / 40, 1 / (1 + math.exp(-end * i / 40))) for i in range(41)]
        parts.append(f'<path d="{_path(at, curve)}" class="d"/>')
    for one in bins:
        x, y = at(one.confidence, one.accuracy)
        interval = wilson(min(one.accuracy * one.count, one.count), one.count)
        low, high = at(one.confidence, interval.low)[1], at(one.confidence, interval.high)[1]
        about = f"{one.count} {units}, gap {one.low:.2f} to {one.high:.2f}: right {one.accuracy:.1%}"
        parts.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" class="i"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{about}</title></circle>')
    return parts


def _panel(x_range: tuple[float, float], x_name: str, y_name: str) -> tuple[At, list[str]]:
    """Where a point lies, and the axes; y goes from 0 to 1."""
    low, high = x_range

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - low) / (high - low) * SIZE, TOP + (1 - y) * SIZE

    parts = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = at(low, share)[1]
        parts.append(f'<line x1="{LEFT}" y1="{y:.0f}" x2="{LEFT + SIZE}" y2="{y:.0f}" class="g"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{share:.0%}</text>')
        value = low + share * (high - low)
        word = f"{value:.2g}" if x_name != "it says" else f"{value:.0%}"
        parts.append(f'<text x="{at(value, 0)[0]:.0f}" y="{TOP + SIZE + 18}" text-anchor="middle">{word}</text>')
    parts.append(f'<text x="{LEFT + SIZE / 2:.0f}" y="{TOP + SIZE + 38}" text-anchor="middle">{x_name}</text>')
    turned = f'transform="rotate(-90 12 {TOP + SIZE / 2:.0f})" text-anchor="middle"'
    parts.append(f'<text x="12" y="{TOP + SIZE / 2:.0f}" {turned}>{y_name}</text>')
    return at, parts


def _path(at: At, points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
