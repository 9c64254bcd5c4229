"""The house's look for reports: one HTML file that opens offline, in light and dark, with plots as inline SVG and no script.

    figure, axes = new_figure()      ...      to_svg(figure)

Left out: what a report says (study.report, quickstart.report).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

INK = "#010203"
"""Stands for the page's text colour in the plots; replaced by currentColor so that they follow light and dark mode."""


def new_figure(columns: int = 1) -> tuple[Any, Any]:
    """Empty axes in the style of the page."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"font.size": 9, "axes.edgecolor": INK, "axes.labelcolor": INK}):
        figure, grid = pyplot.subplots(1, columns, figsize=(5.6, 3.3), layout="constrained")
        for axes in grid if columns > 1 else [grid]:
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=INK)
    return figure, grid


def to_svg(figure: Any) -> str:
    """The figure as inline SVG that takes the colour of the page."""
    import matplotlib
    from matplotlib import pyplot

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True)
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def half(interval: Sequence[float]) -> float:
    return (interval[1] - interval[0]) / 2


def percent(value: float) -> str:
    return f"{100 * value:.0f}%"


STYLE = """
:root{color-scheme:light dark;--bg:#fdfdfc;--fg:#1d2127;--soft:#5c6470;--line:#dfe2e6;--card:#f5f6f7}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e7e9ec;--soft:#9aa3af;--line:#2d333b;--card:#1b2026}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.2rem 1.2rem 4rem}h1{margin:0 0 .4rem;font-size:2rem}
h2{margin:2.6rem 0 .8rem}
h3{font-size:1rem;margin:0 0 .3rem;font-weight:600;overflow-wrap:anywhere}h3 small{color:var(--soft);font-weight:400}
.lead{font-size:1.2rem;margin:.2rem 0}.note,small,summary{color:var(--soft)}.note{font-size:.92rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.42rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:.82rem}
.numbers td:not(:first-child){font-variant-numeric:tabular-nums;white-space:nowrap}
.scroll{overflow-x:auto}.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:1rem;margin-top:1.4rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem}
figure svg{width:100%;height:auto;margin-top:.4rem}
.example{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem;margin:.8rem 0}
.example td:first-child{white-space:nowrap;width:11rem}
.example td:last-child{width:4rem;text-align:right;font-variant-numeric:tabular-nums}
.example tr:last-child td{border-bottom:0}pre{white-space:pre-wrap;font-size:.85rem;overflow-wrap:anywhere}
code{font:.92em ui-monospace,Menlo,Consolas,monospace}details{margin:.4rem 0}
"""
