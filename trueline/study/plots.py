"""The plots of a study's report, as inline SVG.

Left out: the look of the page (page), the figures themselves (outcome).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.study.page import INK, new_figure, to_svg
from trueline.study.verdict import START

PALETTE = ("#4c78d0", "#d98a29", "#2f9e6e", "#c25b6e", "#8d6cc4", "#3aa6b9", "#a3792c", "#d0569f", "#6f8f2a", "#5d6b82")
GREY = "#8a8f98"

Paint = Mapping[str, str]
"""Arm -> colour."""


def colours(results: Mapping[str, Any]) -> dict[str, str]:
    """The start is grey; arms take the palette's colours in their order."""
    names = [arm["name"] for arm in results["arms"] if arm["name"] != START]
    return {START: GREY} | {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def frontier_plot(results: Mapping[str, Any], paint: Paint) -> str:
    """Reward against KL: a line per setting over its steps."""
    figure, axes = new_figure()
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in results["points"]:
        key = (one["arm"], one["label"] if one["step"] else "")  # ways to answer are one line, settings that train a line each
        lines.setdefault(key, []).append(one)
    (start,) = lines.pop((START, ""))
    for (arm, _), points in lines.items():
        points = sorted(points, key=lambda one: one["kl"]["estimate"] if not one["step"] else one["step"])
        path = [start, *points]
        axes.plot([p["kl"]["estimate"] for p in path], [p["reward"]["estimate"] for p in path], color=paint[arm], lw=1, alpha=0.6)
        for one in points:
            draw_point(axes, one, paint[arm])
    draw_point(axes, start, GREY)
    label_ends(axes, results, paint)
    axes.margins(0.12)
    axes.set_xlabel("KL from the start (nats per answer)")
    axes.set_ylabel("wins against the start" if results["judge"]["compares"] else "reward")
    return to_svg(figure)


def draw_point(axes: Any, one: Mapping[str, Any], colour: str) -> None:
    """A policy with its intervals; those on the way are small and without."""
    kl, reward = one["kl"], one["reward"]
    if not one["main"]:
        error = [[reward["estimate"] - reward["low"]], [reward["high"] - reward["estimate"]]]
        axes.errorbar(kl["estimate"], reward["estimate"], yerr=error, color=colour, fmt="o", ms=3.2, lw=0.7, alpha=0.55)
        return
    errors = [[[part["estimate"] - part["low"]], [part["high"] - part["estimate"]]] for part in (kl, reward)]
    axes.errorbar(kl["estimate"], reward["estimate"], xerr=errors[0], yerr=errors[1], color=colour, fmt="o", ms=6.5, lw=1.1)


def label_ends(axes: Any, results: Mapping[str, Any], paint: Paint) -> None:
    """A legend in the page's colours, beside the points: they are too many to find room among."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, marker="o", lw=1, label=name) for name, colour in paint.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def gain_plot(results: Mapping[str, Any], paint: Paint) -> str:
    """Each arm's gain over the start, with the simultaneous interval."""
    figure, axes = new_figure()
    found = [one for one in results["differences"] if START in (one["a"], one["b"])]
    for place, one in enumerate(found):
        sign = -1 if one["a"] == START else 1
        name, gap = (one["b"] if sign < 0 else one["a"]), one["difference"]
        low, high = sorted((sign * gap["low"], sign * gap["high"]))
        middle = sign * gap["estimate"]
        axes.errorbar(middle, -place, xerr=[[middle - low], [high - middle]], fmt="o", color=paint[name], capsize=3, lw=1.6)
    axes.axvline(0, color=INK, lw=0.8, ls="--")
    axes.set_yticks([-place for place in range(len(found))], [one["b"] if one["a"] == START else one["a"] for one in found])
    axes.margins(y=0.25)
    axes.set_xlabel("wins against the start, less a half" if results["judge"]["compares"] else "reward less the start's")
    return to_svg(figure)


def cost_plot(results: Mapping[str, Any], paint: Paint) -> str:
    """Stacked bars of what each arm's training goes through, in trained positions."""
    figure, axes = new_figure()
    arms = [arm for arm in results["arms"] if arm["name"] != START]
    parts = (("trained", "policy", 1.0, 0.95), ("critic", "critic", 1.0, 0.8), ("reward_model", "reward model", 1.0, 0.62),
             ("reference", "reference", 1 / 3, 0.42), ("sampled", "sampling", 1 / 3, 0.28), ("scored", "scoring", 1 / 3, 0.16))  # fmt: skip
    left = [0.0] * len(arms)
    for name, title, share, alpha in parts:
        widths = [share * arm["cost"][name] / 1e6 for arm in arms]
        if any(widths):
            colour = PALETTE[0] if name == "trained" else GREY
            axes.barh([-i for i in range(len(arms))], widths, left=left, color=colour, alpha=alpha, label=title)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks([-i for i in range(len(arms))], [arm["name"] for arm in arms])
    axes.set_xlabel("million positions")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return to_svg(figure)


def over_optimisation_plot(results: Mapping[str, Any], paint: Paint) -> str:
    """Gains by the judge and by the reward model that drives, over KL."""
    figure, axes = new_figure()
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in results["points"]:
        if one["learned_gain_sd"] is not None and one["arm"] != START:
            lines.setdefault((one["arm"], one["label"] if one["step"] else ""), []).append(one)
    for (arm, _), points in lines.items():
        points = sorted(points, key=lambda one: one["kl"]["estimate"])
        kl = [0.0, *(one["kl"]["estimate"] for one in points)]
        for name, style in (("gain_sd", "-"), ("learned_gain_sd", "--")):
            axes.plot(kl, [0.0, *(one[name]["estimate"] for one in points)], style, color=paint[arm], lw=1.3, marker="o", ms=3)
    axes.axhline(0, color=INK, lw=0.6)
    label_ends(axes, results, {name: colour for name, colour in paint.items() if name != START})
    axes.set_xlabel("KL from the start (nats per answer)")
    axes.set_ylabel("gain (sd of the start)")
    return to_svg(figure)


def calibration_plot(results: Mapping[str, Any]) -> str:
    """Confidence of the reward models against how often they are right."""
    figure, axes = new_figure()
    axes.plot([0.5, 1], [0.5, 1], color=INK, lw=0.8, ls="--")
    for number, found in enumerate(results["calibration"]):
        bins = [one for one in found["reliability"]["bins"] if one["count"]]
        largest = max((one["count"] for one in bins), default=1)
        sizes = [15 + 140 * one["count"] / largest for one in bins]
        colour = PALETTE[(4 + number) % len(PALETTE)]
        x, y = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.75, label=found["name"])
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_xlabel("confidence")
    axes.set_ylabel("share right")
    axes.set_ylim(0, 1.05)
    return to_svg(figure)
