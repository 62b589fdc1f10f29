"""What slots say to the decoder, against numbers worked out by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxasa.models import spatial
from jaxasa.models.projector import Projector

ROOM = spatial.Room(*(np.array([value], np.float32) for value in (-1.0, 3.5, 0.2, 2.0)))
CLASSES = 5
AZIMUTHS, ELEVATIONS = (30.0, -100.0, 170.0), (10.0, -20.0, 0.0)
HEARD = ((5, 8), (2, 4), (0, 10))  # frames of ten
THERE = (0.9, 0.8, 0.2)


def slots():
    logit = lambda p: np.log(p) - np.log1p(-np.asarray(p))  # noqa: E731
    active = np.full((1, 3, 10), 0.02)
    for s, (start, end) in enumerate(HEARD):
        active[0, s, start:end] = 0.7
    azimuth, elevation = np.radians(AZIMUTHS), np.radians(ELEVATIONS)
    flat = np.cos(elevation)
    direction = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], -1)
    label = np.zeros((1, 3, CLASSES))
    label[0, range(3), (4, 1, 0)] = 8.0
    far = np.array([[0.5, -0.2, 0.1]])
    there = logit(THERE)[None]
    return spatial.Slots(there, label, logit(active), None, 0.3 * direction[None], far)


@pytest.fixture(scope="module")
def said():
    found = np.asarray(spatial.statements(slots(), ROOM, 0.2))
    assert found.shape == (1, 3, spatial.statements_width(CLASSES))
    return found[0]


def test_slots_speak_in_order_of_onset_and_what_is_not_there_comes_last(said):
    np.testing.assert_allclose(said[:, 0], [0.8, 0.9, 0.2], rtol=1e-5)


def test_what_a_slot_says_is_times_how_likely_its_source_is_there(said):
    row = said[1] / said[1, 0]
    np.testing.assert_allclose(row[1 : 1 + CLASSES].sum(), 1.0, rtol=1e-5)
    assert row[1 : 1 + CLASSES].argmax() == 4
    turns = row[1 + CLASSES :][:8]
    flat, angles = np.cos(np.radians(10.0)), np.radians(30.0) * np.arange(1, 5)
    np.testing.assert_allclose(turns[:4], flat * np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(turns[4:], flat * np.sin(angles), atol=1e-4)
    height, far, onset, offset, *room = row[1 + CLASSES + 8 :]
    assert height == pytest.approx(np.sin(np.radians(10.0)), abs=1e-4)
    assert (far, onset, offset) == pytest.approx((0.5, 1.0, 1.6), abs=1e-5)
    assert room == pytest.approx([-1.0, 3.5, 0.2, 2.0], abs=1e-5)


def test_padding_moves_no_onset():
    short = slots()
    padding = np.full((1, 3, 4), spatial.UNHEARD)
    longer = short._replace(activity=np.concatenate([short.activity, padding], -1))
    a, b = (np.asarray(spatial.statements(s, ROOM, 0.2)) for s in (short, longer))
    np.testing.assert_array_equal(a, b)


def test_a_slot_moves_its_own_token_and_no_other(tiny):
    weights = {k: v for k, v in tiny.params["projector"].items() if k != "null"}
    rng = np.random.default_rng(0)
    semantic, dense = rng.normal(size=(2, 1, 4, 16)).astype(np.float32)
    said = rng.normal(size=(1, 3, spatial.statements_width(8))).astype(np.float32)
    project = jax.jit(lambda *x: tiny.asa.projector.apply({"params": weights}, *x)[0])
    tokens = np.asarray(project(semantic, dense, said))
    changed = said.copy()
    changed[0, 1] += 1.0
    moved = np.abs(np.asarray(project(semantic, dense, changed)) - tokens).max(-1)[0] > 1e-4
    assert moved.tolist() == [False, True, False, False, False, False, False]


@pytest.mark.parametrize("kind", ["p0", "p1", "p2"])
def test_all_kinds_of_projector_read_slots_alike(tiny, kind):
    options = dataclasses.replace(tiny.model.projector, kind=kind)
    module = Projector(options, 8, 32)
    shape = jax.eval_shape(
        module.init_with_output,
        jax.random.key(0),
        *(np.zeros((1, n, k), np.float32) for n, k in ((4, 16), (4, 16), (3, 25))),
    )
    (tokens, _), made = shape
    assert tokens.shape == (1, 7, 32)
    sizes = {k: v["kernel"].shape for k, v in made["params"].items() if k.startswith("slots")}
    assert sizes == {"slots_in": (25, 16), "slots_out": (16, 32)}
