"""Figures of the report as inline SVG: transparent, text in the page's own colour.

A figure has no fixed size (it follows the page's width) and no font of its own, so one drawing
serves light and dark pages and phones.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

# Okabe and Ito's colours, those that stand out on white and on black.
COLOURS = {
    "grpo": "#3b8ed0",
    "sft": "#1fa187",
    "question_only": "#e69f00",
    "mono": "#cc79a7",
    "chance": "#8a8a8a",
}
SPARE = ("#d55e00", "#7a6fd0", "#b0a030", "#56b4e9")
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}


def colour(name: str, index: int = 0) -> str:
    """The colour of a system, the same in every figure."""
    return COLOURS.get(name, SPARE[index % len(SPARE)])


def _svg(draw, size: tuple[float, float], title: str) -> Markup:
    """Runs `draw(figure)` and returns the SVG element, labelled `title` for screen readers."""
    # A salt of its own keeps the ids of one figure from meeting those of another in the page.
    style: Any = _STYLE | {"svg.hashsalt": title}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        meta = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=meta)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    label = Markup.escape(title)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def bars(rows: Mapping[str, Mapping[str, dict]], names: Mapping[str, str], title: str) -> Markup:
    """Accuracy in %, with intervals: a group of bars for each group of A, a bar for each system.

    rows: system -> group -> A ({"accuracy", "low", "high"}). names: what the legend calls them.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        groups = list(next(iter(rows.values())))
        width = 0.84 / len(rows)
        for n, (system, found) in enumerate(rows.items()):
            at = [g + (n - (len(rows) - 1) / 2) * width for g in range(len(groups))]
            values = [100 * found[g]["accuracy"] for g in groups]
            # Rounding can put an interval's end a hair on the wrong side of its middle.
            down = [max(v - 100 * found[g]["low"], 0) for v, g in zip(values, groups, strict=True)]
            up = [max(100 * found[g]["high"] - v, 0) for v, g in zip(values, groups, strict=True)]
            axes.bar(at, values, width * 0.9, color=colour(system, n), label=names[system])
            if system != "chance":
                axes.errorbar(at, values, [down, up], fmt="none", ecolor=_INK, capsize=2)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylim(0, 100)
        axes.set_ylabel("right answers (%)")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=min(len(rows), 3))

    return _svg(draw, (6.4, 4.0), title)


def dots(rows: Mapping[str, Mapping[str, dict]], names: Mapping[str, str], title: str) -> Markup:
    """Accuracy in %, with intervals, of many groups: a line for each, a dot for each system."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        groups = list(next(iter(rows.values())))
        for n, (system, found) in enumerate(rows.items()):
            at = [-g + 0.14 * ((len(rows) - 1) / 2 - n) for g in range(len(groups))]
            values = [100 * found[g]["accuracy"] for g in groups]
            down = [max(v - 100 * found[g]["low"], 0) for v, g in zip(values, groups, strict=True)]
            up = [max(100 * found[g]["high"] - v, 0) for v, g in zip(values, groups, strict=True)]
            style: dict[str, Any] = {"fmt": "o", "markersize": 5, "color": colour(system, n)}
            axes.errorbar(values, at, xerr=[down, up], label=names[system], **style)
        axes.axvline(25, color=COLOURS["chance"], linestyle="--", label="chance")
        axes.set_yticks([-g for g in range(len(groups))], groups)
        axes.set_xlim(0, 100)
        axes.set_xlabel("right answers (%)")
        axes.grid(axis="x")
        figure.legend(loc="outside upper center", ncols=3)

    size = (6.4, 1.2 + 0.36 * max(len(r) for r in rows.values()))
    return _svg(draw, size, title)


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple]]], title: str) -> Markup:
    """Training curves: panel -> line -> [(step, value)]."""

    def draw(figure: Figure) -> None:
        columns = min(len(panels), 3)
        lines = -(-len(panels) // columns)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (panel, found) in zip(grid, panels.items(), strict=False):
            for n, (name, points) in enumerate(found.items()):
                steps, values = zip(*points, strict=True)
                marker = "o" if len(points) < 12 else None
                line = (COLOURS["grpo"], COLOURS["question_only"], *SPARE)[n % 6]
                axes.plot(steps, values, color=line, marker=marker, markersize=3, label=name)
            axes.set_title(panel, fontsize=11)
            axes.grid()
            axes.locator_params(axis="x", nbins=4)
            if len(found) > 1:
                axes.legend(fontsize=9)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("step", fontsize=11)

    rows = -(-len(panels) // 3)
    return _svg(draw, (7.6, 0.5 + 2.1 * rows), title)
