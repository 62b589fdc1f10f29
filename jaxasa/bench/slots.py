# SPDX-License-Identifier: Apache-2.0
"""Errors of the slots on a suite: their descriptions of its scenes, compared with the truth.

`jaxasa bench run` writes the descriptions to predictions/slots.scenes.jsonl. A source is compared
with the slot of its class, not with the nearest slot, which would underestimate the error.
Sources are left out if their class occurs twice in the scene, or if their direction changes (they
move, or the listener turns).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.acoustics import foa
from jaxasa.bench import score, suite
from jaxasa.config import check
from jaxasa.core import keys

FILE = "slots.scenes.jsonl"
FAR_DEG = 20.0
SAMPLES = 500  # of the bootstrap


def read_descriptions(path: Path) -> dict[str, dict]:
    """file_name -> description; empty if there is no such file. Raises ConfigError by line."""
    descriptions = {}
    for n, line in suite.read_lines(path) if path.is_file() else ():
        missing = [name for name in ("file_name", "scene") if name not in line]
        check(not missing, f"{path}:{n}", missing, "a line with file_name and scene")
        descriptions[line["file_name"]] = line["scene"]
    return descriptions


def match_sources(
    items: Sequence[suite.Item], descriptions: Mapping[str, dict]
) -> dict[str, np.ndarray]:
    """Sources of the suite's scenes with the slots of their class: columns, each [sources].

    descriptions: by file_name, of the slots.
    azimuth, elevation (degrees), distance (m): the truth. slot_azimuth, slot_elevation,
    slot_distance: of the slot, NaN if no slot has the class. error: angle between the two
    directions, degrees. error_mirrored: the same with the true front and back exchanged. ratio:
    slot_distance / distance. rt60 (s) and snr (dB) of the scene; overlap: share of the source's
    time in which other sources are active.
    """
    rows = []
    for name, scene in {suite.name_of(i.file): i.scene for i in items}.items():
        if name in descriptions:
            rows += _rows(scene, descriptions[name])
    names = ["azimuth", "elevation", "distance", "rt60", "snr", "overlap"]
    names += ["slot_azimuth", "slot_elevation", "slot_distance"]
    columns = {n: np.array([row.get(n, np.nan) for row in rows], float) for n in names}
    true = foa.encode(columns["azimuth"], columns["elevation"])[..., 1:]
    estimate = foa.encode(columns["slot_azimuth"], columns["slot_elevation"])[..., 1:]
    columns["error"] = _angle(true, estimate)
    # The components are y, z, x.
    columns["error_mirrored"] = _angle(true * [1, 1, -1], estimate)
    columns["ratio"] = columns["slot_distance"] / columns["distance"]
    return columns


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def _rows(scene: Mapping, description: Mapping) -> list[dict]:
    """A row for each source of a scene."""
    slots = {s["class"]: s for s in description["sources"]}
    classes = [s["class"] for s in scene["sources"]]
    rows = []
    for source in scene["sources"]:
        if classes.count(source["class"]) > 1 or "doa_trajectory" in source:
            continue
        others = [s for s in scene["sources"] if s is not source]
        row = {n: source[n] for n in ("azimuth", "elevation", "distance")}
        row |= {n: scene.get(n, np.nan) for n in ("rt60", "snr")}
        row["overlap"] = _overlap(source, others)
        slot = slots.get(source["class"])
        if slot is not None:
            row |= {f"slot_{n}": slot[n] for n in ("azimuth", "elevation", "distance")}
        rows.append(row)
    return rows


def _overlap(source: Mapping, others: Sequence[Mapping]) -> float:
    time = np.linspace(source["onset"], source["offset"], 200)
    return float(np.mean([any(o["onset"] <= t <= o["offset"] for o in others) for t in time]))


def median_interval(values: np.ndarray, name: str) -> tuple[float, float, float]:
    """The median, and its 95 % interval from a bootstrap over the values."""
    drawn = keys.rng(0, "slots", name).integers(len(values), size=(SAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def error_summary(columns: Mapping[str, np.ndarray]) -> dict | None:
    """Summary of `match_sources` for the report; None if no slot has the class of a source.

    "has_slot": A, of sources whose class a slot has; the rest is of those. "median", "low",
    "high": of the angular error, degrees. "frac_over_20_deg", and "frac_front_back": share of
    sources that are over 20 degrees off and nearer to the truth with front and back exchanged.
    "distance_factor": median of max(ratio, 1 / ratio); None if no distance is known.
    """
    has_slot = np.isfinite(columns["error"])
    if not has_slot.any():
        return None
    error = columns["error"][has_slot]
    log_ratio = np.abs(np.log(columns["ratio"][has_slot & np.isfinite(columns["ratio"])]))
    median, low, high = median_interval(error, "error")
    is_far = error > FAR_DEG
    is_front_back = is_far & (columns["error_mirrored"][has_slot] < error)
    return {
        "has_slot": score.accuracy(has_slot),
        "median": median,
        "low": low,
        "high": high,
        "frac_over_20_deg": float(is_far.mean()),
        "frac_front_back": float(is_front_back.mean()),
        "distance_factor": float(np.exp(np.median(log_ratio))) if len(log_ratio) else None,
    }


def error_by_bin(values: np.ndarray, error: np.ndarray, name: str, most: int = 5) -> list[tuple]:
    """Median error in up to `most` bins with about equal numbers of sources.

    Returns (median value of the bin, median error, low, high) of each, with 95 % intervals.
    """
    is_known = np.isfinite(values) & np.isfinite(error)
    values, error = values[is_known], error[is_known]
    if not len(values):
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)))
    bins = np.searchsorted(edges[1:-1], values, side="right")
    return [
        (float(np.median(values[bins == b])), *median_interval(error[bins == b], f"{name} {b}"))
        for b in np.unique(bins)
    ]
