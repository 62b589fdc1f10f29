"""What the slots say of the suite's scenes, beside where the sounds are.

`jaxasa bench run` writes the descriptions to predictions/slots.scenes.jsonl. A source is compared
with the slot that names its class, and not with the nearest, which would flatter the errors. Left
out are sources whose class sounds twice in their scene, and those that move past the listener or
are heard while the listener turns: one direction does not describe them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.acoustics import foa
from jaxasa.bench import score, suite
from jaxasa.config import check
from jaxasa.core import keys

FILE = Path("predictions") / "slots.scenes.jsonl"
FAR_OFF = 20.0  # degrees
SAMPLES = 500


def read(path: Path) -> dict[str, dict]:
    """file_name -> description; empty where the file is not there. Raises ConfigError by line."""
    found = {}
    for n, line in suite.read_lines(path) if path.is_file() else ():
        missing = [name for name in ("file_name", "scene") if name not in line]
        check(not missing, f"{path}:{n}", missing, "a line with file_name and scene")
        found[line["file_name"]] = line["scene"]
    return found


def beside(items: Sequence[suite.Item], heard: Mapping[str, dict]) -> dict[str, np.ndarray]:
    """Columns over the sources of the suite's scenes, each [sources].

    azimuth, elevation (degrees), distance (m): where they are. found_azimuth, found_elevation,
    found_distance: by the slots, NaN where no slot names the class. error: the angle between the
    two, degrees. ratio: found distance by distance. rt60 (s) and snr (dB) of the scene; overlap:
    share of the source's time in which others sound.
    """
    rows = []
    for name, scene in {suite.name_of(i.file): i.scene for i in items}.items():
        if name in heard:
            rows += _sources(scene, heard[name])
    names = ("azimuth", "elevation", "distance", "rt60", "snr", "overlap")
    every = (*names, "found_azimuth", "found_elevation", "found_distance")
    columns = {n: np.array([row.get(n, np.nan) for row in rows], float) for n in every}
    true = foa.encode(columns["azimuth"], columns["elevation"])[..., 1:]
    found = foa.encode(columns["found_azimuth"], columns["found_elevation"])[..., 1:]
    columns["error"] = _angle(true, found)
    # y, z, x: front and back exchanged.
    columns["error_mirrored"] = _angle(true * [1, 1, -1], found)
    columns["ratio"] = columns["found_distance"] / columns["distance"]
    return columns


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def _sources(scene: Mapping, heard: Mapping) -> list[dict]:
    """A row for each source of a scene."""
    said = {s["class"]: s for s in heard["sources"]}
    classes = [s["class"] for s in scene["sources"]]
    rows = []
    for source in scene["sources"]:
        if classes.count(source["class"]) > 1 or "trajectory" in source:
            continue
        others = [s for s in scene["sources"] if s is not source]
        row = {n: source[n] for n in ("azimuth", "elevation", "distance")}
        row |= {n: scene.get(n, np.nan) for n in ("rt60", "snr")}
        row["overlap"] = _overlap(source, others)
        slot = said.get(source["class"])
        if slot is not None:
            row |= {f"found_{n}": slot[n] for n in ("azimuth", "elevation", "distance")}
        rows.append(row)
    return rows


def _overlap(source: Mapping, others: Sequence[Mapping]) -> float:
    time = np.linspace(source["onset"], source["offset"], 200)
    return float(np.mean([any(o["onset"] <= t <= o["offset"] for o in others) for t in time]))


def median(values: np.ndarray, name: str) -> tuple[float, float, float]:
    """The median, and its 95 % interval from a bootstrap over the values."""
    drawn = keys.rng(0, "slots", name).integers(len(values), size=(SAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def summary(columns: Mapping[str, np.ndarray]) -> dict | None:
    """{"named": A, "median", "low", "high", "far_off", "front_back", "ratio"}; None without any.

    named: accuracy of sources whose class a slot names, of which are the others. far_off: share
    above 20 degrees; front_back: share of those too that are nearer to the truth when front and
    back are exchanged. ratio: median factor between found and true distance, either way; None
    where no distance is known.
    """
    named = np.isfinite(columns["error"])
    if not named.any():
        return None
    error = columns["error"][named]
    off = np.abs(np.log(columns["ratio"][named & np.isfinite(columns["ratio"])]))
    middle, low, high = median(error, "error")
    is_far = error > FAR_OFF
    turned = is_far & (columns["error_mirrored"][named] < error)
    return {
        "named": score.accuracy(named),
        "median": middle,
        "low": low,
        "high": high,
        "far_off": float(is_far.mean()),
        "front_back": float(turned.mean()),
        "ratio": float(np.exp(np.median(off))) if len(off) else None,
    }


def bins(values: np.ndarray, error: np.ndarray, name: str, most: int = 5) -> list[tuple]:
    """(middle of the bin, median error, low, high) in bins of about equally many sources."""
    kept = np.isfinite(values) & np.isfinite(error)
    values, error = values[kept], error[kept]
    if not len(values):
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, most + 1)))
    at = np.searchsorted(edges[1:-1], values, side="right")
    return [
        (float(np.median(values[at == b])), *median(error[at == b], f"{name} {b}"))
        for b in np.unique(at)
    ]
