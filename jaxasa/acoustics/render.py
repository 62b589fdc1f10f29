"""Scenes to sound: FOA in the listener's frame, with labels measured on the very responses."""

import math
from collections.abc import Callable

import numpy as np
import soxr

from jaxasa.acoustics import foa, keys, noise, rir, rooms
from jaxasa.acoustics.convolve import convolve
from jaxasa.acoustics.rir import RATE
from jaxasa.acoustics.scenes import SceneSpec, Source, describe, validate
from jaxasa.config import check

LEVEL = 0.25  # gain from a clip, heard at 1 m, to the scene
PEAK = 0.9
_CUT = 0.01  # seconds of fade where a clip is cut


def render(
    spec: SceneSpec, audio: Callable[[str], np.ndarray], full: bool = False, air: bool = True
) -> tuple[np.ndarray, dict]:
    """Renders a scene to FOA [T, 4] float32 at 16 kHz, and returns its description.

    audio(clip id) gives 16 kHz mono float32. One gain, "gain" in the description, serves all
    scenes and channels, and is lowered only where the peak would pass 0.9: levels carry
    information. "rt60" and "drr" are measured on the responses used; rt60 is the mean over the
    sources, and stays nominal where no decay can be measured. The diffuse noise has the SNR on
    W, against the mean power while sources sound. full=True follows all images, and
    air=False leaves the air's absorption out (rir.response).
    Raises ConfigError for a scene or clip that cannot be rendered.
    """
    validate(spec)
    scene = describe(spec)
    length = round(spec.seconds * RATE)
    # In the order of the description, so that its entries and the responses match.
    sources = sorted(spec.sources, key=lambda s: s.onset + _distance(spec, s) / rooms.SPEED)
    tracks, responses = [], []
    for i, source in enumerate(sources):
        rng = keys.rng(spec.seed, "tail", spec.split, spec.index, i)
        where = (spec.room, spec.absorption, source.position, spec.listener)
        responses.append(rir.response(*where, rng, full=full, air=air))
        tracks.append((round(source.onset * RATE), _dry(source, audio(source.clip))))
    for entry, response in zip(scene["sources"], responses, strict=True):
        entry["drr"] = rir.drr(response, entry["distance"])
    decays = [t for t in map(rir.rt60, responses) if math.isfinite(t)]
    if decays:
        scene["rt60"] = float(np.mean(decays))
    mix = foa.rotate(convolve(tracks, responses, length).T, -spec.yaw)
    mix += _noise(spec, mix[:, 0], scene["sources"])
    peak = float(np.abs(mix).max())
    scene["gain"] = min(LEVEL, PEAK / peak) if peak > 0 else LEVEL
    mix *= np.float32(scene["gain"])
    return np.ascontiguousarray(mix), scene


def _distance(spec: SceneSpec, source: Source) -> float:
    return math.dist(source.position, spec.listener)


def _dry(source: Source, clip: np.ndarray) -> np.ndarray:
    """Returns the clip as played: at its speed, cut with a fade, at its own gain."""
    ok = clip.ndim == 1 and len(clip) > 0 and bool(np.isfinite(clip).all())
    check(ok, f"clip {source.clip}", clip.shape, "finite mono samples")
    if source.speed != 1:
        clip = soxr.resample(clip, RATE * source.speed, RATE, quality="MQ")
    wanted = max(round(source.seconds * RATE), 1)
    played = clip[:wanted] * np.float32(10 ** (source.gain / 20))
    # A clip's length in seconds is rounded: only what is missing beyond that was cut.
    if len(clip) > wanted + RATE // 1000:
        fade = min(int(_CUT * RATE), wanted)
        played[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return played


def _noise(spec: SceneSpec, w: np.ndarray, sources: list[dict]) -> np.ndarray:
    """Returns diffuse noise [T, 4], covariance diag(1, 1/3, 1/3, 1/3), pink above 100 Hz."""
    rng = keys.rng(spec.seed, "noise", spec.split, spec.index)
    sounding = np.zeros(len(w), bool)
    for source in sources:
        sounding[int(source["onset"] * RATE) : int(source["offset"] * RATE) + 1] = True
    power = float(np.mean(w[sounding].astype(float) ** 2))
    level = np.float32((power / 10 ** (spec.snr / 10)) ** 0.5)
    return (noise.diffuse(rng, len(w)) * level).T
