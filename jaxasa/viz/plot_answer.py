# SPDX-License-Identifier: Apache-2.0
"""Figure of an answer (`jaxasa ask --plot`): detected sources in space and time, and the question.

Left: a map of all directions from the listener's view (front in the middle, left on the left) with
a dot for each detected source, larger if nearer; below it the question and the answer. Right, over
time: spectrogram of W (or of the mean of a binaural pair), azimuth and activity of each source.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxasa.config import check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_path
from jaxasa.data.questions import LETTERS
from jaxasa.viz import style

_STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # questions and class names may contain $
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_BEARINGS = {180: "back", 90: "left", 0: "front", -90: "right", -180: "back"}


def check_output(out: Path) -> None:
    """Raises ConfigError if `out` does not end in .png or its folder does not exist."""
    check(out.suffix.lower() == ".png", "--plot", str(out), "a name that ends in .png")
    check(out.parent.is_dir(), "--plot", str(out), "a file in a folder that exists")


def plot_answer(answer: Mapping, tracks: Sequence[Mapping], audio: np.ndarray, out: Path) -> None:
    """Writes the figure to `out`, a PNG file. Raises ConfigError as `check_output` does.

    answer: question, answer, options (four or None) and thought, as from `inference.qa.ask`.
    tracks: the detected sources, as from its `tracks`. audio: int16 [N, C] at 16 kHz.
    """
    check_output(out)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 7), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15))
        left, right = halves
        directions, text = left.subplots(2, 1, height_ratios=(1, 0.9))
        spectrum, bearing, activity = right.subplots(3, 1, sharex=True, height_ratios=(1.2, 1, 0.8))
        _draw_map(directions, tracks)
        _draw_text(text, answer)
        _draw_spectrogram(spectrum, audio)
        _draw_tracks(bearing, activity, tracks)
        activity.set_xlim(0, len(audio) / SAMPLE_RATE)
        with atomic_path(out) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _draw_map(axes, tracks: Sequence[Mapping]) -> None:
    for n, source in enumerate(tracks):
        azimuth, elevation, metres = (source[k] for k in ("azimuth", "elevation", "distance"))
        size = float(np.clip(14 / np.sqrt(metres), 5, 20))
        axes.plot(
            azimuth, elevation, "o", color=style.source_colour(n), markersize=size, clip_on=False
        )
        # Labels alternate above and below, so that neighbours do not overlap; inwards at the rims.
        above = n % 2 == 0
        far = 12 + 30 * (n // 2)
        axes.annotate(
            f"{source['class']}, {metres:.1f} m\n{azimuth:+.0f}°, {elevation:+.0f}° up",
            (azimuth, elevation),
            (0, far if above else -far),
            textcoords="offset points",
            ha="left" if azimuth > 110 else "right" if azimuth < -110 else "center",
            va="bottom" if above else "top",
            color=style.source_colour(n),
        )
    # Azimuth grows to the left.
    axes.set_xlim(180, -180)
    axes.set_ylim(-90, 90)
    axes.set_xticks(list(_BEARINGS), [f"{name}\n{a}°" for a, name in _BEARINGS.items()])
    axes.set_yticks(range(-90, 91, 45))
    axes.set_ylabel("elevation (°)")
    axes.grid(alpha=0.25)
    axes.set_title("Where: azimuth and elevation of the slots" if tracks else "No source detected")


def _draw_text(axes, answer: Mapping) -> None:
    axes.set_axis_off()
    lines = textwrap.wrap(answer["question"], 64)
    if answer["options"]:
        pairs = zip(LETTERS, answer["options"], strict=True)
        lines += textwrap.wrap("   ".join(f"{a}. {option}" for a, option in pairs), 64)
    lines += ["", *textwrap.wrap(f"Answer: {answer['answer']}", 64)]
    if answer["thought"]:
        lines += ["", *textwrap.wrap(f"Thought: {answer['thought']}", 64)]
    if len(lines) > 14:
        lines = [*lines[:13], "…"]
    axes.text(0, 0.98, "\n".join(lines), va="top", ha="left", transform=axes.transAxes, size=11)


def _draw_spectrogram(axes, audio: np.ndarray) -> None:
    is_foa = audio.shape[1] == 4
    level = style.spectrogram(audio[:, 0] if is_foa else audio.mean(1))
    extent = (0, len(audio) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000)
    shades = {"cmap": "magma", "vmin": style.FLOOR_DB, "vmax": 0}
    axes.imshow(level, origin="lower", aspect="auto", extent=extent, **shades)
    axes.set_ylabel("kHz")
    axes.set_title(
        "When: spectrogram of W" if is_foa else "When: spectrogram of the mean of both ears"
    )


def _draw_tracks(bearing, activity, tracks: Sequence[Mapping]) -> None:
    """Azimuth of active sources, with a gap at the jump from 180 to -180, and their activity."""
    for n, source in enumerate(tracks):
        active = np.asarray(source["activity"])
        time = (np.arange(len(active)) + 0.5) * source["step"]
        azimuth = np.asarray(source["azimuths"], float)
        shown = np.where(active >= 0.5 * active.max(initial=0), azimuth, np.nan)
        shown[1:][np.abs(np.diff(azimuth)) > 180] = np.nan
        bearing.plot(time, shown, color=style.source_colour(n), marker=".", markersize=3)
        activity.plot(time, active, color=style.source_colour(n), label=source["class"])
    bearing.set_ylim(-180, 180)
    bearing.set_yticks(list(_BEARINGS), list(_BEARINGS.values()))
    bearing.grid(alpha=0.25)
    bearing.set_title("Azimuth while active")
    activity.set_ylim(0, 1.02)
    activity.set_title("Activity of the slots")
    activity.set_xlabel("time (s)")
    activity.grid(alpha=0.25)
    if tracks:
        activity.legend(loc="upper right", fontsize=9)
