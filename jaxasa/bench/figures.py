# SPDX-License-Identifier: Apache-2.0
"""Figures of the report as inline SVG: transparent background, text in the page's colour.

A figure has neither a fixed size (it scales with the page) nor a font of its own, so that one
drawing fits light pages, dark pages and phones.
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

# Of Okabe and Ito's palette, colours with contrast on white and on black.
COLOURS = {
    "grpo": "#3b8ed0",
    "sft": "#1fa187",
    "question_only": "#e69f00",
    "mono": "#cc79a7",
    "chance": "#8a8a8a",
}
_INK = "#010203"  # placeholder, which becomes currentColor in the SVG
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
    return COLOURS.get(name, style.EXTRA_COLOURS[index % len(style.EXTRA_COLOURS)])


def _svg(draw, size: tuple[float, float], title: str) -> Markup:
    """Runs `draw(figure)` and returns the SVG element, labelled `title` for screen readers."""
    # A salt for each figure makes ids unique in the page.
    rc: Any = _STYLE | {"svg.hashsalt": title}
    with matplotlib.rc_context(rc):
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


Scores = Mapping[str, Mapping[str, dict]]  # system -> group -> {"accuracy", "low", "high"}


def accuracy_bars(rows: Scores, titles: Mapping[str, str], title: str) -> Markup:
    """Bar chart of accuracy in %, with intervals: groups on the x axis, a bar for each system.

    titles: of the systems, for the legend.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        groups = list(next(iter(rows.values())))
        width = 0.84 / len(rows)
        for n, (system, by_group) in enumerate(rows.items()):
            x = [g + (n - (len(rows) - 1) / 2) * width for g in range(len(groups))]
            values, errors = _with_errors([by_group[g] for g in groups])
            axes.bar(x, values, width * 0.9, color=colour(system, n), label=titles[system])
            if system != "chance":
                axes.errorbar(x, values, errors, fmt="none", ecolor=_INK, capsize=2)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylim(0, 100)
        axes.set_ylabel("accuracy (%)")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=min(len(rows), 3))

    return _svg(draw, (6.4, 4.0), title)


def _with_errors(scores: Sequence[dict]) -> tuple[list[float], list[list[float]]]:
    """Accuracies in %, and [distances down, distances up] to the ends of their intervals."""
    values = [100 * a["accuracy"] for a in scores]
    # Rounding can put an end slightly on the wrong side of the value.
    down = [max(v - 100 * a["low"], 0) for v, a in zip(values, scores, strict=True)]
    up = [max(100 * a["high"] - v, 0) for v, a in zip(values, scores, strict=True)]
    return values, [down, up]


def accuracy_dots(rows: Scores, titles: Mapping[str, str], title: str) -> Markup:
    """Dot plot of accuracy in %, with intervals: groups on the y axis, a dot for each system.

    Arguments as of `accuracy_bars`; a system need not have every group.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        groups = list(dict.fromkeys(g for by_group in rows.values() for g in by_group))
        for n, (system, by_group) in enumerate(rows.items()):
            y = [0.14 * ((len(rows) - 1) / 2 - n) - groups.index(g) for g in by_group]
            values, errors = _with_errors(list(by_group.values()))
            marker: dict[str, Any] = {"fmt": "o", "markersize": 5, "color": colour(system, n)}
            axes.errorbar(values, y, xerr=errors, label=titles[system], **marker)
        axes.axvline(25, color=COLOURS["chance"], linestyle="--", label="chance")
        axes.set_yticks([-g for g in range(len(groups))], groups)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy (%)")
        axes.grid(axis="x")
        figure.legend(loc="outside upper center", ncols=3)

    size = (6.4, 1.2 + 0.36 * max(len(r) for r in rows.values()))
    return _svg(draw, size, title)


def difference_plot(rows: Mapping[str, Mapping], title: str) -> Markup:
    """Differences in percentage points with intervals: row -> D of bench/ablation.py.

    The thick line is the interval over scenes, the thin one that over scenes and seeds.
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
        axes.set_xlabel("difference (percentage points)")
        axes.grid(axis="x")

    return _svg(draw, (6.4, 0.9 + 0.32 * len(rows)), title)


def training_curves(panels: Mapping[str, Mapping[str, Sequence[tuple]]], title: str) -> Markup:
    """Training curves: panel -> line -> [(step, value)]."""

    def draw(figure: Figure) -> None:
        columns = min(len(panels), 3)
        rows = -(-len(panels) // columns)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (panel, lines) in zip(grid, panels.items(), strict=False):
            for n, (name, points) in enumerate(lines.items()):
                steps, values = zip(*points, strict=True)
                marker = "o" if len(points) < 12 else None
                tint = (COLOURS["grpo"], COLOURS["question_only"], *style.EXTRA_COLOURS)[n % 6]
                axes.plot(steps, values, color=tint, marker=marker, markersize=3, label=name)
            axes.set_title(panel, fontsize=11)
            axes.grid()
            axes.locator_params(axis="x", nbins=4)
            if len(lines) > 1:
                axes.legend(fontsize=9)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("step", fontsize=11)

    rows = -(-len(panels) // 3)
    return _svg(draw, (7.6, 0.5 + 2.1 * rows), title)


MAX_POINTS = 1500  # of a scatter plot, to limit the size of the page
_ELEVATIONS = (-90.0, *scene_text.ELEVATION_EDGES_DEG, 90.0)


def direction_scatter(columns: Mapping[str, np.ndarray], title: str) -> Markup:
    """Estimated against true azimuth and elevation, and the median error by true direction.

    columns: of slots.match_sources.
    """
    rows = np.flatnonzero(np.isfinite(columns["error"]))
    drawn = rows[:: -(-len(rows) // MAX_POINTS)]

    def draw(figure: Figure) -> None:
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.45, 1))
        above, below = halves
        for axes, (name, limit) in zip(
            above.subplots(1, 2), (("azimuth", 180), ("elevation", 90)), strict=True
        ):
            marker: dict[str, Any] = {"color": COLOURS["grpo"], "alpha": 0.45, "markersize": 3}
            axes.plot([-limit, limit], [-limit, limit], color=COLOURS["chance"], linewidth=1)
            axes.plot(columns[name][drawn], columns[f"slot_{name}"][drawn], "o", mew=0, **marker)
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.set_xticks(range(-limit, limit + 1, limit // 2))
            axes.set_yticks(range(-limit, limit + 1, limit // 2))
            axes.set_aspect("equal")
            axes.set_xlabel(f"true {name} (°)")
            axes.set_ylabel(f"{name} of the slot (°)")
            axes.grid()
        _error_map(below.subplots(), columns, rows)

    return _svg(draw, (7.6, 6.0), title)


def _error_map(axes, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    """The median error in each sector of azimuth and range of elevation; left is on the left.

    rows: indices of the sources to count.
    """
    # From back over left, front and right to back again.
    sectors = [(4 - k) % 8 for k in range(9)]
    sector_of = np.rint(columns["azimuth"][rows] / scene_text.SECTOR_WIDTH).astype(int) % 8
    height = np.searchsorted(_ELEVATIONS[1:-1], columns["elevation"][rows], side="right")
    shades = matplotlib.colormaps["viridis_r"]
    for column, sector in enumerate(sectors[:8]):
        for row in range(len(scene_text.ELEVATION_NAMES)):
            error = columns["error"][rows][(sector_of == sector) & (height == row)]
            if not len(error):
                continue
            median = float(np.median(error))
            shade = shades(min(median / 45, 1.0))
            axes.add_patch(matplotlib.patches.Rectangle((column, row), 1, 1, color=shade))
            ink = "black" if median < 20 else "white"
            label = f"{median:.0f}°\n{len(error)}"
            axes.text(column + 0.5, row + 0.5, label, color=ink, ha="center", va="center", size=9)
    axes.set_xlim(0, 8)
    names = scene_text.ELEVATION_NAMES
    axes.set_ylim(0, len(names))
    axes.set_xticks(
        [c + 0.5 for c in range(8)], [scene_text.SECTORS[s] for s in sectors[:8]], size=9
    )
    axes.set_yticks([r + 0.5 for r in range(len(names))], names)
    axes.set_title("median error by true direction (below it, the number of sources)", fontsize=11)
    axes.tick_params(length=0)


def error_by_difficulty(columns: Mapping[str, np.ndarray], title: str) -> Markup:
    """The median angular error against RT60, distance, SNR and overlap, with 95 % intervals."""
    labels = {
        "rt60": "RT60 (s)",
        "distance": "distance (m)",
        "snr": "SNR (dB)",
        "overlap": "share of time with other sources",
    }

    def draw(figure: Figure) -> None:
        grid = figure.subplots(2, 2, sharey=True).ravel()
        for axes, (name, label) in zip(grid, labels.items(), strict=True):
            bins = slots.error_by_bin(columns[name], columns["error"], name)
            axes.set_xlabel(label)
            axes.grid()
            if bins:
                x, median, low, high = np.array(bins).T
                axes.fill_between(x, low, high, color=COLOURS["grpo"], alpha=0.25, linewidth=0)
                errors = np.maximum(median - low, 0), np.maximum(high - median, 0)
                axes.errorbar(x, median, errors, fmt="o-", color=COLOURS["grpo"], capsize=2)
            else:
                axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center")
        grid[0].set_ylim(bottom=0)
        figure.supylabel("median error (°)", fontsize=11)

    return _svg(draw, (7.6, 5.0), title)


def spectrogram_png(level: np.ndarray) -> bytes:
    """A spectrogram [F, T] in dB as a small PNG: time to the right, frequency up."""
    rows = len(level) // 2  # two bins to a pixel
    pixels = level[: 2 * rows].reshape(rows, 2, -1).max(1)
    # In steps of 4 dB, so that the file compresses well.
    stepped = np.round(pixels / 4) * 4
    out = io.BytesIO()
    scale: dict[str, Any] = {"cmap": "magma", "vmin": style.FLOOR_DB, "vmax": 0}
    matplotlib.image.imsave(out, stepped, format="png", origin="lower", **scale)
    return out.getvalue()
