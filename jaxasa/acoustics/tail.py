# SPDX-License-Identifier: Apache-2.0
"""Late reverberation as noise with the energy, decay and directions of the room.

After the mixing time images are too dense to be distinguished. Gaussian noise replaces them, in
each octave band and channel with the energy that rooms.tail_energy expects; no level is fitted.
The channels are uncorrelated: energy from opposite directions is equal, so E[W X] = 0. Frames of
256 samples are shaped in the frequency domain and overlap by half.

    >>> import numpy as np
    >>> from jaxasa.acoustics import rooms, tail
    >>> cube = rooms.Shoebox((4, 4, 4), [0.2] * 7)
    >>> energy = (tail.noise_tail(cube, 8000, np.random.default_rng(0)) ** 2).sum(axis=1)
    >>> bool(abs(energy[1:].sum() / energy[0] - 1) < 0.1)  # Y, Z and X: a third of W each
    True
"""

from collections.abc import Callable

import numpy as np
import scipy.fft

from jaxasa.acoustics import bands, noise, rooms
from jaxasa.core.audio import SAMPLE_RATE

FRAME = 256  # samples


def noise_tail(
    room: rooms.Shoebox,
    length: int,
    rng: np.random.Generator,
    source=None,
    listener=None,
    image_gain: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Returns noise [4, length] with the expected energy of all images in each band and frame.

    source, listener: as in rooms.tail_energy. image_gain(times [T] in s) gives the factors
    [7, T], 0 to 1, by which images are present as well: the noise then has the remaining energy.
    """
    frames, hop = -(-length // (FRAME // 2)) + 1, FRAME // 2
    times = np.arange(frames) * hop / SAMPLE_RATE
    energy = rooms.tail_energy(room, times, source, listener)
    level = np.sqrt(energy * (FRAME / 2 / SAMPLE_RATE)).transpose(1, 2, 0).astype(np.float32)
    band_gains = bands.rfft_gains(FRAME)
    spectrum = noise.random_sign_spectrum(rng, 4, frames, band_gains.shape[1])
    spectrum *= level @ band_gains
    if image_gain is not None:
        spectrum *= complementary_gain(image_gain(times).astype(np.float32), band_gains)
    framed = scipy.fft.irfft(spectrum, FRAME)
    # Overlapping sine windows: powers sum to 1.
    framed *= np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME).astype(np.float32)
    # Frame t is centred on t * hop: its first half belongs to the hop before.
    out = framed[:, :-1, hop:] + framed[:, 1:, :hop]
    return out.reshape(4, -1)[:, :length]


def complementary_gain(image_gain, band_gains, xp=np):
    """Returns the gains [T, F] of noise that complement images of gains [7, T] in energy.

    band_gains: [7, F]. Bands overlap, so energies are complemented per frequency: there is no dip
    between a band that is all images and one that is all noise.
    """
    return xp.sqrt(xp.maximum(1 - (image_gain.T @ band_gains) ** 2, 0.0))
