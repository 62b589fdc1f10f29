# SPDX-License-Identifier: Apache-2.0
"""Slot features against numbers worked out by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxasa.models import spatial
from jaxasa.models.projector import Projector

ROOM = spatial.Room(*(np.array([value], np.float32) for value in (-1.0, 3.5, 0.2, 2.0)))
CLASSES = 5
AZIMUTHS, ELEVATIONS = (30.0, -100.0, 170.0), (10.0, -20.0, 0.0)
ACTIVE = ((5, 8), (2, 4), (0, 10))  # steps of ten
PRESENCE = (0.9, 0.8, 0.2)


def slots():
    logit = lambda p: np.log(p) - np.log1p(-np.asarray(p))  # noqa: E731
    active = np.full((1, 3, 10), 0.02)
    for s, (start, end) in enumerate(ACTIVE):
        active[0, s, start:end] = 0.7
    azimuth, elevation = np.radians(AZIMUTHS), np.radians(ELEVATIONS)
    flat = np.cos(elevation)
    direction = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)
    label = np.zeros((1, 3, CLASSES))
    label[0, range(3), (4, 1, 0)] = 8.0
    distance = np.array([[0.5, -0.2, 0.1]])
    presence = logit(PRESENCE)[None]
    return spatial.Slots(presence, label, logit(active), None, 0.3 * direction[None], distance)


@pytest.fixture(scope="module")
def features():
    result = np.asarray(spatial.slot_features(slots(), ROOM, 0.2))
    assert result.shape == (1, 3, spatial.num_slot_features(CLASSES))
    return result[0]


def test_slots_are_sorted_by_onset_and_absent_ones_come_last(features):
    np.testing.assert_allclose(features[:, 0], [0.8, 0.9, 0.2], rtol=1e-5)


def test_features_are_scaled_by_presence(features):
    row = features[1] / features[1, 0]
    np.testing.assert_allclose(row[1 : 1 + CLASSES].sum(), 1.0, rtol=1e-5)
    assert row[1 : 1 + CLASSES].argmax() == 4
    harmonics = row[1 + CLASSES :][:8]
    flat, angles = np.cos(np.radians(10.0)), np.radians(30.0) * np.arange(1, 5)
    np.testing.assert_allclose(harmonics[:4], flat * np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(harmonics[4:], flat * np.sin(angles), atol=1e-4)
    height, distance, onset, offset, *room = row[1 + CLASSES + 8 :]
    assert height == pytest.approx(np.sin(np.radians(10.0)), abs=1e-4)
    assert (distance, onset, offset) == pytest.approx((0.5, 1.0, 1.6), abs=1e-5)
    assert room == pytest.approx([-1.0, 3.5, 0.2, 2.0], abs=1e-5)


def test_padding_changes_no_features():
    short = slots()
    padding = np.full((1, 3, 4), spatial.MASKED_LOGIT)
    longer = short._replace(activity=np.concatenate([short.activity, padding], -1))
    a, b = (np.asarray(spatial.slot_features(s, ROOM, 0.2)) for s in (short, longer))
    np.testing.assert_array_equal(a, b)


def test_a_slot_changes_its_own_token_only(tiny):
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null_embedding"}
    rng = np.random.default_rng(0)
    semantic, dense = rng.normal(size=(2, 1, 4, 16)).astype(np.float32)
    features = rng.normal(size=(1, 3, spatial.num_slot_features(8))).astype(np.float32)
    project = jax.jit(lambda *x: tiny.asa.projector.apply({"params": weights}, *x)[0])
    tokens = np.asarray(project(semantic, dense, features))
    changed = features.copy()
    changed[0, 1] += 1.0
    differs = np.abs(np.asarray(project(semantic, dense, changed)) - tokens).max(-1)[0] > 1e-4
    assert differs.tolist() == [False, True, False, False, False, False, False]


@pytest.mark.parametrize("kind", ["p0", "p1", "p2"])
def test_all_kinds_of_projector_have_the_same_slot_mlp(tiny, kind):
    options = dataclasses.replace(tiny.model.projector, kind=kind)
    module = Projector(options, 8, 32)
    shape = jax.eval_shape(
        module.init_with_output,
        jax.random.key(0),
        *(np.zeros((1, n, k), np.float32) for n, k in ((4, 16), (4, 16), (3, 25))),
    )
    (tokens, _), variables = shape
    assert tokens.shape == (1, 7, 32)
    sizes = {k: v["kernel"].shape for k, v in variables["params"].items() if k.startswith("slots")}
    assert sizes == {"slots_in": (25, 16), "slots_out": (16, 32)}
