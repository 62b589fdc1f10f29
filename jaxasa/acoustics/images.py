"""The image sources of a shoebox as a list: where each is, and how loud in each octave band.

`rir` adds images to a response as it meets them; a renderer that hears each image from its own
direction through a filter (an HRTF) needs them one by one. The geometry is Allen and Berkley's
(1979): along an axis of length L, images of a source at s lie at 2 i L + s and 2 i L - s, after
|2 i| and |i - 1| + |i| reflections.

    from jaxasa.acoustics import images
    room, absorption = (6, 5, 3), [0.2] * 7
    offset, gain = images.near(room, absorption, (2, 1, 1), (4, 3, 1.5), radius=20.0)
"""

import numpy as np

from jaxasa.acoustics import rooms


def near(room, absorption, source, listener, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the offsets [N, 3] (m) and gains [N, 7] of the images nearer than `radius` (m).

    Offsets are from the listener, in the room's frame, nearest first. Gains are 1 / distance,
    times sqrt(1 - absorption) for each wall met, and the air's attenuation, per octave band of
    rooms.BANDS. room, source and listener are x, y, z in metres, absorption is [7], of all walls.
    """
    axes = [_axis(*a, radius) for a in zip(source, listener, room, strict=True)]
    # The two outer axes first: in a long list of x and y, most pairs are too far already.
    (x, x_hits), (y, y_hits), (z, z_hits) = axes
    i, j = np.nonzero(np.add.outer(x * x, y * y) < radius * radius)
    square = np.add.outer(x[i] ** 2 + y[j] ** 2, z * z)
    pair, k = np.nonzero(square < radius * radius)
    distance = np.sqrt(square[pair, k])
    order = np.argsort(distance, kind="stable")
    pair, k, distance = pair[order], k[order], distance[order]
    i, j = i[pair], j[pair]
    reflect = np.sqrt(1 - np.asarray(absorption, float))
    hits = x_hits[i] + y_hits[j] + z_hits[k]
    walls = reflect ** np.arange(hits.max(initial=0) + 1)[:, None]
    gain = walls[hits] * np.exp(-0.5 * distance[:, None] * rooms.AIR) / distance[:, None]
    return np.stack([x[i], y[j], z[k]], axis=1), gain


def _axis(source: float, listener: float, size: float, radius: float):
    """Returns the offsets (m) of images along one axis, and how many walls each has met."""
    reach = int(radius / (2 * size)) + 1
    i = np.arange(-reach, reach + 2)
    straight, mirrored = 2 * i * size + source, 2 * i * size - source
    offset = np.concatenate([straight, mirrored]) - listener
    hits = np.concatenate([np.abs(2 * i), np.abs(i - 1) + np.abs(i)])
    close = np.abs(offset) < radius
    return offset[close], hits[close]
