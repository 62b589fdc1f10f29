# SPDX-License-Identifier: Apache-2.0
"""pyroomacoustics as the engine of room responses: `Scenes.engine = "pyroomacoustics"`.

Scenes are drawn, mixed and labelled as ever (render.mix); the room responses are another
simulator's, so that a model trained on ours can be tried on sound that is not. What differs from
`rir.shoebox_rir`: its own images, fractional delays, wall filters per octave band and air
absorption, and no tail of noise: all that is heard are images.

FOA comes from four coincident microphones, an omnidirectional one and figures of eight along y, z
and x, which are W, Y, Z, X in SN3D. Its gain is 1 / distance as ours; it delays all by 40 samples,
which are taken out. Below 100 Hz there is nothing, as in `rir.shoebox_rir`.

    >>> import numpy as np
    >>> from jaxasa.acoustics import pyroom_engine, rir, rooms
    >>> room, source, listener = (6, 5, 3), (1, 1, 1.5), (3, 2, 1.5)
    >>> theirs = pyroom_engine.pyroom_rir(room, rooms.absorption(room, 0.3), source, listener)
    >>> bool(0.2 < rir.rt60(theirs) < 0.4)
    True
"""

import math

import numpy as np

from jaxasa.acoustics import render, rir, rooms
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE

DELAY_SAMPLES = 40  # samples: half the length of its fractional delays
# Images are followed until the slowest band has fallen so far (dB): T20 is read down to -25,
# and their number grows with the cube of the time.
DECAY_DB = 40.0


def import_pyroomacoustics():
    """The package `pyroomacoustics`; raises ConfigError where it is not installed."""
    try:
        import pyroomacoustics
    except ImportError:
        raise ConfigError(
            "pyroomacoustics is not installed, expected pip install 'jaxasa[benchmark]'"
        ) from None
    return pyroomacoustics


def pyroom_shoebox(room, absorption, order: int, air: bool = False, ray_tracing: bool = False):
    """Its room without sources, one thread, our speed of sound.

    absorption: of all walls, a number or one per octave band of rooms.BANDS. order: of images.
    """
    pra = import_pyroomacoustics()
    pra.constants.set("num_threads", 1)
    pra.constants.set("c", rooms.SPEED_OF_SOUND)
    flat = np.ndim(absorption) == 0
    octaves = {"coeffs": np.atleast_1d(absorption).tolist(), "center_freqs": list(rooms.BANDS)}
    return pra.ShoeBox(
        list(room),
        fs=SAMPLE_RATE,
        materials=pra.Material(absorption if flat else {"description": "wall", **octaves}),
        max_order=order,
        air_absorption=air,
        ray_tracing=ray_tracing,
    )


def foa_microphones() -> list:
    """Directivities of microphones at one point that hear W, Y, Z, X in SN3D."""
    shapes = import_pyroomacoustics().directivities
    return [
        shapes.Omnidirectional(),
        *(shapes.FigureEight(axis) for axis in ([0, 1, 0], [0, 0, 1], [1, 0, 0])),
    ]


def pyroom_rir(room, absorption, source, listener) -> np.ndarray:
    """The response [4, n] float32 from source to listener, with the meaning of rir.response.

    absorption: [7] of all walls, per octave band.
    """
    distance = math.dist(source, listener)
    seconds = max(
        rir.rir_duration(room, absorption, distance, air=True) * DECAY_DB / 60,
        distance / rooms.SPEED_OF_SOUND + 0.005,
    )
    order = math.ceil(seconds * rooms.SPEED_OF_SOUND * float(np.linalg.norm(1 / np.asarray(room))))
    import_pyroomacoustics().constants.set("rir_hpf_enable", False)  # ours is higher, and follows
    box = pyroom_shoebox(room, absorption, order, air=True)
    box.add_source(list(source))
    places = np.tile(np.asarray(listener, float)[:, None], 4)
    box.add_microphone_array(places, directivity=foa_microphones())
    box.compute_rir()
    length = DELAY_SAMPLES + int(seconds * SAMPLE_RATE)
    heard = np.zeros((4, rir.PRE_SAMPLES - DELAY_SAMPLES + length), np.float32)
    for channel, (found,) in zip(heard, box.rir, strict=True):
        part = found[:length]
        channel[rir.PRE_SAMPLES - DELAY_SAMPLES :][: len(part)] = part
    return rir.high_pass(heard)


def render_scene(spec: SceneSpec, audio: render.ReadClip) -> tuple[np.ndarray, dict]:
    """Renders a scene as render.render does, with these responses.

    Raises ConfigError for a source that moves: images are of one place.
    """
    for i, source in enumerate(spec.sources):
        expected = "none with Scenes.engine 'pyroomacoustics', which has no moving sources"
        check(not source.waypoints, f"SceneSpec.sources[{i}].waypoints", "a walk", expected)
    responses = [
        render.measure_rir(
            pyroom_rir(spec.room, spec.absorption, source.position, spec.listener),
            math.dist(source.position, spec.listener),
        )
        for source in spec.sources
    ]
    return render.render_with_rirs(spec, audio, responses)
