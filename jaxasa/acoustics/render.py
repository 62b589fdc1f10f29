# SPDX-License-Identifier: Apache-2.0
"""Scenes to sound: FOA in the listener's frame, with labels measured on the very responses.

    x(t) = R(yaw(t)) [ sum over sources (dry * response)(t) ] + diffuse noise + sensor noise

A source at rest is convolved with its room response (rir). A moving one has its direct sound and
early images delayed sample by sample, and tails that take turns (motion). The listener's turning
is a rotation of the field in the room, exact at each sample. The diffuse noise has the
covariance diag(1, 1/3, 1/3, 1/3) of an isotropic field in SN3D and turns with the room; that of
the sensors is white, independent in each channel and turns with the listener.

    >>> import numpy as np
    >>> from jaxasa.acoustics import render, scenes
    >>> from jaxasa.config import Scenes
    >>> clips = [scenes.Clip("bell-1", "bell", "bell-1", 1.0)]
    >>> ranges = Scenes(train=1, dev=1, benchmark=1, seconds=2.0, sources=(1, 1))
    >>> spec = scenes.sample_scene(ranges, clips, seed=0, split="train", index=0)
    >>> audio, description = render.render(spec, lambda clip: np.ones(16000, np.float32))
    >>> audio.shape, description["sources"][0]["class"]
    ((32000, 4), 'bell')
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from jaxasa.acoustics import foa, motion, noise, numba_jit, rir, rooms
from jaxasa.acoustics.convolve import convolve_tracks
from jaxasa.acoustics.scenes import SceneSpec, Source, describe, validate
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

MAX_GAIN = 0.25  # gain from a clip, heard at 1 m, to the scene
PEAK = 0.9
_CUT = 0.01  # seconds of fade where a clip is cut

ReadClip = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class MeasuredRir:
    """A room response [4, n] (see rir), and what is measured on it: DRR (dB), RT60 (s or NaN)."""

    rir: np.ndarray
    drr: float
    rt60: float


def measure_rir(response: np.ndarray, distance: float) -> MeasuredRir:
    """Returns a response [4, n] of a source at `distance` (m) with its DRR and RT60."""
    return MeasuredRir(response, rir.drr(response, distance), rir.rt60(response))


def render(
    spec: SceneSpec, read_clip: ReadClip, full: bool = False, air: bool = True
) -> tuple[np.ndarray, dict]:
    """Renders a scene to FOA [T, 4] float32 at 16 kHz, and returns its description.

    audio(clip id) gives 16 kHz mono float32. One gain, "gain" in the description, serves all
    scenes and channels, and is lowered only where the peak would pass 0.9: levels carry
    information. "rt60" and "drr" are measured on the responses used (of a moving source, that of
    the place of its onset); rt60 is the mean over the sources, and stays nominal where no decay
    can be measured. The noises have their SNR on W, against the mean power while sources
    sound. full=True follows all images, and air=False leaves the air's absorption out
    (rir.response).
    Raises ConfigError for a scene or clip that cannot be rendered.
    """
    validate(spec)
    responses = []
    for i, k in enumerate(_order(spec)):
        source = spec.sources[k]
        rng = keys.rng(spec.seed, "tail", spec.split, spec.index, i)
        where = (spec.room, spec.absorption, source.position, spec.listener)
        response = rir.shoebox_rir(*where, rng, full, air, spec.scattering)
        responses.append(measure_rir(response, _distance(spec, source)))
    return _mix(spec, read_clip, responses, full, air)


def render_with_rirs(
    spec: SceneSpec, read_clip: ReadClip, rirs: Sequence[MeasuredRir]
) -> tuple[np.ndarray, dict]:
    """Renders a scene as `render` does, with the responses given: one for each of spec.sources.

    Raises ConfigError for a source that moves: it has no one response.
    """
    validate(spec)
    check(len(rirs) == len(spec.sources), "responses", len(rirs), "one for each source")
    for i, source in enumerate(spec.sources):
        where = f"SceneSpec.sources[{i}].waypoints"
        check(not source.waypoints, where, source.waypoints, "none, with a given response")
    return _mix(spec, read_clip, [rirs[k] for k in _order(spec)])


def _mix(
    spec: SceneSpec,
    audio: ReadClip,
    responses: Sequence[MeasuredRir],
    full: bool = False,
    air: bool = True,
) -> tuple[np.ndarray, dict]:
    scene = describe(spec)
    length = round(spec.seconds * SAMPLE_RATE)
    tracks, through, heard = [], [], []
    for i, (k, response) in enumerate(zip(_order(spec), responses, strict=True)):
        source = spec.sources[k]
        start, played = round(source.onset * SAMPLE_RATE), dry_source(source, audio(source.clip))
        if not source.waypoints:
            tracks.append((start, played))
            through.append(response.rir)
            continue
        where = (source.path(), spec.room, spec.absorption, spec.listener)
        played = played[: length - start]
        heard.append(motion.early_sound(played, start, *where, length, full, air))
        if not full:
            rng = keys.rng(spec.seed, "moving tail", spec.split, spec.index, i)
            for part, tail in motion.late_segments(
                played, start, *where, rng, air, spec.scattering
            ):
                tracks.append((start, part))
                through.append(tail)
    for entry, response in zip(scene["sources"], responses, strict=True):
        entry["drr"] = response.drr
    decays = [r.rt60 for r in responses if math.isfinite(r.rt60)]
    if decays:
        scene["rt60"] = float(np.mean(decays))
    if tracks:
        heard.append(convolve_tracks(tracks, through, length))
    mixed = sum(heard[1:], start=heard[0])
    mixed = foa.rotate(mixed.T, -spec.yaw)
    power = sounding_power(mixed[:, 0], scene["sources"])
    mixed += _noise(spec, length, power)
    if spec.yaw_trajectory:
        mixed = foa.rotate(mixed, spec.yaw - spec.yaw_at(np.arange(length) / SAMPLE_RATE))
    if spec.sensor_snr is not None:
        mixed += _sensor_noise(spec, spec.sensor_snr, length, power)
    peak = float(np.abs(mixed).max())
    scene["gain"] = min(MAX_GAIN, PEAK / peak) if peak > 0 else MAX_GAIN
    return _interleaved(mixed.T, np.float32(scene["gain"])), scene


@numba_jit.njit_fastmath
def _interleaved(channels, gain):
    """Returns gain times channels [4, T] float32 as [T, 4]."""
    out = np.empty((channels.shape[1], 4), np.float32)
    for t in range(channels.shape[1]):
        for c in range(4):
            out[t, c] = gain * channels[c, t]
    return out


def _order(spec: SceneSpec) -> list[int]:
    """Returns the sources' places in the order of the description, as its entries have it."""
    arrivals = [s.onset + _distance(spec, s) / rooms.SPEED_OF_SOUND for s in spec.sources]
    return sorted(range(len(arrivals)), key=arrivals.__getitem__)


def _distance(spec: SceneSpec, source: Source) -> float:
    return math.dist(source.position, spec.listener)


def dry_source(source: Source, clip: np.ndarray) -> np.ndarray:
    """Returns the clip as played: at its speed, cut with a fade, at its own gain."""
    ok = clip.ndim == 1 and len(clip) > 0
    check(ok, f"clip {source.clip}", clip.shape, "mono samples")
    finite = np.isfinite(clip)
    if not finite.all():
        first = int(finite.argmin())
        where = f"clip {source.clip}, sample {first}"
        check(False, where, float(clip[first]), "finite samples")
    if source.playback_rate != 1:
        clip = soxr.resample(clip, SAMPLE_RATE * source.playback_rate, SAMPLE_RATE, quality="MQ")
    wanted = max(round(source.seconds * SAMPLE_RATE), 1)
    played = clip[:wanted] * np.float32(10 ** (source.gain / 20))
    # A clip's length in seconds is rounded: only what is missing beyond that was cut.
    if len(clip) > wanted + SAMPLE_RATE // 1000:
        fade = min(int(_CUT * SAMPLE_RATE), wanted)
        played[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return played


def sounding_power(w: np.ndarray, sources: list[dict]) -> float:
    """Returns the mean power of W [T] while sources sound."""
    sounding = np.zeros(len(w), bool)
    for source in sources:
        start, end = (int(source[key] * SAMPLE_RATE) for key in ("onset", "offset"))
        sounding[start : end + 1] = True
    # No product of vectors here: libraries add it up by how many threads they have.
    return float(np.mean(w[sounding].astype(float) ** 2))


def _noise(spec: SceneSpec, length: int, power: float) -> np.ndarray:
    """Returns diffuse noise [T, 4], covariance diag(1, 1/3, 1/3, 1/3), pink above 100 Hz."""
    rng = keys.rng(spec.seed, "noise", spec.split, spec.index)
    return noise.diffuse_noise(rng, length, (power / 10 ** (spec.snr / 10)) ** 0.5).T


def _sensor_noise(spec: SceneSpec, snr: float, length: int, power: float) -> np.ndarray:
    """Returns white noise [T, 4], of one power in each channel."""
    rng = keys.rng(spec.seed, "sensor noise", spec.split, spec.index)
    level = np.float32((power / 10 ** (snr / 10)) ** 0.5)
    return rng.standard_normal((length, 4), np.float32) * level
