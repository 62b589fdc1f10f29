# SPDX-License-Identifier: Apache-2.0
"""RIRs by pyroomacoustics instead of rir.shoebox_rir: `Scenes.engine = "pyroomacoustics"`.

Scenes are sampled, mixed and labelled as with the built-in engine (render.render_with_rirs), but
the RIRs are another simulator's, so that a model can be tested on sound that differs from its
training data: pyroomacoustics has its own images, fractional delays, octave-band wall filters and
air absorption, and no noise tail, as all of the RIR consists of images.

FOA comes from four coincident microphones: one omnidirectional, and figures of eight along y, z
and x, which are W, Y, Z, X in SN3D. The gain is 1 / distance in both engines. The delay of 40
samples that pyroomacoustics adds is removed, and the high-pass is that of `rir.shoebox_rir`.

    >>> from jaxasa.acoustics import measure, pyroom_engine, rooms
    >>> room = rooms.Shoebox((6, 5, 3), rooms.absorption((6, 5, 3), 0.3))
    >>> rir = pyroom_engine.pyroom_rir(room, (1, 1, 1.5), (3, 2, 1.5))
    >>> bool(0.2 < measure.rt60(rir) < 0.4)
    True
"""

import math

import numpy as np

from jaxasa.acoustics import render, rooms
from jaxasa.acoustics.bands import PRE_SAMPLES
from jaxasa.acoustics.rir import high_pass, rir_duration
from jaxasa.acoustics.spec import SceneSpec
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE

DELAY_SAMPLES = 40  # half the length of pyroomacoustics' fractional-delay filters
# Images are followed until the slowest band has decayed by so many dB. T20 needs 25 dB, and the
# number of images grows with the cube of the time.
DECAY_DB = 40.0


def import_pyroomacoustics():
    """Returns the package `pyroomacoustics`; raises ConfigError if it is not installed."""
    try:
        import pyroomacoustics
    except ImportError:
        raise ConfigError(
            "pyroomacoustics is not installed, expected pip install 'jaxasa[benchmark]'"
        ) from None
    return pyroomacoustics


def pyroom_shoebox(size, absorption, order: int, air: bool = False, ray_tracing: bool = False):
    """Returns a pyroomacoustics room without sources, with one thread and our speed of sound.

    absorption: of all walls, a number or one per octave band. order: of the images.
    """
    pra = import_pyroomacoustics()
    pra.constants.set("num_threads", 1)
    pra.constants.set("c", rooms.SPEED_OF_SOUND)
    flat = np.ndim(absorption) == 0
    octaves = {"coeffs": np.atleast_1d(absorption).tolist(), "center_freqs": list(rooms.BANDS)}
    return pra.ShoeBox(
        list(size),
        fs=SAMPLE_RATE,
        materials=pra.Material(absorption if flat else {"description": "wall", **octaves}),
        max_order=order,
        air_absorption=air,
        ray_tracing=ray_tracing,
    )


def foa_microphones() -> list:
    """Returns directivities of coincident microphones whose signals are W, Y, Z, X in SN3D."""
    directivities = import_pyroomacoustics().directivities
    return [
        directivities.Omnidirectional(),
        *(directivities.FigureEight(axis) for axis in ([0, 1, 0], [0, 0, 1], [1, 0, 0])),
    ]


def pyroom_rir(room: rooms.Shoebox, source, listener) -> np.ndarray:
    """Returns the RIR [4, n] float32 from source to listener, with the scale of rir.shoebox_rir.

    All walls of the room must be the same: absorption [7].
    """
    distance = math.dist(source, listener)
    seconds = max(
        rir_duration(room, distance) * DECAY_DB / 60,
        distance / rooms.SPEED_OF_SOUND + 0.005,
    )
    inverse_size = float(np.linalg.norm(1 / np.asarray(room.size)))
    order = math.ceil(seconds * rooms.SPEED_OF_SOUND * inverse_size)
    # `high_pass` follows, with a higher cut-off.
    import_pyroomacoustics().constants.set("rir_hpf_enable", False)
    simulation = pyroom_shoebox(room.size, room.absorption, order, room.air)
    simulation.add_source(list(source))
    positions = np.tile(np.asarray(listener, float)[:, None], 4)
    simulation.add_microphone_array(positions, directivity=foa_microphones())
    simulation.compute_rir()
    length = DELAY_SAMPLES + int(seconds * SAMPLE_RATE)
    rir = np.zeros((4, PRE_SAMPLES - DELAY_SAMPLES + length), np.float32)
    for channel, (simulated,) in zip(rir, simulation.rir, strict=True):
        cut = simulated[:length]
        channel[PRE_SAMPLES - DELAY_SAMPLES :][: len(cut)] = cut
    return high_pass(rir)


def render_scene(spec: SceneSpec, read_clip: render.ReadClip) -> tuple[np.ndarray, dict]:
    """Renders a scene as render.render does, with RIRs by pyroomacoustics.

    Raises ConfigError for a moving source.
    """
    for i, source in enumerate(spec.sources):
        expected = "none with Scenes.engine 'pyroomacoustics', which has no moving sources"
        check(not source.waypoints, f"SceneSpec.sources[{i}].waypoints", "a walk", expected)
    room = spec.shoebox()
    rirs = [
        render.measure_rir(
            pyroom_rir(room, source.position, spec.listener),
            math.dist(source.position, spec.listener),
        )
        for source in spec.sources
    ]
    return render.render_with_rirs(spec, read_clip, rirs)
