# SPDX-License-Identifier: Apache-2.0
"""Scenes for two ears: the scene that `render` gives in FOA, through a head, with its labels.

Sources at rest go through their room's response for two ears (`binaural_rir`), what moves is
followed by `binaural_motion`, and ambient noise has the covariance of a diffuse field at the
ears, of the power that its SNR on W asks for where the head is not. Sensor noise is white
and independent at the two ears. A recording exists in FOA only: `foa_decoder` decodes it.

    >>> import numpy as np
    >>> from jaxasa.acoustics import binaural, hrtf, scenes
    >>> from jaxasa.config import Scenes
    >>> clips = [scenes.Clip("bell-1", "bell", "bell-1", 1.0)]
    >>> ranges = Scenes(train=1, dev=1, benchmark=1, seconds=2.0, sources=(1, 1))
    >>> spec = scenes.sample_scene(ranges, clips, seed=0, split="train", index=0)
    >>> ears, labels = binaural.render(spec, lambda clip: np.ones(16000, np.float32))
    >>> ears.shape, labels["sources"][0]["class"]
    ((32000, 2), 'bell')
"""

import functools
from collections.abc import Callable

import numpy as np
import scipy.fft
import scipy.signal

from jaxasa.acoustics import binaural_motion, binaural_rir, hrtf, noise, paths, rooms
from jaxasa.acoustics import render as foa_render
from jaxasa.acoustics.hrtf import Hrtf
from jaxasa.acoustics.rir import PRE_SAMPLES
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import check
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE


def render(
    spec: SceneSpec,
    read_clip: Callable[[str], np.ndarray],
    head: Hrtf | None = None,
    full: bool = False,
) -> tuple[np.ndarray, dict]:
    """Renders a scene to two ears [T, 2] float32 (left, right) at 16 kHz, with its description.

    The scene is the one that render.render renders in FOA, and so are all labels but "gain",
    which is this signal's own: lowered only where an ear would pass 0.9. head: by default the
    rigid sphere. Raises ConfigError for a scene or clip that cannot be rendered: where walls
    differ and scatter nothing, late sound is no diffuse field, and full=True alone serves.
    """
    diffuse = spec.scattering > 0 or not rooms.has_nonuniform_absorption(spec.absorption)
    expected = "above 0 where walls differ and the scene is for two ears"
    check(bool(full or diffuse), "SceneSpec.scattering", spec.scattering, expected)
    head = hrtf.load("sphere") if head is None else head
    around, scene = foa_render.render(spec, read_clip, full=full)
    length = len(around)
    mix = np.zeros((2, length), np.float32)
    for i, source in enumerate(spec.sources):
        key = (spec.seed, "binaural tail", spec.split, spec.index, i)
        start = round(source.onset * SAMPLE_RATE)
        dry = foa_render.dry_source(source, read_clip(source.clip))[: length - start]
        if source.waypoints or spec.yaw_trajectory:
            mix += binaural_motion.render_moving_binaural(
                dry,
                start,
                functools.partial(paths.position_at, source.path()),
                spec.yaw_at,
                *(spec.room, spec.absorption, spec.listener, head),
                functools.partial(keys.rng, *key),
                length,
                spec.scattering,
            )
            continue
        where = (spec.room, spec.absorption, source.position, spec.listener)
        args = (*where, head, spec.yaw, keys.rng(*key))
        ears = binaural_rir.shoebox_brir(*args, full=full, scattering=spec.scattering)
        heard = scipy.signal.oaconvolve(dry[None], ears, axes=1)[
            :, PRE_SAMPLES : PRE_SAMPLES + length - start
        ]
        mix[:, start : start + heard.shape[1]] += heard
    ambient, sensors = _noise_powers(spec, around[:, 0], scene)
    mix += _noise(spec, head, length, ambient)
    if sensors:
        rng = keys.rng(spec.seed, "binaural sensor noise", spec.split, spec.index)
        mix += rng.standard_normal((2, length), np.float32) * np.float32(sensors**0.5)
    peak = float(np.abs(mix).max())
    scene["gain"] = (
        min(foa_render.MAX_GAIN, foa_render.PEAK / peak) if peak else foa_render.MAX_GAIN
    )
    return np.ascontiguousarray((mix * np.float32(scene["gain"])).T), scene


def _noise_powers(spec: SceneSpec, w: np.ndarray, scene: dict) -> tuple[float, float]:
    """Returns the powers of ambient and of sensor noise on W, before the gain.

    Their SNRs hold while sources sound; W has all three, so the shares of noise are known.
    """
    ambient = 10 ** (-spec.snr / 10)
    sensors = 0.0 if spec.sensor_snr is None else 10 ** (-spec.sensor_snr / 10)
    power = foa_render.sounding_power(w, scene["sources"]) / scene["gain"] ** 2
    power /= 1 + ambient + sensors
    return power * ambient, power * sensors


def _noise(spec: SceneSpec, head: Hrtf, length: int, power: float) -> np.ndarray:
    """Returns diffuse noise [2, length], pink above 100 Hz, of so much power at the absent head."""
    rng = keys.rng(spec.seed, "binaural noise", spec.split, spec.index)
    size = scipy.fft.next_fast_len(length, real=True)
    f = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    shape = power * noise.pink_amplitudes(size).astype(float) ** 2
    field = _diffuse(head)
    grid = np.linspace(0, SAMPLE_RATE / 2, field.shape[-1])
    left, right, real, imaginary = (np.interp(f, grid, part) * shape for part in field)
    spectra = binaural_rir.correlated_noise(left, right, real + 1j * imaginary, rng)
    return scipy.fft.irfft(spectra, size)[:, :length]


@functools.lru_cache(maxsize=4)
def _diffuse(head: Hrtf) -> np.ndarray:
    """Returns |L|^2, |R|^2, Re and Im of L R^* [4, F] in a diffuse field."""
    found = hrtf.diffuse_field(head, 1024)
    cross = found[0, 1]
    return np.stack([found[0, 0].real, found[1, 1].real, cross.real, cross.imag])
