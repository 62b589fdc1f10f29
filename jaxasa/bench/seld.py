# SPDX-License-Identifier: Apache-2.0
"""SELD metrics of DCASE task 3 (2023 and 2024): sound event localization and detection.

References and predictions are events by frame (`dcase_csv.Event`). In each frame the events of one
class are paired one to one so that the total angle is least (Hungarian algorithm). TP, FP and FN
are true positives, false positives and false negatives of one class:

    F20    TP / (TP + FP_spatial + (FP + FN) / 2): TP are pairs at most 20 degrees apart and, in
           2024, with a relative distance error of at most 1; other pairs are FP_spatial
    ER20   (S + D + I) / N_ref with S = min(FP, FN), D = max(0, FN - FP), I = max(0, FP - FN) in
           each block of time, over all classes
    LE_CD  mean angle of the pairs of a class, degrees (2024: DOAE)
    LR_CD  pairs / (pairs + FN)
    RDE    mean |d' - d| / d of the pairs (2024)

F20, LE_CD, LR_CD and RDE are means over classes. A block is a frame in 2024 and a second (ten
frames) in 2023, where an event counts once a second and its angle is the mean over its pairs.
A class that has references but no pairs counts 180 degrees in 2023 and is left out of LE_CD
and RDE in 2024. SELD is mean(ER20, 1 - F20, LE_CD / 180, 1 - LR_CD) in 2023 and
mean(1 - F20, LE_CD / 180, RDE) in 2024, over the terms that are defined.

`official=True` reproduces the public code (2023: sharathadavanne/seld-dcase2023; 2024:
partha2409/DCASE2024_seld_baseline) with its quirks. They are, and the default instead is:

 1. Means are over all classes: one that never occurs has F20 0, LR_CD 0 and, in 2023, 180
    degrees. Default: F20 over classes that either side has, LE_CD and LR_CD over those of the
    references.
 2. Evaluation ends at the last frame with a reference, and leaves that frame itself out (in 2023
    only if its number is a multiple of ten), so later false positives cost nothing. Default: all
    frames.
 3. Files without predictions are left out. Default: all their references are missed; the command
    refuses them. An empty reference file raises an error in both.
 4. Classes beyond `classes` are ignored. Default: refused.
 5. 2023: if the events of a class share a second but no frame, the number of *predictions* is
    added to the misses, and nothing to the false positives. Default: the references are missed,
    the predictions false.
 6. 2023: a reference is identified by its position in the frame, not by its source, so two events
    can merge when one of them ends, and one can split when lines change order. The number of
    events in a second is the largest number at once, whatever was paired, so hits and misses need
    not add up to the references. Default: events are sources. FN are those without a pair, and at
    least the largest number of references at once minus the largest number of pairs at once; FP
    is the largest number of predictions at once minus the latter. So a prediction that jumps
    between two events matches one of them.
 7. A pair in the wrong place is a false positive but no miss in ER20, and so compensates for a
    miss elsewhere. Default: it is both, one substitution.
 8. 2024: SELD is the mean over classes of the terms that each class has, so a class without pairs
    is scored by its 1 - F20 alone. Default: the formula above, applied to the means.
 9. 2024 adds 1e-10 to squared norms: equal directions are 0.0008 degrees apart. 2023 loses about
    1e-6 degrees in an arc cosine. Rounding decides about pairs exactly 20 degrees apart, and the
    order of lines about ties. Default: atan2; exactly 20 degrees is a hit; the order of lines has
    no effect.
10. Without any reference ER20 is divided by 2e-16; means over nothing are NaN, with a warning.
    Default: None.

Papers: Mesaros et al., WASPAA 2019; Politis et al., IEEE/ACM TASLP 29, 2021 (pairs of one
class); Krause, Politis and Mesaros, arXiv:2403.11827 (distance).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxasa.config import ConfigError
from jaxasa.data.dcase_csv import Event

YEARS = (2023, 2024)
MAX_ANGLE_DEG, MAX_RELATIVE_DISTANCE_ERROR = 20.0, 1.0  # of a hit
FRAMES_PER_SECOND = 10
_EPS = np.finfo(float).eps
_TOLERANCE = 1e-9  # of a threshold, for rounding; none if official

Recordings = Mapping[str, Sequence[Event]]
Frames = dict[int, list[Event]]


@dataclass
class _Tally:
    """Counts by class, each [classes], and S + D + I of ER20.

    angle, distance and relative are sums of errors over pairs.
    """

    classes: int
    errors: float = 0.0
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        names = ("hit", "misplaced", "false", "missed", "pairs", "references", "predictions")
        for name in (*names, "angle", "distance", "relative"):
            self.rows[name] = np.zeros(self.classes)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.rows[name]


def evaluate(
    references: Recordings,
    predictions: Recordings,
    *,
    year: int = 2024,
    classes: int = 13,
    official: bool = False,
) -> dict:
    """{"F20", "ER20", "LE_CD", "LR_CD", "SELD", "classes"}, in 2024 also "RDE" and "distance".

    references, predictions: events by recording. classes: their number. "LE_CD" is in degrees,
    "distance" the mean |d' - d| in metres; "classes" lists F20, LE_CD, LR_CD (and RDE) by class.
    Undefined values are None. Raises ConfigError for unknown recordings or classes, and, in 2024,
    for events without a distance.
    """
    if year not in YEARS:
        raise ConfigError(f"year is {year!r}, expected one of {YEARS}")
    if classes < 1:
        raise ConfigError(f"classes is {classes}, expected at least 1")
    if not references:
        raise ConfigError("no references, expected at least one recording")
    unknown = sorted(set(predictions) - set(references))
    if unknown:
        raise ConfigError(f"{unknown[0]}: predictions without references of that name")
    tally = _Tally(classes)
    for name, truth in references.items():
        if official and name not in predictions:
            continue
        predicted = predictions.get(name, ())
        _check(name, truth, "references", year, classes, official)
        _check(name, predicted, "predictions", year, classes, official)
        _add_recording(tally, truth, predicted, year, official)
    return (_official if official else _corrected)(tally, year)


def _check(name: str, events: Iterable[Event], side: str, year: int, classes: int, official: bool):
    for e in events:
        place = f"{name}: frame {e.frame} of the {side}"
        if e.label >= classes and not official:
            raise ConfigError(f"{place}: class {e.label}, expected one below {classes}")
        if year == 2024 and e.distance is None:
            raise ConfigError(f"{place} has no distance, which the 2024 metrics need (2023 do not)")
        if year == 2024 and side == "references" and not (e.distance or 0.0) > 0:
            raise ConfigError(f"{place}: distance {e.distance:g}, expected more than 0")
    if official and side == "references" and not events:
        raise ConfigError(f"{name}: no reference at all, which the public code cannot score")


def _add_recording(
    tally: _Tally, truth: Sequence[Event], predicted: Sequence[Event], year: int, official: bool
) -> None:
    length = FRAMES_PER_SECOND if year == 2023 else 1
    last = max((e.frame for e in truth), default=-1)
    if not official:
        last = max([last, *(e.frame for e in predicted)]) + 1
    true_blocks, predicted_blocks = (
        _blocks(events, length, official) for events in (truth, predicted)
    )
    for block in range(math.ceil(last / length)):
        true_block, predicted_block = true_blocks.get(block, {}), predicted_blocks.get(block, {})
        false = missed = 0.0
        for label in sorted(true_block.keys() | predicted_block.keys()):
            if label >= tally.classes:
                continue
            f, m = _add_class(
                tally,
                label,
                true_block.get(label, {}),
                predicted_block.get(label, {}),
                year,
                official,
            )
            false, missed = false + f, missed + m
        # S + D + I
        tally.errors += max(false, missed)


def _blocks(events: Iterable[Event], length: int, official: bool) -> dict[int, dict[int, Frames]]:
    """{block: {class: {frame: events}}}."""
    out: dict[int, dict[int, Frames]] = {}
    if not official:
        # By place: neither the order of lines nor the numbers of sources decide about ties.
        events = sorted(events, key=lambda e: (e.azimuth, e.elevation, e.distance or 0.0, e.source))
    for e in events:
        frames = out.setdefault(e.frame // length, {}).setdefault(e.label, {})
        frames.setdefault(e.frame, []).append(e)
    return out


def _add_class(
    tally: _Tally, label: int, truth: Frames, predicted: Frames, year: int, official: bool
) -> tuple[float, float]:
    """One class in one block of time; returns its false alarms and misses for ER20."""
    most_true = max(map(len, truth.values()), default=0)
    most_predicted = max(map(len, predicted.values()), default=0)
    most_pairs = 0
    tracks: dict[Any, list[tuple[float, float, float]]] = {}
    for frame in sorted(truth.keys() & predicted.keys()):
        names = _names(truth[frame], official)
        pairs = _pair(truth[frame], predicted[frame], year, official)
        most_pairs = max(most_pairs, len(pairs))
        for r, c, angle in pairs:
            away = relative = 0.0
            if year == 2024:
                true_distance = truth[frame][r].distance
                away = abs(true_distance - predicted[frame][c].distance)
                relative = away / (true_distance + (_EPS if official else 0.0))
            tracks.setdefault(names[r], []).append((angle, away, relative))

    if official:
        count, false, missed = most_true, most_predicted - most_true, most_true - most_predicted
        if truth and predicted and not tracks:
            false, missed = 0, most_predicted
    else:
        count = len({name for events in truth.values() for name in _names(events, official)})
        false = most_predicted - most_pairs
        missed = max(count - len(tracks), most_true - most_pairs)
        # A prediction that jumps between two events matches only one of them.
        best = sorted(tracks.values(), key=lambda t: (-len(t), t))
        tracks = dict(enumerate(best[: count - missed]))
    means = np.array([[sum(c) / len(c) for c in zip(*t, strict=True)] for t in tracks.values()])
    means = means.reshape(-1, 3)
    slack = 0.0 if official else _TOLERANCE
    is_hit = means[:, 0] <= MAX_ANGLE_DEG + slack
    is_hit &= means[:, 2] <= MAX_RELATIVE_DISTANCE_ERROR + slack
    hit = int(is_hit.sum())
    counts = {
        "references": count,
        "predictions": most_predicted,
        "pairs": len(tracks),
        "hit": hit,
        "misplaced": len(tracks) - hit,
        "false": max(0, false),
        "missed": max(0, missed),
        "angle": means[:, 0].sum(),
        "distance": means[:, 1].sum(),
        "relative": means[:, 2].sum(),
    }
    for name, value in counts.items():
        tally[name][label] += value
    missed = counts["missed"] + (0 if official else counts["misplaced"])
    return counts["false"] + counts["misplaced"], missed


def _names(events: Sequence[Event], official: bool) -> list[tuple[int, int]]:
    """Identities of the events of a frame: source, and its number among those of that source."""
    seen: dict[int, int] = {}
    names = []
    for place, e in enumerate(events):
        source = place if official else e.source
        names.append((source, seen.get(source, 0)))
        seen[source] = seen.get(source, 0) + 1
    return names


def _pair(truth: Sequence[Event], predicted: Sequence[Event], year: int, official: bool):
    """[(index of a reference, index of a prediction, degrees between them)]."""
    # In this order, as the public code rounds: it decides at 20 degrees sharp.
    a, b = (np.array([e[3:5] for e in events]).T * np.pi / 180 for events in (truth, predicted))
    if not official:
        angles = _angle(a, b)
    elif year == 2023:
        angles = _angle_2023(a, b)
    else:
        angles = _angle_2024(a, b)
    rows, cols = linear_sum_assignment(angles)
    return [(int(r), int(c), float(angles[r, c])) for r, c in zip(rows, cols, strict=True)]


def _unit(places: np.ndarray) -> np.ndarray:
    """(azimuth, elevation) [2, N] in radians -> unit vectors [N, 3]."""
    azimuth, elevation = places
    flat = np.cos(elevation)
    return np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)], -1)


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees [R, P] between places [2, R] and [2, P] in radians; exact for near and far ones."""
    u, v = _unit(a)[:, None], _unit(b)[None]
    chord, rest = np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1)
    return np.degrees(2 * np.arctan2(chord, rest))


def _angle_2023(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spherical law of cosines."""
    (az1, el1), (az2, el2) = a[:, :, None], b[:, None]
    cosine = np.sin(el1) * np.sin(el2)
    cosine = cosine + np.cos(el1) * np.cos(el2) * np.cos(np.abs(az1 - az2))
    return np.arccos(np.clip(cosine, -1, 1)) * 180 / np.pi


def _angle_2024(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Arc cosine of the product of vectors whose squared norms are 1 + 1e-10."""
    u, v = (
        x / np.sqrt(x[:, :1] ** 2 + x[:, 1:2] ** 2 + x[:, 2:] ** 2 + 1e-10)
        for x in (_unit(a), _unit(b))
    )
    cosine = sum(u[:, None, i] * v[None, :, i] for i in range(3))
    return np.arccos(np.clip(cosine, -1, 1)) * 180 / np.pi


def _official(tally: _Tally, year: int) -> dict:
    t = tally
    some = t["pairs"] > 0
    rows = {
        "F20": t["hit"] / (_EPS + t["hit"] + t["misplaced"] + 0.5 * (t["false"] + t["missed"])),
        "LE_CD": np.where(
            some, t["angle"] / (t["pairs"] + _EPS), 180.0 if year == 2023 else np.nan
        ),
        "LR_CD": t["pairs"] / (_EPS + t["pairs"] + t["missed"]),
    }
    if year == 2024:
        for name, total in (("RDE", "relative"), ("distance", "distance")):
            rows[name] = np.where(some, t[total] / (t["pairs"] + _EPS), np.nan)
    error = t.errors / (t["references"].sum() + _EPS)
    by_class = [_seld({n: v[c] for n, v in rows.items()}, error) for c in range(t.classes)]
    return _result(rows, error, float(np.mean(by_class)))


def _corrected(tally: _Tally, year: int) -> dict:
    t = tally
    has_references, has_predictions = t["references"] > 0, t["predictions"] > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        f_score = t["hit"] / (t["hit"] + t["misplaced"] + 0.5 * (t["false"] + t["missed"]))
        mean = {n: t[n] / t["pairs"] for n in ("angle", "distance", "relative")}
        recall = t["pairs"] / t["references"]
    count = t["references"].sum()
    error = t.errors / count if count else math.nan
    f_score = np.where(has_references | has_predictions, f_score, np.nan)
    rows = {"F20": f_score, "LE_CD": mean["angle"], "LR_CD": recall}
    if year == 2024:
        rows |= {"RDE": mean["relative"], "distance": mean["distance"]}
    else:
        rows["LE_CD"] = np.where(has_references & (t["pairs"] == 0), 180.0, rows["LE_CD"])
    return _result(rows, error, _seld({n: _mean(v) for n, v in rows.items()}, error))


def _seld(row: Mapping[str, float], error: float) -> float:
    """The SELD error: mean of the year's terms that are defined; 0 is perfect."""
    parts = [1 - row["F20"], row["LE_CD"] / 180]
    parts += [row["RDE"]] if "RDE" in row else [error, 1 - row["LR_CD"]]
    return _mean(np.array(parts))


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _result(rows: Mapping[str, np.ndarray], error: float, seld: float) -> dict:
    def without_nan(row: Mapping[str, float]) -> dict:
        return {name: None if math.isnan(v) else float(v) for name, v in row.items()}

    means = {name: _mean(values) for name, values in rows.items()} | {"ER20": error, "SELD": seld}
    classes = range(len(rows["F20"]))
    return without_nan(means) | {
        "classes": [without_nan({name: row[c] for name, row in rows.items()}) for c in classes]
    }


def format_table(scores: Mapping) -> str:
    """The scores as text for a terminal: a line for each class that occurs, and one for all."""
    names = [n for n in ("ER20", "F20", "LE_CD", "LR_CD", "RDE", "distance", "SELD") if n in scores]
    lines = ["class" + "".join(f"{name:>10}" for name in names)]
    rows = [(str(c), row) for c, row in enumerate(scores["classes"]) if row["F20"] is not None]
    for title, row in (*rows, ("all", scores)):
        cells = (row.get(name) for name in names)
        lines.append(
            f"{title:<5}" + "".join(f"{'' if v is None else f'{v:.4g}':>10}" for v in cells)
        )
    return "\n".join(lines)
