# SPDX-License-Identifier: Apache-2.0
"""Renders scenes binaurally: the scenes that `render` renders in FOA, with the same labels.

Static sources are convolved with a binaural RIR (`binaural_rir`), moving ones and turning listeners
are rendered by `binaural_motion`. Ambient noise has the covariance of a diffuse field at the ears,
with the power that its SNR on W implies at the absent head. Sensor noise is white and independent
at the two ears. Recordings exist in FOA only: `foa_decoder` decodes them.

    >>> import numpy as np
    >>> from jaxasa.acoustics import binaural, scenes
    >>> from jaxasa.config import Scenes
    >>> clips = [scenes.Clip("bell-1", "bell", "bell-1", 1.0)]
    >>> ranges = Scenes(train=1, dev=1, benchmark=1, seconds=2.0, sources=(1, 1))
    >>> spec = scenes.sample_scene(ranges, clips, seed=0, split="train", index=0)
    >>> ears, labels = binaural.render(spec, lambda clip: np.ones(16000, np.float32))
    >>> ears.shape, labels["sources"][0]["class"]
    ((32000, 2), 'bell')
"""

import functools

import numpy as np
import scipy.fft
import scipy.signal

from jaxasa.acoustics import noise, paths, rooms
from jaxasa.acoustics import render as foa_render
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.acoustics.binaural_motion import render_moving_binaural
from jaxasa.acoustics.binaural_rir import correlated_noise, shoebox_brir
from jaxasa.acoustics.hrtf import Hrtf, diffuse_field
from jaxasa.acoustics.load_hrtf import load_hrtf
from jaxasa.acoustics.spec import SceneSpec
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE


def render(
    spec: SceneSpec,
    read_clip: foa_render.ReadClip,
    hrtf: Hrtf | None = None,
    full: bool = False,
) -> tuple[np.ndarray, dict]:
    """Renders a scene to two ears [T, 2] float32 (left, right) at 16 kHz, with its description.

    The scene is the one that render.render renders in FOA, and so are all labels but "gain", which
    is of this signal: lowered only if an ear would exceed 0.9. hrtf: by default the rigid sphere.
    Raises ConfigError for a scene or clip that cannot be rendered. If absorption is nonuniform and
    walls do not scatter, late sound is not diffuse, and only full=True can render it.
    """
    diffuse = spec.scattering > 0 or not rooms.has_nonuniform_absorption(spec.absorption)
    expected = "above 0 for a binaural scene with nonuniform absorption"
    check(bool(full or diffuse), "SceneSpec.scattering", spec.scattering, expected)
    hrtf = load_hrtf("sphere") if hrtf is None else hrtf
    foa, scene = foa_render.render(spec, read_clip, full=full)
    room, length = spec.shoebox(), len(foa)
    mix = np.zeros((2, length), np.float32)
    for i, source in enumerate(spec.sources):
        key = (spec.seed, "binaural tail", spec.split, spec.index, i)
        start = round(source.onset * SAMPLE_RATE)
        dry = foa_render.dry_source(source, read_clip(source.clip))[: length - start]
        if source.waypoints or spec.yaw_trajectory:
            mix += render_moving_binaural(
                dry,
                start,
                functools.partial(paths.position_at, source.path()),
                spec.yaw_at,
                room,
                spec.listener,
                hrtf,
                functools.partial(keys.rng, *key),
                length,
            )
            continue
        brir = shoebox_brir(
            room, source.position, spec.listener, hrtf, spec.yaw, keys.rng(*key), full
        )
        ears = scipy.signal.oaconvolve(dry[None], brir, axes=1)
        ears = ears[:, PRE_SAMPLES : PRE_SAMPLES + length - start]
        mix[:, start : start + ears.shape[1]] += ears
    ambient, sensors = _noise_powers(spec, foa[:, 0], scene)
    mix += _ambient_noise(spec, hrtf, length, ambient)
    if sensors:
        rng = keys.rng(spec.seed, "binaural sensor noise", spec.split, spec.index)
        mix += rng.standard_normal((2, length), np.float32) * np.float32(sensors**0.5)
    peak = float(np.abs(mix).max())
    gain = min(foa_render.MAX_GAIN, foa_render.MAX_PEAK / peak) if peak else foa_render.MAX_GAIN
    scene["gain"] = gain
    return np.ascontiguousarray((mix * np.float32(gain)).T), scene


def _noise_powers(spec: SceneSpec, w: np.ndarray, scene: dict) -> tuple[float, float]:
    """Returns the powers of ambient and of sensor noise on W, before the gain.

    W contains sources and both noises, whose SNRs relative to the sounding sources are known.
    """
    ambient = 10 ** (-spec.snr / 10)
    sensors = 0.0 if spec.sensor_snr is None else 10 ** (-spec.sensor_snr / 10)
    power = foa_render.sounding_power(w, scene["sources"]) / scene["gain"] ** 2
    power /= 1 + ambient + sensors
    return power * ambient, power * sensors


def _ambient_noise(spec: SceneSpec, hrtf: Hrtf, length: int, power: float) -> np.ndarray:
    """Returns diffuse noise [2, length], pink above 100 Hz, with this power at the absent head."""
    rng = keys.rng(spec.seed, "binaural noise", spec.split, spec.index)
    size = scipy.fft.next_fast_len(length, real=True)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    shape = power * noise.pink_amplitudes(size).astype(float) ** 2
    field = _diffuse_field(hrtf)
    grid = np.linspace(0, SAMPLE_RATE / 2, field.shape[-1])
    left, right, real, imaginary = (np.interp(f, grid, part) * shape for part in field)
    spectra = correlated_noise(left, right, real + 1j * imaginary, rng)
    return scipy.fft.irfft(spectra, size)[:, :length]


@functools.lru_cache(maxsize=4)
def _diffuse_field(hrtf: Hrtf) -> np.ndarray:
    """Returns |L|^2, |R|^2, Re and Im of L R^* [4, F] in a diffuse field."""
    covariance = diffuse_field(hrtf, 1024)
    cross = covariance[0, 1]
    return np.stack([covariance[0, 0].real, covariance[1, 1].real, cross.real, cross.imag])
