# SPDX-License-Identifier: Apache-2.0
"""The spatial encoder's slots in words and units: sources with class, direction and distance.

`read_slots` is the one reading of the slots' outputs; the other functions give its results in the
forms that `jaxasa ask`, its plot and the benchmark need.

Shapes: B batch, S slots, T steps of the dense map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics import foa
from jaxasa.models.spatial import Room, Slots


@dataclass(frozen=True)
class SourceEstimate:
    """One slot of a clip: a source that is present with probability `presence`.

    azimuth, elevation: degrees. distance: metres. direction [3]: its vector, of any length.
    activity [T]: probabilities. direction_in_time [T, 3].
    """

    label: str
    presence: float
    azimuth: float
    elevation: float
    distance: float
    direction: np.ndarray
    activity: np.ndarray
    direction_in_time: np.ndarray


def sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp of a masked logit is infinite, and the result 0
        return 1 / (1 + np.exp(-logits))


def read_slots(slots: Slots, classes: Sequence[str]) -> list[list[SourceEstimate]]:
    """For each clip of a batch, its slots from the likeliest to be present to the least.

    slots: numpy arrays. classes: the class head may have more outputs, which are ignored.
    """
    presence, activity = sigmoid(slots.presence), sigmoid(slots.activity)
    labels = slots.label[..., : len(classes)].argmax(-1)
    clips = []
    for b in range(len(presence)):
        clips.append([])
        for s in np.argsort(-slots.presence[b]):
            azimuth, elevation = foa.cartesian_to_azel(slots.direction[b, s])
            estimate = SourceEstimate(
                label=classes[labels[b, s]],
                presence=float(presence[b, s]),
                azimuth=float(azimuth),
                elevation=float(elevation),
                distance=float(np.exp(slots.log_distance[b, s])),
                direction=slots.direction[b, s],
                activity=activity[b, s],
                direction_in_time=slots.direction_in_time[b, s],
            )
            clips[-1].append(estimate)
    return clips


def source(estimate: SourceEstimate) -> dict:
    """{"class", "azimuth", "elevation", "distance", "presence"}, rounded to be printed."""
    return {
        "class": estimate.label,
        "azimuth": round(estimate.azimuth, 1),
        "elevation": round(estimate.elevation, 1),
        "distance": round(estimate.distance, 2),
        "presence": round(estimate.presence, 3),
    }


def track(estimate: SourceEstimate, steps: int, step_seconds: float) -> dict:
    """`source` over time: "step" (s), and for each of the first `steps` of the map "activity"
    (probability), "azimuths" and "elevations" (degrees), arrays [T]."""
    azimuths, elevations = foa.cartesian_to_azel(estimate.direction_in_time[:steps])
    return source(estimate) | {
        "step": step_seconds,
        "activity": estimate.activity[:steps],
        "azimuths": azimuths,
        "elevations": elevations,
    }


def scene(
    estimates: Sequence[SourceEstimate], room: Mapping[str, float], seconds: float, threshold: float
) -> dict:
    """A clip as a scene's description (acoustics/scenes.describe): seconds, rt60, volume, sources.

    Each source has class, azimuth, elevation, distance, onset, offset, drr and presence. Of two of
    one class the likelier counts. Sources with a presence below `threshold` are left out, but not
    the likeliest.
    """
    step = seconds / len(estimates[0].activity)
    sources: dict[str, dict] = {}
    for rank, estimate in enumerate(estimates):
        if estimate.label in sources or (rank and estimate.presence < threshold):
            continue
        active = np.flatnonzero(estimate.activity >= 0.5 * estimate.activity.max())
        sources[estimate.label] = {
            "class": estimate.label,
            "azimuth": estimate.azimuth,
            "elevation": estimate.elevation,
            "distance": estimate.distance,
            "onset": float(active[0] * step),
            "offset": float((active[-1] + 1) * step),
            "drr": room["drr"],
            "presence": estimate.presence,
        }
    return {
        "seconds": seconds,
        "rt60": room["rt60"],
        "volume": room["volume"],
        "sources": sorted(sources.values(), key=lambda source: source["onset"]),
    }


def read_rooms(room: Room) -> list[dict[str, float]]:
    """For each clip {"rt60" (s), "volume" (m3), "drr" (dB)}. room: numpy arrays [B]."""
    return [
        {
            "rt60": float(np.exp(room.log_rt60[b])),
            "volume": float(np.exp(room.log_volume[b])),
            "drr": 10 * float(room.drr[b]),
        }
        for b in range(len(room.drr))
    ]


def directions(estimates: Sequence[SourceEstimate], count: int) -> np.ndarray:
    """Unit vectors [count, 3] of the `count` likeliest sources."""
    vectors = np.stack([estimate.direction for estimate in estimates[:count]])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
