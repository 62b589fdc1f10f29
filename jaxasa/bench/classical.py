# SPDX-License-Identifier: Apache-2.0
"""Classical estimators of directions of arrival (DOA) from FOA: intensity histogram and MUSIC.

Both are given the number of sources. The histogram estimates the density, on the sphere, of the
pseudo-intensity vectors (Jarrett, Habets, Naylor 2010) of the least diffuse time-frequency bins
(Merimaa and Pulkki 2005), after smoothing over neighbouring bins, and returns its peaks.
MUSIC (Schmidt 1986) returns the peaks of the inverse projection of each direction's SN3D gains on
the noise subspace of the bins' covariance, summed over frequency. It cannot resolve three sources:
the noise subspace then has one dimension, and a whole circle of directions is orthogonal to it.

Shapes: N samples, T frames, F frequency bins, G grid directions, S sources.

    >>> import numpy as np
    >>> from jaxasa.acoustics import foa
    >>> noise = np.random.default_rng(0).normal(size=(32_000, 1)) * foa.encode(60.0, 20.0)
    >>> [round(float(x)) for x in foa.cartesian_to_azel(histogram_peaks(noise, 1)[0])]
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

N_FFT, HOP_LENGTH = 512, 256
MIN_HZ, MAX_HZ = 200.0, 5000.0
SMOOTHING = (5, 3)  # frames, bins
DIRECT_SHARE = 0.05  # of the bins: the least diffuse, which are used
KERNEL_DEG = 8.0  # standard deviation of the density's kernel
MIN_PEAK_DISTANCE_DEG = 20.0
GRID_SIZE = 2000


@cache
def grid() -> np.ndarray:
    """Unit vectors [G, 3], about 4 degrees apart."""
    return foa.fibonacci_sphere(GRID_SIZE)


def stft_bins(audio: np.ndarray) -> np.ndarray:
    """STFT of FOA audio: [N, 4] -> complex [T, F, 4], the bins from MIN_HZ to MAX_HZ."""
    x = audio.astype(float)
    _, _, z = scipy.signal.stft(
        x.T, SAMPLE_RATE, nperseg=N_FFT, noverlap=N_FFT - HOP_LENGTH, padded=False
    )
    bins = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    return np.moveaxis(z[:, (bins >= MIN_HZ) & (bins <= MAX_HZ)], (0, 1, 2), (2, 1, 0))


def histogram_peaks(audio: np.ndarray, count: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Peaks of the intensity histogram of FOA audio [N, 4]: unit vectors [count, 3] (x, y, z).

    weights: [T'], one for each of T' equal parts of the clip, by which bins are weighted; None: no
    weights. If there are fewer peaks than `count`, the last one is repeated.
    """
    z = stft_bins(audio)
    w, velocity = z[..., :1], z[..., [3, 1, 2]]

    def smooth(x: np.ndarray) -> np.ndarray:
        return scipy.ndimage.uniform_filter(x, (*SMOOTHING, 0)[: x.ndim])

    intensity = smooth(np.real(np.conj(w) * velocity))
    energy = smooth(0.5 * (np.abs(w[..., 0]) ** 2 + (np.abs(velocity) ** 2).sum(-1)))
    length = np.linalg.norm(intensity, axis=-1)
    directness = length / np.maximum(energy, 1e-20)
    weight = length.copy()
    if weights is not None:
        part = np.minimum(np.arange(len(z)) * len(weights) // len(z), len(weights) - 1)
        weight *= np.asarray(weights)[part][:, None]
    has_weight = weight > 0
    if not has_weight.any():
        return np.tile([1.0, 0.0, 0.0], (count, 1))
    threshold = np.quantile(directness[has_weight], 1 - DIRECT_SHARE)
    direct = has_weight & (directness >= threshold)
    directions = (intensity[direct] / length[direct][:, None]).astype(np.float32)
    # Compressed, so that one loud sound does not mask the others.
    strength = (weight[direct] ** 0.3).astype(np.float32)
    # A coarse density from directions rounded to the grid, which is finer than the kernel is wide;
    # peaks are then refined with the exact directions.
    tree, kernel = _grid_tree()
    histogram = np.bincount(tree.query(directions)[1], strength, GRID_SIZE).astype(np.float32)
    return _peaks(histogram @ kernel, count, lambda u: strength @ _kernel(directions, u))


def _kernel(directions: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian of the angle between unit vectors: [N, 3], [G, 3] -> [N, G]."""
    spread = np.float32(np.radians(KERNEL_DEG) ** 2)
    return np.exp((directions @ grid.T.astype(np.float32) - 1) / spread)


@cache
def _grid_tree() -> tuple[scipy.spatial.cKDTree, np.ndarray]:
    """The grid as a k-d tree, and the kernel between its directions [G, G]."""
    directions = grid().astype(np.float32)
    return scipy.spatial.cKDTree(directions), _kernel(directions, directions)


def music_peaks(audio: np.ndarray, count: int) -> np.ndarray:
    """Peaks of the broadband MUSIC spectrum of FOA audio [N, 4]: unit vectors [count, 3]."""
    z = stft_bins(audio)
    covariance = np.einsum("tfi,tfj->fij", z, np.conj(z))
    covariance /= np.maximum(np.trace(covariance, axis1=1, axis2=2).real, 1e-20)[:, None, None]
    _, axes = np.linalg.eigh(covariance)
    noise = axes[:, :, : 4 - min(count, 3)]

    def spectrum(directions: np.ndarray) -> np.ndarray:
        ones = np.ones((len(directions), 1))
        steering = np.concatenate([ones, directions[:, [1, 2, 0]]], 1) / 2**0.5
        # |u^H v|^2 = u^T Re(v v^H) u for a real u.
        projector = np.einsum("fik,fjk->fij", noise, np.conj(noise)).real
        power = np.einsum("gi,fij,gj->fg", steering, projector, steering, optimize=True)
        return (1 / np.maximum(power, 1e-6)).sum(0)

    return _peaks(spectrum(grid()), count, spectrum)


def _peaks(
    coarse: np.ndarray, count: int, density: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The `count` highest points [count, 3], at least MIN_PEAK_DISTANCE_DEG from each other.

    coarse: density on the grid, [G]. density([K, 3]) -> [K]: at other directions, to refine peaks.
    """
    directions, remaining = grid(), coarse.astype(float)
    peaks: list[np.ndarray] = []
    for _ in range(count):
        best = int(remaining.argmax())
        if remaining[best] == -np.inf:
            break
        cap = _cap(directions[best])
        peaks.append(cap[density(cap).argmax()])
        is_near = directions @ directions[best] > np.cos(np.radians(MIN_PEAK_DISTANCE_DEG))
        remaining[is_near] = -np.inf
    return np.array(peaks + [peaks[-1]] * (count - len(peaks)))


def _cap(centre: np.ndarray) -> np.ndarray:
    """Unit vectors [150, 3] within 5 degrees of `centre`, about 0.7 degrees apart (sunflower)."""
    k = np.arange(150)
    radius, angle = np.radians(5) * np.sqrt(k / 150), np.pi * (3 - 5**0.5) * k
    u = np.cross(centre, np.eye(3)[np.abs(centre).argmin()])
    u /= np.linalg.norm(u)
    v = np.cross(centre, u)
    tangent = np.outer(np.cos(angle), u) + np.outer(np.sin(angle), v)
    return np.cos(radius)[:, None] * centre + np.sin(radius)[:, None] * tangent
