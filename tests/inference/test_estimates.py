# SPDX-License-Identifier: Apache-2.0
"""Slots in words and units, against numbers worked out by hand."""

import numpy as np
import pytest

from jaxasa.inference import estimates
from jaxasa.models.spatial import MASKED_LOGIT, Room, Slots

CLASSES = ("dog", "bell")
PRESENCE = (0.4, 0.9, 0.8)


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


@pytest.fixture(scope="module")
def clip():
    """A clip of three slots: bell, dog and dog; the last steps are padding."""
    label = np.array([[[0.0, 2.0, 9.0], [3.0, 1.0, 9.0], [3.0, 1.0, 9.0]]])  # a third output
    activity = np.full((1, 3, 6), logit(0.1))
    activity[0, 1, 2:4] = logit(0.8)
    activity[..., 5:] = MASKED_LOGIT
    direction = np.array([[[1.0, 0, 0], [0, 0.5, 0], [0, 0, 2.0]]])
    in_time = np.repeat(direction[:, :, None], 6, axis=2)
    distance = np.log([[1.0, 2.0, 4.0]])
    slots = Slots(logit(PRESENCE)[None], label, activity, in_time, direction, distance)
    (result,) = estimates.read_slots(slots, CLASSES)
    return result


def test_slots_are_read_from_the_likeliest_on(clip):
    assert [e.label for e in clip] == ["dog", "dog", "bell"]
    np.testing.assert_allclose([e.presence for e in clip], sorted(PRESENCE)[::-1], rtol=1e-6)
    assert estimates.source(clip[0]) == {
        "class": "dog", "azimuth": 90.0, "elevation": 0.0, "distance": 2.0, "presence": 0.9
    }  # fmt: skip
    np.testing.assert_allclose(estimates.directions(clip, 2), [[0, 1, 0], [0, 0, 1]], atol=1e-7)


def test_a_track_ends_with_the_clip(clip):
    track = estimates.track(clip[0], 5, 0.2)
    assert track["step"] == 0.2 and track | estimates.source(clip[0]) == track
    np.testing.assert_allclose(track["activity"], [0.1, 0.1, 0.8, 0.8, 0.1], rtol=1e-6)
    np.testing.assert_allclose(track["azimuths"], 90.0)


def test_a_scene_has_the_likeliest_source_of_each_class(clip):
    (room,) = estimates.read_rooms(
        Room(*(np.array([v]) for v in (np.log(0.5), np.log(40), 0.3, 2)))
    )
    scene = estimates.scene(clip, room, 3.0, threshold=0.5)
    assert (scene["seconds"], scene["rt60"]) == (3.0, pytest.approx(0.5))
    assert scene["volume"] == pytest.approx(40)
    (dog,) = scene["sources"]  # the bell's presence is below the threshold
    assert (dog["azimuth"], dog["onset"], dog["offset"]) == pytest.approx((90.0, 1.0, 2.0))
    assert dog["drr"] == pytest.approx(3.0)
    both = estimates.scene(clip, room, 3.0, threshold=0.3)["sources"]
    assert [source["class"] for source in both] == ["bell", "dog"]  # by onset
    # The likeliest source stays, whatever the threshold.
    assert len(estimates.scene(clip, room, 3.0, threshold=1.0)["sources"]) == 1
