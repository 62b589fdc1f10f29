# SPDX-License-Identifier: Apache-2.0
"""Comparison of the spatial encoder's slots with classical DOA estimators, by RT60.

For each RT60 and number of sources, new scenes of test recordings are rendered in rooms of about
that RT60, and every method is given the number of sources. Errors are angles, in degrees, between
estimated and true directions under the best assignment. Intervals come from a bootstrap over
scenes.
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

RT60 = (0.3, 0.6, 1.0)  # seconds
SOURCES = (1, 2, 3)
BATCH = 25
SAMPLES = 2000  # of the bootstrap
FAR_DEG = 20.0
# Names of the methods in results.json; "ours" are the slots.
METHODS = ("ours", "histogram", "music")
# (audio int16 [B, N, 4], number of sources S) -> unit vectors [B, S, 3]
Estimator = Callable[[np.ndarray, int], np.ndarray]


def angular_errors(estimates: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Degrees [S] between unit vectors [S, 3] in the assignment with the least sum of angles."""
    angles = np.degrees(np.arccos(np.clip(estimates @ true.T, -1, 1)))
    orders = list(itertools.permutations(range(len(true))))
    best = min(orders, key=lambda order: angles[list(order), range(len(true))].sum())
    return angles[list(best), range(len(true))]


def compare(
    slots: Estimator,
    ranges: config.Scenes,
    bank,
    seed: int,
    count: int = 200,
    rt60: Sequence[float] = RT60,
) -> list[dict]:
    """A row for each cell of `rt60` x SOURCES, for "doa" in results.json.

    slots: the model's estimator. ranges: of the scenes, except for RT60 and the number of sources.
    bank: the sound bank, of which the test recordings are used. count: scenes a cell.
    Each row has "rt60" (s), "sources", "scenes"; for each of METHODS "M_median_deg" with its 95 %
    interval "M_low" and "M_high", and "M_frac_over_20_deg"; "best_classical", the method with the
    lower median of the other two; and "difference", "low", "high": the median of the slots minus
    that of "best_classical", in degrees, with its 95 % interval.
    """
    clips, render = bank.clips("test"), formats.get_format("records", ranges.engine).render
    rows = []
    cells = list(itertools.product(rt60, SOURCES))
    with progress("directions of arrival", len(cells) * count, "scenes") as advance:
        for decay, sources in cells:
            name = f"doa {decay:g} {sources}"
            cell = dataclasses.replace(ranges, rt60=(decay, decay), sources=(sources, sources))
            errors: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
            for start in range(0, count, BATCH):
                part = range(start, min(start + BATCH, count))
                specs = [scenes.sample_scene(cell, clips, seed, name, i) for i in part]
                renders = [render(spec, bank.audio) for spec in specs]
                audio = np.stack([records.to_int16(sound) for sound, _ in renders])
                padded = np.concatenate([audio, np.repeat(audio[-1:], BATCH - len(audio), 0)])
                estimates = slots(padded, sources)
                for i, (sound, scene) in enumerate(renders):
                    by_method = {
                        "ours": estimates[i],
                        "histogram": classical.histogram_peaks(sound, sources),
                        "music": classical.music_peaks(sound, sources),
                    }
                    true = _directions(scene)
                    for method, directions in by_method.items():
                        errors[method].append(angular_errors(directions, true))
                advance(len(part))
            rows.append({"rt60": decay, "sources": sources, "scenes": count} | _row(errors, name))
    return rows


def _directions(scene: Mapping) -> np.ndarray:
    azimuth, elevation = np.array([[s["azimuth"], s["elevation"]] for s in scene["sources"]]).T
    return foa.encode(azimuth, elevation)[:, [3, 1, 2]]


def _row(errors: Mapping[str, Sequence[np.ndarray]], name: str) -> dict:
    by_method = {method: np.stack(rows) for method, rows in errors.items()}
    num_scenes = len(by_method["ours"])
    drawn = keys.rng(0, "doa", name).integers(num_scenes, size=(SAMPLES, num_scenes))
    medians = {m: np.median(e[drawn].reshape(SAMPLES, -1), axis=1) for m, e in by_method.items()}
    row = {}
    for method, error in by_method.items():
        low, high = np.percentile(medians[method], [2.5, 97.5])
        row[f"{method}_median_deg"] = round(float(np.median(error)), 2)
        row |= {f"{method}_low": round(float(low), 2), f"{method}_high": round(float(high), 2)}
        row[f"{method}_frac_over_20_deg"] = round(float((error > FAR_DEG).mean()), 4)
    best = min(("histogram", "music"), key=lambda m: row[f"{m}_median_deg"])
    low, high = np.percentile(medians["ours"] - medians[best], [2.5, 97.5])
    difference = row["ours_median_deg"] - row[f"{best}_median_deg"]
    return row | {
        "best_classical": best,
        "difference": round(difference, 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def format_table(rows: Sequence[Mapping]) -> str:
    """The rows as text for a terminal."""
    lines = [
        "Median angular error in degrees; difference: slots minus the better classical method.",
        "RT60 (s)  sources  slots  histogram  MUSIC  difference (95 % interval)",
    ]
    for r in rows:
        lines.append(
            f"{r['rt60']:8.1f}  {r['sources']:7d}  {r['ours_median_deg']:5.1f}  "
            f"{r['histogram_median_deg']:9.1f}  {r['music_median_deg']:5.1f}  "
            f"{r['difference']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f})"
        )
    return "\n".join(lines)
