# SPDX-License-Identifier: Apache-2.0
"""The image sources of a shoebox as a list: where each is, and how loud in each octave band.

`rir` adds images to a response as it meets them; a renderer that hears each image from its own
direction through a filter (an HRTF) needs them one by one. The geometry is Allen and Berkley's
(1979): along an axis of length L, images of a source at s lie at 2 i L + s, after |i| reflections
in each wall, and at 2 i L - s, after |i - 1| in the wall at 0 and |i| in the one at L.

    >>> from jaxasa.acoustics import images
    >>> room, absorption = (6, 5, 3), [0.2] * 7
    >>> offset, gain = images.image_sources(room, absorption, (2, 1, 1), (4, 3, 1.5), radius=20.0)
    >>> offset[0].tolist(), gain.shape  # the source itself, then its images
    ([-2.0, -2.0, -0.5], (379, 7))
"""

import numpy as np

from jaxasa.acoustics import rooms
from jaxasa.acoustics.image_source import axis_images, reflection_coefficients


def image_sources(
    room, absorption, source, listener, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets [N, 3] (m) and gains [N, 7] of the images nearer than `radius` (m).

    Offsets are from the listener, in the room's frame, nearest first. Gains are 1 / distance,
    times sqrt(1 - absorption) for each wall met, and the air's attenuation, per octave band of
    rooms.BANDS. room, source and listener are x, y, z in metres. absorption is [7], of all walls,
    or [6, 7]: of those at x = 0 and at the room's length, then along y, then along z.
    """
    axes = [axis_images(*a, radius) for a in zip(source, listener, room, strict=True)]
    (x, *_), (y, *_), (z, *_) = axes
    # The two outer axes first: in a long list of x and y, most pairs are too far already.
    i, j = np.nonzero(np.add.outer(x * x, y * y) < radius * radius)
    square = np.add.outer(x[i] ** 2 + y[j] ** 2, z * z)
    pair, k = np.nonzero(square < radius * radius)
    distance = np.sqrt(square[pair, k])
    order = np.argsort(distance, kind="stable")
    pair, k, distance = pair[order], k[order], distance[order]
    chosen = i[pair], j[pair], k
    walls = reflection_coefficients(absorption)
    gain = np.exp(-0.5 * distance[:, None] * rooms.AIR_ABSORPTION) / distance[:, None]
    for d, (axis, at) in enumerate(zip(axes, chosen, strict=True)):
        for hits, wall in zip(axis[1:], walls[2 * d : 2 * d + 2], strict=True):
            gain *= (wall ** hits[:, None])[at]
    offset = [axis[0][at] for axis, at in zip(axes, chosen, strict=True)]
    return np.stack(offset, axis=1), gain
