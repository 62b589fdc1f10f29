"""Figures of the report as inline SVG: transparent, text in the page's own colour.

A figure has no fixed size (it follows the page's width) and no font of its own, so one drawing
serves light and dark pages and phones.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.image
import matplotlib.patches
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxasa.bench import slots
from jaxasa.data import scene_text
from jaxasa.viz import style

# Okabe and Ito's colours, those that stand out on white and on black.
COLOURS = {
    "grpo": "#3b8ed0",
    "sft": "#1fa187",
    "question_only": "#e69f00",
    "mono": "#cc79a7",
    "chance": "#8a8a8a",
}
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
    return COLOURS.get(name, style.SPARE[index % len(style.SPARE)])


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
    """Accuracy in %, with intervals, of many groups: a line for each, a dot for each system.

    Arguments as of `bars`; a system need not have every group.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        groups = list(dict.fromkeys(g for found in rows.values() for g in found))
        for n, (system, found) in enumerate(rows.items()):
            at = [0.14 * ((len(rows) - 1) / 2 - n) - groups.index(g) for g in found]
            values = [100 * a["accuracy"] for a in found.values()]
            ends = list(zip(values, found.values(), strict=True))
            down = [max(v - 100 * a["low"], 0) for v, a in ends]
            up = [max(100 * a["high"] - v, 0) for v, a in ends]
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


def differences(rows: Mapping[str, Mapping], title: str) -> Markup:
    """Differences in points with intervals, a line for each: row -> D of bench/ablation.py.

    The thin line is the interval in which seeds are drawn, too.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for n, d in enumerate(rows.values()):
            if d["low_seeds"] is not None:
                ends = 100 * d["low_seeds"], 100 * d["high_seeds"]
                axes.plot(ends, [-n, -n], color=COLOURS["grpo"], linewidth=1)
            axes.plot([100 * d["low"], 100 * d["high"]], [-n, -n], color=COLOURS["grpo"], lw=4)
            axes.plot(100 * d["difference"], -n, "o", color=COLOURS["question_only"])
        axes.axvline(0, color=COLOURS["chance"], linestyle="--")
        axes.set_yticks([-n for n in range(len(rows))], list(rows))
        axes.set_xlabel("points")
        axes.grid(axis="x")

    return _svg(draw, (6.4, 0.9 + 0.32 * len(rows)), title)


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
                line = (COLOURS["grpo"], COLOURS["question_only"], *style.SPARE)[n % 6]
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


POINTS = 1500  # of a scatter plot: more make the page heavy and nothing clearer
_ELEVATIONS = (-90.0, *scene_text.ELEVATION_EDGES, 90.0)


def sphere(columns: Mapping[str, np.ndarray], title: str) -> Markup:
    """Found against true azimuth and elevation, and the median error by place on the sphere.

    columns: of slots.beside.
    """
    kept = np.flatnonzero(np.isfinite(columns["error"]))
    drawn = kept[:: -(-len(kept) // POINTS)]

    def draw(figure: Figure) -> None:
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.45, 1))
        above, below = halves
        for axes, (name, limit) in zip(
            above.subplots(1, 2), (("azimuth", 180), ("elevation", 90)), strict=True
        ):
            style: dict[str, Any] = {"color": COLOURS["grpo"], "alpha": 0.45, "markersize": 3}
            axes.plot([-limit, limit], [-limit, limit], color=COLOURS["chance"], linewidth=1)
            axes.plot(columns[name][drawn], columns[f"found_{name}"][drawn], "o", mew=0, **style)
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.set_xticks(range(-limit, limit + 1, limit // 2))
            axes.set_yticks(range(-limit, limit + 1, limit // 2))
            axes.set_aspect("equal")
            axes.set_xlabel(f"true {name} (°)")
            axes.set_ylabel("by the slots (°)")
            axes.grid()
        _by_place(below.subplots(), columns, kept)

    return _svg(draw, (7.6, 6.0), title)


def _by_place(axes, columns: Mapping[str, np.ndarray], kept: np.ndarray) -> None:
    """The median error in each sector of azimuth and range of elevation, left on the left."""
    # From back by left, front and right to back again.
    sectors = [(4 - k) % 8 for k in range(9)]
    of = np.rint(columns["azimuth"][kept] / scene_text.SECTOR_WIDTH).astype(int) % 8
    height = np.searchsorted(_ELEVATIONS[1:-1], columns["elevation"][kept], side="right")
    shades = matplotlib.colormaps["viridis_r"]
    for column, sector in enumerate(sectors[:8]):
        for row in range(len(scene_text.ELEVATIONS)):
            error = columns["error"][kept][(of == sector) & (height == row)]
            if not len(error):
                continue
            middle = float(np.median(error))
            shade = shades(min(middle / 45, 1.0))
            axes.add_patch(matplotlib.patches.Rectangle((column, row), 1, 1, color=shade))
            ink = "black" if middle < 20 else "white"
            label = f"{middle:.0f}°\n{len(error)}"
            axes.text(column + 0.5, row + 0.5, label, color=ink, ha="center", va="center", size=9)
    axes.set_xlim(0, 8)
    axes.set_ylim(0, len(scene_text.ELEVATIONS))
    axes.set_xticks(
        [c + 0.5 for c in range(8)], [scene_text.SECTORS[s] for s in sectors[:8]], size=9
    )
    axes.set_yticks([r + 0.5 for r in range(len(scene_text.ELEVATIONS))], scene_text.ELEVATIONS)
    axes.set_title("median error by true direction; below it, sources", fontsize=11)
    axes.tick_params(length=0)


def against(columns: Mapping[str, np.ndarray], title: str) -> Markup:
    """The median error of direction against what makes it hard, with 95 % intervals."""
    what = {
        "rt60": "RT60 (s)",
        "distance": "distance (m)",
        "snr": "SNR (dB)",
        "overlap": "share of time with other sounds",
    }

    def draw(figure: Figure) -> None:
        grid = figure.subplots(2, 2, sharey=True).ravel()
        for axes, (name, label) in zip(grid, what.items(), strict=True):
            found = slots.bins(columns[name], columns["error"], name)
            axes.set_xlabel(label)
            axes.grid()
            if found:
                at, middle, low, high = np.array(found).T
                axes.fill_between(at, low, high, color=COLOURS["grpo"], alpha=0.25, linewidth=0)
                down, up = np.maximum(middle - low, 0), np.maximum(high - middle, 0)
                axes.errorbar(at, middle, [down, up], fmt="o-", color=COLOURS["grpo"], capsize=2)
            else:
                axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center")
        grid[0].set_ylim(bottom=0)
        figure.supylabel("median error (°)", fontsize=11)

    return _svg(draw, (7.6, 5.0), title)


def png(level: np.ndarray) -> bytes:
    """A spectrogram as a small PNG: time to the right, frequency up, two bins to a pixel."""
    rows = len(level) // 2
    pixels = level[: 2 * rows].reshape(rows, 2, -1).max(1)
    # In steps of 4 dB, so that the file packs well.
    stepped = np.round(pixels / 4) * 4
    out = io.BytesIO()
    style: dict[str, Any] = {"cmap": "magma", "vmin": style.FLOOR, "vmax": 0, "origin": "lower"}
    matplotlib.image.imsave(out, stepped, format="png", **style)
    return out.getvalue()
