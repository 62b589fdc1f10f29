"""Where sounds come from: the spatial encoder's slots beside classical estimators, by RT60.

For each RT60 and number of sources, scenes of test recordings are rendered anew with a reverberation
near that RT60, and every method is told how many sources there are. Errors are those of the best
assignment of directions to sources, in degrees. Intervals and differences come from a bootstrap
over scenes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxasa import config
from jaxasa.acoustics import foa, scenes
from jaxasa.bench import classical
from jaxasa.core import keys
from jaxasa.core.progress import progress
from jaxasa.data import formats, records

RT60 = (0.3, 0.6, 1.0)
SOURCES = (1, 2, 3)
BATCH = 25
SAMPLES = 2000
Estimator = Callable[[np.ndarray, int], np.ndarray]


def angular_errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Degrees [S] between unit vectors [S, 3] in the assignment with the least sum of angles."""
    angles = np.degrees(np.arccos(np.clip(found @ true.T, -1, 1)))
    orders = list(itertools.permutations(range(len(true))))
    best = min(orders, key=lambda order: angles[list(order), range(len(true))].sum())
    return angles[list(best), range(len(true))]


def compare(
    ours: Callable[[np.ndarray, int], np.ndarray],
    ranges: config.Scenes,
    bank,
    seed: int,
    count: int = 200,
    rt60: Sequence[float] = RT60,
) -> list[dict]:
    """Rows for each cell of `rt60` x SOURCES: medians in degrees, as design.md names them.

    ours(audio int16 [B, N, 4], count) -> unit vectors [B, count, 3]. ranges: of the scenes, save
    for RT60 and the number of sources. bank: the sound bank, whose test recordings sound. count: scenes
    a cell. Beside each median its 95 % interval ("ours_low", ...), the share above 20 degrees
    ("ours_over_20"), and "difference", "low" and "high" of ours less the best classical median.
    """
    clips, render = bank.clips("test"), formats.find("records", ranges.engine).render
    rows = []
    cells = list(itertools.product(rt60, SOURCES))
    with progress("directions of arrival", len(cells) * count, "scenes") as advance:
        for decay, sources in cells:
            name = f"doa {decay:g} {sources}"
            cell = dataclasses.replace(ranges, rt60=(decay, decay), sources=(sources, sources))
            found: dict[str, list[np.ndarray]] = {"ours": [], "histogram": [], "music": []}
            for start in range(0, count, BATCH):
                part = range(start, min(start + BATCH, count))
                drawn = [scenes.draw(cell, clips, seed, name, i) for i in part]
                made = [render(spec, bank.audio) for spec in drawn]
                audio = np.stack([records.to_int16(sound) for sound, _ in made])
                padded = np.concatenate([audio, np.repeat(audio[-1:], BATCH - len(audio), 0)])
                slots = ours(padded, sources)
                for i, (sound, scene) in enumerate(made):
                    true = _directions(scene)
                    found["ours"].append(angular_errors(slots[i], true))
                    found["histogram"].append(angular_errors(classical.histogram_peaks(sound, sources), true))
                    found["music"].append(angular_errors(classical.music_peaks(sound, sources), true))
                advance(len(part))
            rows.append({"rt60": decay, "sources": sources, "scenes": count} | _row(found, name))
    return rows


def _directions(scene: Mapping) -> np.ndarray:
    azimuth, elevation = np.array([[s["azimuth"], s["elevation"]] for s in scene["sources"]]).T
    return foa.encode(azimuth, elevation)[:, [3, 1, 2]]


def _row(found: Mapping[str, Sequence[np.ndarray]], name: str) -> dict:
    by_method = {method: np.stack(rows) for method, rows in found.items()}
    scenes_ = len(by_method["ours"])
    drawn = keys.rng(0, "doa", name).integers(scenes_, size=(SAMPLES, scenes_))
    medians = {m: np.median(e[drawn].reshape(SAMPLES, -1), axis=1) for m, e in by_method.items()}
    row = {}
    for method, error in by_method.items():
        low, high = np.percentile(medians[method], [2.5, 97.5])
        row[f"{method}_median_deg"] = round(float(np.median(error)), 2)
        row |= {f"{method}_low": round(float(low), 2), f"{method}_high": round(float(high), 2)}
        row[f"{method}_over_20"] = round(float((error > 20).mean()), 4)
    best = min(("histogram", "music"), key=lambda m: row[f"{m}_median_deg"])
    gap = medians["ours"] - medians[best]
    low, high = np.percentile(gap, [2.5, 97.5])
    difference = row["ours_median_deg"] - row[f"{best}_median_deg"]
    return row | {
        "best_classical": best,
        "difference": round(difference, 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def table(rows: Sequence[Mapping]) -> str:
    """The rows for a terminal."""
    lines = ["RT60  sources   ours  histogram  MUSIC   ours less best (95 %)"]
    for r in rows:
        lines.append(
            f"{r['rt60']:4.1f}  {r['sources']:7d}  {r['ours_median_deg']:5.1f}  "
            f"{r['histogram_median_deg']:9.1f}  {r['music_median_deg']:5.1f}   "
            f"{r['difference']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f})"
        )
    return "\n".join(lines)
