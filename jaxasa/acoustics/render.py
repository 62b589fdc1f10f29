# SPDX-License-Identifier: Apache-2.0
"""Renders scenes to FOA in the listener's frame, with labels measured on the RIRs used.

    x(t) = R(yaw(t)) [ sum over sources (dry * RIR)(t) ] + diffuse noise + sensor noise

A static source is convolved with its RIR (rir). The direct sound and the early images of a moving
source are delayed sample by sample, and its late reverberation is cross-faded (motion). The turning
of the listener is a rotation of the sound field, exact at each sample. The diffuse noise has the
covariance diag(1, 1/3, 1/3, 1/3) of an isotropic field in SN3D, and is fixed to the room; sensor
noise is white, independent in each channel, and fixed to the listener.

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

from jaxasa.acoustics import foa, measure, motion, noise, numba_jit, rooms
from jaxasa.acoustics.convolve import convolve_tracks
from jaxasa.acoustics.rir import shoebox_rir
from jaxasa.acoustics.scenes import SceneSpec, Source, describe
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

MAX_GAIN = 0.25  # of a clip at 1 m, in the scene
MAX_PEAK = 0.9
_FADE_OUT_S = 0.01  # of a clip that is cut

ReadClip = Callable[[str], np.ndarray]  # clip id -> 16 kHz mono float32


@dataclass(frozen=True)
class MeasuredRir:
    """An RIR [4, n] (see rir) with its measured DRR (dB) and RT60 (s, or NaN)."""

    rir: np.ndarray
    drr: float
    rt60: float


def measure_rir(rir: np.ndarray, distance: float) -> MeasuredRir:
    """Returns an RIR [4, n] of a source at `distance` (m) with its DRR and RT60."""
    return MeasuredRir(rir, measure.drr(rir, distance), measure.rt60(rir))


def render(
    spec: SceneSpec, read_clip: ReadClip, full: bool = False, air: bool = True
) -> tuple[np.ndarray, dict]:
    """Renders a scene to FOA [T, 4] float32 at 16 kHz, and returns its description.

    One gain, "gain" in the description, is applied to all channels. It is the same for all scenes,
    and lowered only if the peak would exceed 0.9: levels carry information. "rt60" and "drr" are
    measured on the RIRs used (of a moving source, that of its position at onset); rt60 is the mean
    over the sources, and stays nominal if no decay can be measured. The SNRs of the noises are on
    W, relative to the mean power while sources sound. full=True follows all images, and air=False
    leaves out air absorption (rir.shoebox_rir). Raises ConfigError for a scene or clip that cannot
    be rendered.
    """
    spec.validate()
    room = spec.shoebox(air)
    rirs = []
    for i, k in enumerate(_arrival_order(spec)):
        source = spec.sources[k]
        rng = keys.rng(spec.seed, "tail", spec.split, spec.index, i)
        rir = shoebox_rir(room, source.position, spec.listener, rng, full)
        rirs.append(measure_rir(rir, _distance(spec, source)))
    return _mix(spec, read_clip, rirs, full, air)


def render_with_rirs(
    spec: SceneSpec, read_clip: ReadClip, rirs: Sequence[MeasuredRir]
) -> tuple[np.ndarray, dict]:
    """Renders a scene as `render` does, with given RIRs: one for each of spec.sources.

    Raises ConfigError for a moving source, which one RIR does not describe.
    """
    spec.validate()
    check(len(rirs) == len(spec.sources), "rirs", len(rirs), "one for each source")
    for i, source in enumerate(spec.sources):
        field = f"SceneSpec.sources[{i}].waypoints"
        check(not source.waypoints, field, source.waypoints, "none if RIRs are given")
    return _mix(spec, read_clip, [rirs[k] for k in _arrival_order(spec)])


def _mix(
    spec: SceneSpec,
    read_clip: ReadClip,
    rirs: Sequence[MeasuredRir],
    full: bool = False,
    air: bool = True,
) -> tuple[np.ndarray, dict]:
    """Renders a scene with RIRs in the order of arrival; returns audio and description."""
    scene, room = describe(spec), spec.shoebox(air)
    length = round(spec.seconds * SAMPLE_RATE)
    tracks, track_rirs, parts = [], [], []
    for i, (k, measured) in enumerate(zip(_arrival_order(spec), rirs, strict=True)):
        source = spec.sources[k]
        start, dry = round(source.onset * SAMPLE_RATE), dry_source(source, read_clip(source.clip))
        if not source.waypoints:
            tracks.append((start, dry))
            track_rirs.append(measured.rir)
            continue
        dry, path = dry[: length - start], source.path()
        parts.append(motion.early_sound(dry, start, path, room, spec.listener, length, full))
        if not full:
            rng = keys.rng(spec.seed, "moving tail", spec.split, spec.index, i)
            for segment, rir in motion.late_segments(dry, start, path, room, spec.listener, rng):
                tracks.append((start, segment))
                track_rirs.append(rir)
    for entry, measured in zip(scene["sources"], rirs, strict=True):
        entry["drr"] = measured.drr
    decays = [measured.rt60 for measured in rirs if math.isfinite(measured.rt60)]
    if decays:
        scene["rt60"] = float(np.mean(decays))
    if tracks:
        parts.append(convolve_tracks(tracks, track_rirs, length))
    mixed = sum(parts[1:], start=parts[0])
    mixed = foa.rotate(mixed.T, -spec.yaw)
    power = sounding_power(mixed[:, 0], scene["sources"])
    mixed += _diffuse_noise(spec, length, power)
    if spec.yaw_trajectory:
        mixed = foa.rotate(mixed, spec.yaw - spec.yaw_at(np.arange(length) / SAMPLE_RATE))
    if spec.sensor_snr is not None:
        mixed += _sensor_noise(spec, spec.sensor_snr, length, power)
    peak = float(np.abs(mixed).max())
    scene["gain"] = min(MAX_GAIN, MAX_PEAK / peak) if peak > 0 else MAX_GAIN
    return _interleave(mixed.T, np.float32(scene["gain"])), scene


@numba_jit.njit_fastmath
def _interleave(channels, gain):
    """Returns gain times channels [4, T] float32 as [T, 4]."""
    out = np.empty((channels.shape[1], 4), np.float32)
    for t in range(channels.shape[1]):
        for c in range(4):
            out[t, c] = gain * channels[c, t]
    return out


def _arrival_order(spec: SceneSpec) -> list[int]:
    """Returns the indices of the sources in order of arrival, as in the description."""
    arrivals = [s.onset + _distance(spec, s) / rooms.SPEED_OF_SOUND for s in spec.sources]
    return sorted(range(len(arrivals)), key=arrivals.__getitem__)


def _distance(spec: SceneSpec, source: Source) -> float:
    return math.dist(source.position, spec.listener)


def dry_source(source: Source, clip: np.ndarray) -> np.ndarray:
    """Returns the dry signal [n] of a source: resampled, cut with a fade-out, and amplified."""
    ok = clip.ndim == 1 and len(clip) > 0
    check(ok, f"clip {source.clip}", clip.shape, "mono samples")
    finite = np.isfinite(clip)
    if not finite.all():
        first = int(finite.argmin())
        sample = f"clip {source.clip}, sample {first}"
        check(False, sample, float(clip[first]), "finite samples")
    if source.playback_rate != 1:
        clip = soxr.resample(clip, SAMPLE_RATE * source.playback_rate, SAMPLE_RATE, quality="MQ")
    length = max(round(source.seconds * SAMPLE_RATE), 1)
    dry = clip[:length] * np.float32(10 ** (source.gain / 20))
    # Lengths in seconds are rounded: a clip that is longer by less than 1 ms was not cut.
    if len(clip) > length + SAMPLE_RATE // 1000:
        fade = min(int(_FADE_OUT_S * SAMPLE_RATE), length)
        dry[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return dry


def sounding_power(w: np.ndarray, sources: list[dict]) -> float:
    """Returns the mean power of W [T] while sources sound."""
    sounding = np.zeros(len(w), bool)
    for source in sources:
        start, end = (int(source[key] * SAMPLE_RATE) for key in ("onset", "offset"))
        sounding[start : end + 1] = True
    # Not a dot product: BLAS sums it in an order that depends on the number of threads.
    return float(np.mean(w[sounding].astype(float) ** 2))


def _diffuse_noise(spec: SceneSpec, length: int, power: float) -> np.ndarray:
    """Returns diffuse noise [T, 4], covariance diag(1, 1/3, 1/3, 1/3), pink above 100 Hz."""
    rng = keys.rng(spec.seed, "noise", spec.split, spec.index)
    return noise.diffuse_noise(rng, length, (power / 10 ** (spec.snr / 10)) ** 0.5).T


def _sensor_noise(spec: SceneSpec, snr: float, length: int, power: float) -> np.ndarray:
    """Returns white noise [T, 4] with the same power in each channel."""
    rng = keys.rng(spec.seed, "sensor noise", spec.split, spec.index)
    level = np.float32((power / 10 ** (snr / 10)) ** 0.5)
    return rng.standard_normal((length, 4), np.float32) * level
