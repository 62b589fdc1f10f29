# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxasa.acoustics import bands as octaves
from jaxasa.acoustics import foa, images, rir, rooms
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE

ROOM = (4.2, 3.6, 2.7)
SOURCE, LISTENER = np.array([1.1, 2.9, 0.8]), np.array([2.7, 1.2, 1.5])


# pyroomacoustics' names, in the order of images.near: x = 0 is west, y = 0 south.
WALLS = ("west", "east", "south", "north", "floor", "ceiling")


@pytest.fixture
def no_air(monkeypatch):
    monkeypatch.setattr(rooms, "AIR_ABSORPTION", np.zeros(7))


def test_images_are_pyroomacoustics_images(no_air):
    pra = pytest.importorskip("pyroomacoustics")
    walls = dict(zip(WALLS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    materials = pra.make_materials(**walls)
    box = pra.ShoeBox(ROOM, fs=16_000, materials=materials, max_order=16)
    box.add_source(SOURCE)
    box.add_microphone(LISTENER)
    box.image_source_model()
    theirs = box.sources[0].images.T - LISTENER
    distance = np.linalg.norm(theirs, axis=1)
    near = distance < 15.0  # up to order 16, all that near are there
    offset, gain = images.image_sources(
        ROOM, np.outer(list(walls.values()), np.ones(7)), SOURCE, LISTENER, 15.0
    )
    assert len(offset) == near.sum() > 300
    wanted = np.column_stack([theirs, box.sources[0].damping.ravel() / distance])[near]
    found = np.column_stack([offset, gain[:, 3]])
    order = [np.lexsort(np.round(rows.T, 4)) for rows in (wanted, found)]
    np.testing.assert_allclose(found[order[1]], wanted[order[0]], atol=1e-5)


def test_images_come_nearest_first_and_lose_what_walls_and_air_take():
    absorption = np.linspace(0.1, 0.7, 7)
    offset, gain = images.image_sources(ROOM, absorption, SOURCE, LISTENER, 6.0)
    distance = np.linalg.norm(offset, axis=1)
    assert np.all(np.diff(distance) >= 0) and distance[-1] < 6.0
    np.testing.assert_allclose(offset[0], SOURCE - LISTENER, atol=1e-9)
    air = np.exp(-0.5 * rooms.AIR_ABSORPTION * distance[0])
    np.testing.assert_allclose(gain[0], air / distance[0])
    # The nearest reflection is the floor's: one wall.
    mirror = SOURCE * [1, 1, -1] - LISTENER
    (floor,) = np.flatnonzero(np.abs(offset - mirror).max(axis=1) < 1e-9)
    loss = gain[floor] * distance[floor] / np.exp(-0.5 * rooms.AIR_ABSORPTION * distance[floor])
    np.testing.assert_allclose(loss, np.sqrt(1 - absorption))


def test_the_list_sums_up_to_the_foa_response():
    """The response that `rir` adds up image by image is the list's, encoded."""
    absorption = np.full(7, 0.6)
    response = rir.shoebox_rir(ROOM, absorption, SOURCE, LISTENER, keys.rng(0), full=True)
    radius = (response.shape[1] - rir.PRE_SAMPLES) / SAMPLE_RATE * rooms.SPEED_OF_SOUND
    offset, gain = images.image_sources(ROOM, absorption, SOURCE, LISTENER, radius)
    time = np.linalg.norm(offset, axis=1) / rooms.SPEED_OF_SOUND + rir.PRE_SAMPLES / SAMPLE_RATE
    frequency = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    use = np.flatnonzero((frequency > 500) & (frequency < 6000))
    bands = octaves.gains(frequency[use])
    waves = (gain @ bands) * np.exp(-2j * np.pi * time[:, None] * frequency[use])
    expected = foa.encode(*foa.cartesian_to_azel(offset)).T @ waves
    found = np.fft.rfft(response, 8192)[:, use]
    # What the high-pass does to phases near 500 Hz is the same in all channels.
    turn = np.fft.rfft(rir.high_pass(np.eye(1, 8192)[0]))[use]
    error = np.linalg.norm(found - expected * turn) / np.linalg.norm(expected)
    assert 20 * np.log10(error) < -35


def test_no_image_is_nearer_than_the_direct_sound():
    offset, gain = images.image_sources(ROOM, [0.3] * 7, SOURCE, LISTENER, 1.0)
    assert offset.shape == (0, 3) and gain.shape == (0, 7)
