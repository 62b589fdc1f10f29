# SPDX-License-Identifier: Apache-2.0
"""Figure of a room and its acoustics (`jaxasa plot`).

Four panels: floor plan with listener and sources; the room impulse response (RIR) on W, with the
time after which a noise tail replaces image sources (`rir.EARLY_MIXING_TIMES`); energy decay of
each octave band by Schroeder's backward integration, with its T20; energy by azimuth over time.

The last panel steers the sharpest first-order beam, the hypercardioid
(W + 3 (cos a X + sin a Y)) / 4, in steps of 5 degrees. It shows the energy of each millisecond
with the mean decay of the room removed, so that the first reflections (circles: their positions
by geometry) and the diffuse field after them appear on one scale.

    from jaxasa.viz import plot_room
    view = plot_room.View(room=(6, 5, 3), absorption=(0.3,) * 7, listener=(4, 2, 1.5), yaw=0,
                     sources=(("dog", (1.5, 3.5, 1.2)),))
    plot_room.plot_room(view, 0, "room.png")
"""

import dataclasses
from pathlib import Path

import matplotlib
import matplotlib.patches
import numpy as np
from matplotlib.figure import Figure

from jaxasa.acoustics import foa, measure, rir, rooms
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_path

_COLOURS = ("#3b8ed0", "#e69f00", "#1fa187", "#cc79a7", "#d55e00", "#7a6fd0", "#56b4e9", "#8a8a8a")
_FLOOR = -60.0  # dB
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


@dataclasses.dataclass(frozen=True)
class RoomView:
    """A room to plot: sources are (name, position); yaw in degrees; otherwise as in SceneSpec."""

    room: tuple[float, float, float]
    absorption: tuple[float, ...] | tuple[tuple[float, ...], ...]
    listener: tuple[float, float, float]
    yaw: float
    sources: tuple[tuple[str, tuple[float, float, float]], ...]
    scattering: float = 0.0

    def __post_init__(self):
        ok = len(self.room) == 3 and all(0 < v < 1000 for v in self.room)
        check(ok, "room", self.room, "length, width and height above 0 metres")
        for name, point in (("listener", self.listener), *self.sources):
            ok = all(0 < p < size for p, size in zip(point, self.room, strict=True))
            check(ok, name, point, f"x, y, z in metres inside the room {self.room}")
        check(len(self.sources) > 0, "sources", self.sources, "at least one")
        for name, point in self.sources:
            near = float(np.linalg.norm(np.subtract(point, self.listener)))
            check(near >= 0.05, name, point, "0.05 m from the listener")


def view_of_scene(spec: SceneSpec) -> RoomView:
    """Returns the room of a scene."""
    sources = tuple((s.label, s.position) for s in spec.sources)
    return RoomView(spec.room, spec.absorption, spec.listener, spec.yaw, sources, spec.scattering)


# Default arguments of view_of_shoebox.
DEFAULT_ROOM = {
    "room": (6.0, 5.0, 3.0),
    "rt60": 0.5,
    "listener": (4.0, 2.0, 1.5),
    "sources": [(1.5, 3.5, 1.2)],
    "yaw": 0.0,
}


def view_of_shoebox(room, rt60: float, listener, sources, yaw: float = 0.0) -> RoomView:
    """Returns a shoebox room with the given RT60 (s) in all octave bands.

    Air absorption limits the RT60 of the highest bands. Raises ConfigError.
    """
    check(0 < rt60 < 30, "rt60", rt60, "seconds, up to 30")
    named = tuple((f"source {i + 1}", tuple(p)) for i, p in enumerate(sources))
    flat = tuple(float(v) for v in room)
    check(min(flat) > 0, "room", flat, "length, width and height above 0 metres")
    walls = rooms.absorption(flat, np.minimum(rt60, rooms.air_limited_rt60()))
    return RoomView(flat, tuple(walls.tolist()), tuple(listener), yaw, named)


def plot_room(view: RoomView, source_index: int, out: Path | str) -> dict:
    """Writes the figure to `out`, a PNG file, with the RIR of source number `source_index`.

    Returns {"rt60", "drr", "bands": {Hz: T20 in s}} of that RIR. Raises ConfigError.
    """
    out = Path(out)
    check(out.suffix.lower() == ".png", "output", str(out), "a name that ends in .png")
    check(out.parent.is_dir(), "output", str(out), "a file in a folder that exists")
    check(
        0 <= source_index < len(view.sources),
        "source",
        source_index,
        f"0 to {len(view.sources) - 1}",
    )
    position = view.sources[source_index][1]
    rng = keys.rng(0, "draw")
    room = rooms.Shoebox(view.room, view.absorption, view.scattering)
    response = rir.shoebox_rir(room, position, view.listener, rng)
    distance = float(np.linalg.norm(np.subtract(position, view.listener)))
    curves = measure.octave_decay_curves(response, rooms.BANDS)
    decays = {
        band: (curve, measure.t20(curve)) for band, curve in zip(rooms.BANDS, curves, strict=True)
    }
    result = {
        "rt60": measure.rt60(response),
        "drr": measure.drr(response, distance),
        "bands": {int(band): seconds for band, (_, seconds) in decays.items()},
    }
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 8.4), layout="constrained")
        panels = figure.subplots(2, 2, width_ratios=(1, 1.25))
        _draw_floor_plan(panels[0, 0], view, source_index)
        _draw_impulse_response(panels[0, 1], view, response, distance)
        _draw_decays(panels[1, 0], decays)
        _draw_directions(figure, panels[1, 1], view, position, response, result["rt60"])
        size = " x ".join(f"{v:.1f}" for v in view.room)
        figure.suptitle(
            f"{size} m, {rooms.volume(view.room):.0f} m³: {view.sources[source_index][0]} at "
            f"{distance:.1f} m, RT60 {result['rt60']:.2f} s, DRR {result['drr']:.1f} dB"
        )
        with atomic_path(out) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
    return result


def _draw_floor_plan(axes, view: RoomView, source_index: int) -> None:
    length, width, _ = view.room
    axes.add_patch(matplotlib.patches.Rectangle((0, 0), length, width, fill=False, linewidth=2))
    x, y, z = view.listener
    heading = np.radians(view.yaw)
    arrow = 0.12 * max(length, width) * np.array([np.cos(heading), np.sin(heading)])
    axes.annotate(
        "", (x + arrow[0], y + arrow[1]), (x, y), arrowprops={"arrowstyle": "-|>", "lw": 1.5}
    )
    axes.plot(x, y, "o", color="black", markersize=9)
    side = "right" if x > length / 2 else "left"
    offset = (-10 if x > length / 2 else 10, -16)
    axes.annotate(f"listener, {z:.1f} m up", (x, y), offset, textcoords="offset points", ha=side)
    for i, (name, point) in enumerate(view.sources):
        colour = _COLOURS[i % len(_COLOURS)]
        azimuth = foa.wrap_azimuth(
            foa.cartesian_to_azel(np.subtract(point, view.listener))[0] - view.yaw
        )
        axes.plot([x, point[0]], [y, point[1]], ":", color=colour, linewidth=1)
        marker = "*" if i == source_index else "o"
        axes.plot(*point[:2], marker, color=colour, markersize=14 if i == source_index else 8)
        # Labels point inwards, so that none leaves the figure, and away from the line of sight.
        right, above = point[0] > length / 2, point[1] >= y
        axes.annotate(
            f"{name}\n{azimuth:+.0f}°, {point[2]:.1f} m up",
            point[:2],
            (-10 if right else 10, 4 if above else -4),
            textcoords="offset points",
            ha="right" if right else "left",
            va="bottom" if above else "top",
            color=colour,
        )
    axes.set_xlim(-0.05 * length, 1.05 * length)
    axes.set_ylim(-0.05 * width, 1.05 * width)
    axes.set_aspect("equal")
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")
    axes.set_title("Floor plan; azimuth relative to the listener, left positive")


def _draw_impulse_response(axes, view: RoomView, response: np.ndarray, distance: float) -> None:
    # Peak of each half millisecond: the figure cannot resolve more.
    step = SAMPLE_RATE // 2000
    w = np.abs(response[0, PRE_SAMPLES:])
    w = w[: len(w) // step * step].reshape(-1, step).max(axis=1)
    time = np.arange(len(w)) * step / SAMPLE_RATE * 1000
    level = 20 * np.log10(np.maximum(w / w.max(), 10 ** (_FLOOR / 20)))
    axes.fill_between(time, _FLOOR, level, step="post", color=_COLOURS[0], linewidth=0)
    arrival = distance / rooms.SPEED_OF_SOUND * 1000
    axes.plot(arrival, 0, "v", color=_COLOURS[4], label=f"direct sound, {arrival:.1f} ms")
    mixing = 1000 * rir.EARLY_MIXING_TIMES * float(rir.mixing_time_at(view.room, distance))
    axes.axvline(
        mixing, color="black", linestyle="--", label=f"end of image sources, {mixing:.0f} ms"
    )
    axes.set_xlim(0, time[-1])
    axes.set_ylim(_FLOOR, 5)
    axes.set_xlabel("time after emission (ms)")
    axes.set_ylabel("dB below peak")
    axes.set_title("Room impulse response on W")
    axes.legend(loc="upper right")


def _draw_decays(axes, decays: dict[float, tuple[np.ndarray, float]]) -> None:
    step_ms = measure.DECAY_STEP / SAMPLE_RATE * 1000
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(decays)))
    for colour, (band, (level, seconds)) in zip(colours, decays.items(), strict=True):
        shown = f"{band:.0f} Hz: {seconds:.2f} s" if np.isfinite(seconds) else f"{band:.0f} Hz"
        axes.plot(np.arange(len(level)) * step_ms, level, color=colour, label=shown)
    longest = max(len(level) for level, _ in decays.values())
    axes.set_xlim(0, longest * step_ms)
    axes.set_ylim(_FLOOR, 1)
    axes.set_xlabel("time after emission (ms)")
    axes.set_ylabel("remaining energy (dB)")
    axes.set_title("Decay per octave band, with T20")
    axes.legend(loc="upper right", fontsize=9)
    axes.grid(alpha=0.2)


def _draw_directions(
    figure, axes, view: RoomView, position, response: np.ndarray, rt60: float
) -> None:
    step = SAMPLE_RATE // 1000
    signal = foa.rotate(response[:, PRE_SAMPLES:].T, -view.yaw)
    usable = len(signal) // step * step
    azimuth = np.arange(-180, 181, 5)
    gains = foa.encode(azimuth, np.zeros(len(azimuth))) * [0.25, 0.75, 0.75, 0.75]
    energy = ((signal[:usable] @ gains.T).reshape(-1, step, len(azimuth)) ** 2).sum(axis=1)
    time = np.arange(len(energy) + 1) * step / SAMPLE_RATE
    if np.isfinite(rt60):
        energy *= 10 ** (6 * time[:-1, None] / rt60)
    first = _first_order_offsets(view, position)
    arrival = np.linalg.norm(first, axis=1) / rooms.SPEED_OF_SOUND
    end = min(time[-1], 1.25 * max(rooms.mixing_time(view.room), float(arrival.max())))
    loudest = energy[time[:-1] < end].max()
    level = 10 * np.log10(np.maximum(energy / loudest, 10 ** (_FLOOR / 10)))
    edges = np.append(azimuth - 2.5, 182.5)
    mesh = axes.pcolormesh(time * 1000, edges, level.T, cmap="magma", vmin=-18, vmax=0)
    figure.colorbar(mesh, ax=axes, label="dB below peak, decay removed")
    # Direct sound and the six first-order reflections.
    bearing = foa.wrap_azimuth(foa.cartesian_to_azel(first)[0] - view.yaw)
    axes.plot(arrival * 1000, bearing, "o", markerfacecolor="none", color="#7fffd4", markersize=9)
    axes.set_xlim(0, end * 1000)
    axes.set_ylim(-180, 180)
    axes.set_yticks(range(-180, 181, 90), ("back", "right", "front", "left", "back"))
    axes.set_xlabel("time after emission (ms)")
    axes.set_title("Energy by azimuth over time; circles: direct sound, first reflections")


def _first_order_offsets(view: RoomView, position) -> np.ndarray:
    """Offsets [7, 3] (m) from the listener of the source and its images in the six walls."""
    places = [np.array(position, float)]
    for axis in range(3):
        for wall in (0.0, view.room[axis]):
            mirrored = places[0].copy()
            mirrored[axis] = 2 * wall - mirrored[axis]
            places.append(mirrored)
    return np.array(places) - np.array(view.listener)
