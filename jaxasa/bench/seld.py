"""SELD metrics of DCASE task 3: are the right classes heard, when, and in the right place?

References and predictions are events by frame (`dcase.Event`). In each frame the events of one
class are paired by angle, one to one, at the least total angle (Hungarian algorithm), so that
two events of one class at once stay two. With K pairs among R references and P predictions:

    F20    TP / (TP + FP_spatial + (FP + FN) / 2): TP are pairs of at most 20 degrees, in 2024
           also of a relative distance error of at most 1; other pairs are FP_spatial
    ER20   (S + D + I) / N_ref with S = min(FP, FN), D = max(0, FN - FP), I = max(0, FP - FN) in
           each block of time, over all classes
    LE_CD  mean angle of the pairs of a class, degrees (2024: DOAE)
    LR_CD  pairs / (pairs + FN)
    RDE    mean |d' - d| / d of the pairs (2024)

F20, LE_CD, LR_CD and RDE are means over classes. A block is a frame in 2024 and a second (ten
frames) in 2023, where an event counts once a second and its angle is the mean over its pairs.
A class that has references but no pairs counts 180 degrees in 2023 and is left out of LE_CD
and RDE in 2024. SELD is mean(ER20, 1 - F20, LE_CD / 180, 1 - LR_CD) in 2023 and
mean(1 - F20, LE_CD / 180, RDE) in 2024, of what is defined.

`official=True` gives what the public code gives (2023: sharathadavanne/seld-dcase2023; 2024:
partha2409/DCASE2024_seld_baseline), with its quirks. What it does, and the default does not:

 1. It means over all `num_classes`: one that never occurs has F20 0, LR_CD 0 and, in 2023, 180
    degrees. Default: F20 over classes of either side, LE_CD and LR_CD over those of references.
 2. It ends at the last frame with a reference, and leaves that frame itself out (in 2023 only
    where its number is a multiple of ten), so that false alarms after it cost nothing.
 3. Files without predictions are left out. Default: they are missed, all of them; the command
    refuses them. An empty reference file stops it; here too, with a reason.
 4. Classes from `num_classes` on are ignored. Default: refused.
 5. 2023: where the events of a class share a second but no frame, it counts as many misses as
    there are *predictions*, and no false alarm. Default: the references are missed, the
    predictions false.
 6. 2023: a reference is known by its place in the frame, not by its source, so two events can
    become one where one of them ends, and one two where lines change places. Events a second
    are the most at once, whatever was paired, so that hits and misses need not add up to the
    references. Default: events are sources. FN are those without a pair, at least the most at
    once less the most pairs at once; FP are the most predictions at once less the same. So a
    prediction that jumps between two events finds one of them.
 7. A pair in the wrong place is a false alarm but no miss in ER20, and so makes up for a miss
    elsewhere. Default: it is both, one substitution.
 8. 2024: SELD is the mean over classes of what each class has, so that one without pairs
    is scored by its 1 - F20 alone. Default: the formula above on the means.
 9. 2024 adds 1e-10 to squared norms: equal directions are 0.0008 degrees apart. 2023 loses
    some 1e-6 degrees in an arc cosine. Rounding decides about pairs at 20 degrees sharp, and
    the order of lines about ties. Default: atan2, 20 degrees sharp are a hit, order is nothing.
10. Without any reference ER20 is divided by 2e-16; means of nothing are NaN, with a warning.
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

from jaxasa.bench.dcase import Event
from jaxasa.config import ConfigError

YEARS = (2023, 2024)
ANGLE, RELATIVE = 20.0, 1.0  # at most, for a hit
SECOND = 10  # frames
_EPS = np.finfo(float).eps
_SHARP = 1e-9  # rounding that a threshold forgives, unless official

Recordings = Mapping[str, Sequence[Event]]
Frames = dict[int, list[Event]]


@dataclass
class _Tally:
    """Counts by class, each [C], and the errors of ER20. angle, distance, relative are sums."""

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

    references, predictions: events by recording. "LE_CD" is in degrees, "distance" the mean
    |d' - d| in metres; "classes" has F20, LE_CD, LR_CD (and RDE) by class index. What is
    undefined is None. Raises ConfigError for recordings or classes that are unknown, and, in
    2024, for events without a distance.
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
        said = predictions.get(name, ())
        _check(name, truth, "references", year, classes, official)
        _check(name, said, "predictions", year, classes, official)
        _add_recording(tally, truth, said, year, official)
    return (_official if official else _corrected)(tally, year)


def _check(name: str, events: Iterable[Event], side: str, year: int, classes: int, official: bool):
    for e in events:
        where = f"{name}: frame {e.frame} of the {side}"
        if e.label >= classes and not official:
            raise ConfigError(f"{where}: class {e.label}, expected one below {classes}")
        if year == 2024 and e.distance is None:
            raise ConfigError(f"{where} has no distance, which the 2024 metrics need (2023 do not)")
        if year == 2024 and side == "references" and not (e.distance or 0.0) > 0:
            raise ConfigError(f"{where}: distance {e.distance:g}, expected more than 0")
    if official and side == "references" and not events:
        raise ConfigError(f"{name}: no reference at all, which the public code cannot score")


def _add_recording(
    tally: _Tally, truth: Sequence[Event], said: Sequence[Event], year: int, official: bool
) -> None:
    length = SECOND if year == 2023 else 1
    last = max((e.frame for e in truth), default=-1)
    if not official:
        last = max([last, *(e.frame for e in said)]) + 1
    true_blocks, said_blocks = (_blocks(events, length, official) for events in (truth, said))
    for block in range(math.ceil(last / length)):
        true_block, said_block = true_blocks.get(block, {}), said_blocks.get(block, {})
        false = missed = 0.0
        for label in sorted(true_block.keys() | said_block.keys()):
            if label >= tally.classes:
                continue
            f, m = _add_class(
                tally, label, true_block.get(label, {}), said_block.get(label, {}), year, official
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
    tally: _Tally, label: int, truth: Frames, said: Frames, year: int, official: bool
) -> tuple[float, float]:
    """One class in one block of time; returns its false alarms and misses for ER20."""
    most_true = max(map(len, truth.values()), default=0)
    most_said = max(map(len, said.values()), default=0)
    most_pairs = 0
    tracks: dict[Any, list[tuple[float, float, float]]] = {}
    for frame in sorted(truth.keys() & said.keys()):
        names = _names(truth[frame], official)
        pairs = _pair(truth[frame], said[frame], year, official)
        most_pairs = max(most_pairs, len(pairs))
        for r, c, angle in pairs:
            away = relative = 0.0
            if year == 2024:
                true_distance = truth[frame][r].distance
                away = abs(true_distance - said[frame][c].distance)
                relative = away / (true_distance + (_EPS if official else 0.0))
            tracks.setdefault(names[r], []).append((angle, away, relative))

    if official:
        count, false, missed = most_true, most_said - most_true, most_true - most_said
        if truth and said and not tracks:
            false, missed = 0, most_said
    else:
        count = len({name for events in truth.values() for name in _names(events, official)})
        false, missed = most_said - most_pairs, max(count - len(tracks), most_true - most_pairs)
        # One prediction that goes from one event to another and back found one of them.
        best = sorted(tracks.values(), key=lambda t: (-len(t), t))
        tracks = dict(enumerate(best[: count - missed]))
    means = np.array([[sum(c) / len(c) for c in zip(*t, strict=True)] for t in tracks.values()])
    means = means.reshape(-1, 3)
    slack = 0.0 if official else _SHARP
    hit = int(((means[:, 0] <= ANGLE + slack) & (means[:, 2] <= RELATIVE + slack)).sum())
    found = {
        "references": count,
        "predictions": most_said,
        "pairs": len(tracks),
        "hit": hit,
        "misplaced": len(tracks) - hit,
        "false": max(0, false),
        "missed": max(0, missed),
        "angle": means[:, 0].sum(),
        "distance": means[:, 1].sum(),
        "relative": means[:, 2].sum(),
    }
    for name, value in found.items():
        tally[name][label] += value
    lost = found["missed"] + (0 if official else found["misplaced"])
    return found["false"] + found["misplaced"], lost


def _names(events: Sequence[Event], official: bool) -> list[tuple[int, int]]:
    """What knows the events of a frame: source, and how many of it came before."""
    seen: dict[int, int] = {}
    names = []
    for place, e in enumerate(events):
        source = place if official else e.source
        names.append((source, seen.get(source, 0)))
        seen[source] = seen.get(source, 0) + 1
    return names


def _pair(truth: Sequence[Event], said: Sequence[Event], year: int, official: bool):
    """[(index of a reference, index of a prediction, degrees between them)]."""
    # In this order, as the public code rounds: it decides at 20 degrees sharp.
    a, b = (np.array([e[3:5] for e in events]).T * np.pi / 180 for events in (truth, said))
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
    heard, told = t["references"] > 0, t["predictions"] > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        right = t["hit"] / (t["hit"] + t["misplaced"] + 0.5 * (t["false"] + t["missed"]))
        mean = {n: t[n] / t["pairs"] for n in ("angle", "distance", "relative")}
        recall = t["pairs"] / t["references"]
    count = t["references"].sum()
    error = t.errors / count if count else math.nan
    rows = {"F20": np.where(heard | told, right, np.nan), "LE_CD": mean["angle"], "LR_CD": recall}
    if year == 2024:
        rows |= {"RDE": mean["relative"], "distance": mean["distance"]}
    else:
        rows["LE_CD"] = np.where(heard & (t["pairs"] == 0), 180.0, rows["LE_CD"])
    return _result(rows, error, _seld({n: _mean(v) for n, v in rows.items()}, error))


def _seld(row: Mapping[str, float], error: float) -> float:
    """The mean of what is defined of a year's parts: 0 is perfect."""
    parts = [1 - row["F20"], row["LE_CD"] / 180]
    parts += [row["RDE"]] if "RDE" in row else [error, 1 - row["LR_CD"]]
    return _mean(np.array(parts))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _result(rows: Mapping[str, np.ndarray], error: float, seld: float) -> dict:
    def known(row: Mapping[str, float]) -> dict:
        return {name: None if math.isnan(v) else float(v) for name, v in row.items()}

    means = {name: _mean(values) for name, values in rows.items()} | {"ER20": error, "SELD": seld}
    classes = range(len(rows["F20"]))
    return known(means) | {
        "classes": [known({name: values[c] for name, values in rows.items()}) for c in classes]
    }


def table(scores: Mapping) -> str:
    """The scores as text: a line for each class that occurs, and one for all."""
    names = [n for n in ("ER20", "F20", "LE_CD", "LR_CD", "RDE", "distance", "SELD") if n in scores]
    lines = ["class" + "".join(f"{name:>10}" for name in names)]
    rows = [(str(c), row) for c, row in enumerate(scores["classes"]) if row["F20"] is not None]
    for title, row in (*rows, ("all", scores)):
        cells = (row.get(name) for name in names)
        lines.append(
            f"{title:<5}" + "".join(f"{'' if v is None else f'{v:.4g}':>10}" for v in cells)
        )
    return "\n".join(lines)
