# SPDX-License-Identifier: Apache-2.0
"""The late part of a response: noise with the energy, decay and directions of the room.

After the mixing time images are too dense to be told apart. Gaussian noise takes their place,
in each octave band and channel with the energy that rooms.tail_energy expects of them: no level
is matched, and W, Y, Z, X do not know each other (sound from opposite sides cancels in their
products). Frames of 256 samples are shaped as spectra and overlap by half.

    >>> import numpy as np
    >>> from jaxasa.acoustics import tail
    >>> late = tail.noise_tail((4, 4, 4), [0.2] * 7, 8000, np.random.default_rng(0))
    >>> energy = (late**2).sum(axis=1)
    >>> bool(abs(energy[1:].sum() / energy[0] - 1) < 0.1)  # a third each in a cube
    True
"""

from collections.abc import Callable

import numpy as np
import scipy.fft

from jaxasa.acoustics import bands, noise, rooms
from jaxasa.core.audio import SAMPLE_RATE

FRAME = 256


def noise_tail(
    room,
    absorption,
    length: int,
    rng: np.random.Generator,
    source=None,
    listener=None,
    air: bool = True,
    scattering: float = 0.0,
    image_gain: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Returns noise [4, length] with the expected energy of all images in each band and time.

    Arguments as in rooms.tail_energy. kept(times [T] in s) gives the amplitudes [7, T], 0 to 1,
    with which images are there beside the noise: it has what energy they leave at each
    frequency. Frames overlap under a sine window: powers add up.
    """
    frames, hop = -(-length // (FRAME // 2)) + 1, FRAME // 2
    times = np.arange(frames) * hop / SAMPLE_RATE
    energy = rooms.tail_energy(room, absorption, times, source, listener, air, scattering)
    level = np.sqrt(energy * (FRAME / 2 / SAMPLE_RATE)).transpose(1, 2, 0).astype(np.float32)
    weights = bands.rfft_gains(FRAME)
    spectrum = noise.random_sign_spectrum(rng, 4, frames, weights.shape[1])
    spectrum *= level @ weights
    if image_gain is not None:
        spectrum *= complementary_gain(image_gain(times).astype(np.float32), weights)
    framed = scipy.fft.irfft(spectrum, FRAME)
    framed *= np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME).astype(np.float32)
    # Frame t is centred on t * hop: its first half belongs to the hop before.
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(4, -1)[:, :length]


def complementary_gain(kept, weights, xp=np):
    """Returns the amplitudes [T, F] of noise beside images of amplitudes kept [7, T] a band.

    weights: [7, F] of the bands. Bands overlap, so energies are taken at each frequency: there
    is no dip between one that is all images and one that is all noise.
    """
    return xp.sqrt(xp.maximum(1 - (kept.T @ weights) ** 2, 0.0))
