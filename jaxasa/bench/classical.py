"""Directions of arrival without learning, from FOA: intensity histogram and MUSIC.

Both are given how many sources to find. The histogram takes the pseudo-intensity vector
(Jarrett, Habets, Naylor 2010) of each time-frequency bin, smoothed over neighbours, keeps the
least diffuse bins (Merimaa and Pulkki 2005) and looks for peaks of their density on the sphere.
MUSIC (Schmidt 1986) sums, over frequency, how nearly orthogonal each direction's SN3D gains are
to the noise subspace of the bins' covariance, and cannot resolve three sources with four
channels of which the first is implied by the others.

Letters: N samples, T frames, F bins, G directions of a grid, S sources.

    >>> import numpy as np
    >>> from jaxasa.acoustics import foa
    >>> noise = np.random.default_rng(0).normal(size=(32_000, 1)) * foa.encode(60.0, 20.0)
    >>> [round(float(x)) for x in foa.direction(histogram(noise, 1)[0])]
    [60, 20]
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import scipy.ndimage
import scipy.signal
import scipy.spatial

from jaxasa.acoustics import foa
from jaxasa.core.audio import SAMPLE_RATE

FFT, HOP = 512, 256
LOW, HIGH = 200.0, 5000.0  # hertz
SMOOTHING = (5, 3)  # frames, bins
KEPT = 0.05  # share of the bins: the least diffuse
WIDTH = 8.0  # degrees: standard deviation of the density's kernel
APART = 20.0  # degrees within which two peaks are one
GRID = 2000


@cache
def grid() -> np.ndarray:
    """[G, 3], some 4 degrees apart."""
    return foa.sphere(GRID)


def stft_bins(audio: np.ndarray) -> np.ndarray:
    """[N, 4] -> complex [T, F, 4] of the bins between LOW and HIGH."""
    x = audio.astype(float)
    _, _, z = scipy.signal.stft(x.T, SAMPLE_RATE, nperseg=FFT, noverlap=FFT - HOP, padded=False)
    bins = np.fft.rfftfreq(FFT, 1 / SAMPLE_RATE)
    return np.moveaxis(z[:, (bins >= LOW) & (bins <= HIGH)], (0, 1, 2), (2, 1, 0))


def histogram_peaks(audio: np.ndarray, count: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Unit vectors [count, 3] (x, y, z) of the strongest peaks of FOA audio [N, 4].

    weights: [T'] of equal stretches of the clip, which bins are weighed by; None: all alike. Where
    there are fewer peaks than `count`, the last one is repeated.
    """
    z = stft_bins(audio)
    w, vector = z[..., :1], z[..., [3, 1, 2]]
    smooth = lambda x: scipy.ndimage.uniform_filter(x, (*SMOOTHING, 0)[: x.ndim])  # noqa: E731
    active = smooth(np.real(np.conj(w) * vector))
    energy = smooth(0.5 * (np.abs(w[..., 0]) ** 2 + (np.abs(vector) ** 2).sum(-1)))
    length = np.linalg.norm(active, axis=-1)
    directness = length / np.maximum(energy, 1e-20)
    value = length.copy()
    if weights is not None:
        at = np.minimum(np.arange(len(z)) * len(weights) // len(z), len(weights) - 1)
        value *= np.asarray(weights)[at][:, None]
    heard = value > 0
    if not heard.any():
        return np.tile([1.0, 0.0, 0.0], (count, 1))
    kept = heard & (directness >= np.quantile(directness[heard], 1 - KEPT))
    found = active[kept] / length[kept][:, None]
    # Compressed, so that one loud sound does not hide the others.
    strength = value[kept] ** 0.3
    strength, found = strength.astype(np.float32), found.astype(np.float32)
    # Each at the nearest direction of the grid, which is finer than the kernel is wide; peaks are
    # then looked at closely, with the directions as they are.
    tree, kernel = _nearest()
    counted = np.bincount(tree.query(found)[1], strength, GRID).astype(np.float32)
    return _peaks(counted @ kernel, count, lambda u: strength @ _closeness(found, u))


def _closeness(found: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """A Gaussian of the angle, WIDTH wide, between unit vectors: [N, 3], [G, 3] -> [N, G]."""
    spread = np.float32(np.radians(WIDTH) ** 2)
    return np.exp((found @ directions.T.astype(np.float32) - 1) / spread)


@cache
def _nearest() -> tuple[scipy.spatial.cKDTree, np.ndarray]:
    """The grid as a tree, and the closeness of its directions to one another [G, G]."""
    directions = grid().astype(np.float32)
    return scipy.spatial.cKDTree(directions), _closeness(directions, directions)


def music_peaks(audio: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors [count, 3] of the highest peaks of broadband MUSIC of FOA audio [N, 4]."""
    z = stft_bins(audio)
    covariance = np.einsum("tfi,tfj->fij", z, np.conj(z))
    covariance /= np.maximum(np.trace(covariance, axis1=1, axis2=2).real, 1e-20)[:, None, None]
    _, axes = np.linalg.eigh(covariance)
    noise = axes[:, :, : 4 - min(count, 3)]

    def spectrum(directions: np.ndarray) -> np.ndarray:
        ones = np.ones((len(directions), 1))
        steering = np.concatenate([ones, directions[:, [1, 2, 0]]], 1) / 2**0.5
        # |u^H v|^2 = u^T Re(v v^H) u for a real u.
        leaks = np.einsum("fik,fjk->fij", noise, np.conj(noise)).real
        leak = np.einsum("gi,fij,gj->fg", steering, leaks, steering, optimize=True)
        return (1 / np.maximum(leak, 1e-6)).sum(0)

    return _peaks(spectrum(grid()), count, spectrum)


def _peaks(
    coarse: np.ndarray, count: int, density: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The `count` highest points [count, 3], APART from each other.

    coarse: [G] on the grid; density([K, 3]) -> [K] where it is looked at closely.
    """
    directions, left = grid(), coarse.astype(float)
    found: list[np.ndarray] = []
    for _ in range(count):
        best = int(left.argmax())
        if left[best] == -np.inf:
            break
        around = _cap(directions[best])
        found.append(around[density(around).argmax()])
        left[directions @ directions[best] > np.cos(np.radians(APART))] = -np.inf
    return np.array(found + [found[-1]] * (count - len(found)))


def _cap(centre: np.ndarray) -> np.ndarray:
    """[150, 3] directions up to 5 degrees around `centre`, some 0.7 degrees from each other."""
    k = np.arange(150)
    radius, turn = np.radians(5) * np.sqrt(k / 150), np.pi * (3 - 5**0.5) * k
    aside = np.cross(centre, np.eye(3)[np.abs(centre).argmin()])
    aside /= np.linalg.norm(aside)
    across = np.cross(centre, aside)
    flat = np.outer(np.cos(turn), aside) + np.outer(np.sin(turn), across)
    return np.cos(radius)[:, None] * centre + np.sin(radius)[:, None] * flat
