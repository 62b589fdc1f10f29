# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest

from jaxasa.acoustics import foa
from jaxasa.models.spatial import SpatialEncoder, patches

SAMPLES = 16_000


@pytest.fixture(scope="module")
def audio():
    """float32 [2, N, 4]: noise, from another direction in each clip."""
    noise = 0.1 * np.random.default_rng(0).normal(size=(2, SAMPLES, 1))
    return (noise * foa.encode([[130.0], [-20.0]], [[10.0], [-30.0]])).astype(np.float32)


@pytest.fixture(scope="module")
def encode(tiny):
    return jax.jit(lambda params, audio: tiny.asa.spatial.apply({"params": params}, audio))


def test_a_second_is_25_steps_and_three_slots(tiny, encode, audio):
    dense, slots, room = encode(tiny.params["spatial"], audio)
    assert dense.shape == (2, 25, 16)
    assert slots.presence.shape == slots.log_distance.shape == (2, 3)
    assert slots.label.shape == (2, 3, 8)
    assert slots.activity.shape == (2, 3, 25)
    assert slots.direction_in_time.shape == (2, 3, 25, 3) and slots.direction.shape == (2, 3, 3)
    assert all(value.shape == (2,) for value in room)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((dense, slots, room)))
    lengths = np.linalg.norm(slots.direction_in_time, axis=-1)
    assert (lengths > 0).all() and (lengths < 1.2).all()
    weights = np.asarray(jax.nn.sigmoid(slots.activity))
    weights = weights / weights.sum(-1, keepdims=True)
    mean = (weights[..., None] * slots.direction_in_time).sum(2)
    # The direction over the clip is the peak's, with the length of the mean over time.
    size = np.linalg.norm(mean, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(slots.direction, axis=-1), size, atol=1e-5)
    first = np.asarray(slots.direction)[:, 0] / size[:, :1]
    np.testing.assert_allclose(
        first, foa.encode([130.0, -20.0], [10.0, -30.0])[:, [3, 1, 2]], atol=0.02
    )


def test_slots_differ(tiny, encode, audio):
    _, slots, _ = encode(tiny.params["spatial"], audio)
    assert np.abs(np.diff(slots.label, axis=1)).max(-1).min() > 0.01
    assert np.abs(np.diff(slots.activity, axis=1)).max(-1).min() > 0.01


def test_without_the_residual_the_first_slot_points_at_a_plane_wave(tiny, encode, audio):
    """No band points to the other peaks, so their slots have no direction."""
    zeros = jax.tree.map(np.zeros_like, tiny.params["spatial"]["residual"])
    _, slots, _ = encode(tiny.params["spatial"] | {"residual": zeros}, audio)
    direction = np.asarray(slots.direction_in_time)
    assert np.linalg.norm(direction[:, 1:], axis=-1).max() < 1e-3
    azimuth, elevation = foa.cartesian_to_azel(direction[:, 0])
    for row, (a, e) in enumerate(((130.0, 10.0), (-20.0, -30.0))):
        np.testing.assert_allclose(azimuth[row], a, atol=0.5)
        np.testing.assert_allclose(elevation[row], e, atol=0.5)


def test_the_residual_is_bounded(tiny, encode, audio):
    large = {"kernel": np.zeros((16, 3), "f4"), "bias": np.array([-9.0, 9.0, 9.0], "f4")}
    _, slots, _ = encode(tiny.params["spatial"] | {"residual": large}, audio)
    for row, (a, e) in enumerate(((130.0, 10.0), (-20.0, -30.0))):
        aim = foa.encode(a, e)[[3, 1, 2]] + 0.2 * np.array([-1, 1, 1])
        aim = np.broadcast_to(aim / np.linalg.norm(aim), (25, 3))
        direction = np.asarray(slots.direction_in_time[row, 0])
        direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
        np.testing.assert_allclose(direction, aim, atol=2e-2)


def test_patches_are_a_convolution_whose_stride_is_its_kernel():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 9, 3)), rng.normal(size=(2, 4, 3, 5))
    product = patches(x, 2, 4) @ kernel.reshape(-1, 5)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert product.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(product, expected, atol=1e-5)


def test_stem_on_stft_features(tiny):
    stem = ((6, 2, 4), (4, 1, 8))
    encoder = SpatialEncoder(dataclasses.replace(tiny.model.spatial, features="stft", stem=stem))
    shapes = jax.eval_shape(
        lambda key, x: encoder.init_with_output(key, x),
        jax.random.key(0),
        np.zeros((1, SAMPLES, 4), np.float32),
    )
    (dense, slots, _), variables = shapes
    # 8 channels in patches of 2 frames by 4 bins; of the 257 bins 64 patches, then 8.
    assert variables["params"]["stem0"]["kernel"].shape == (64, 6)
    assert variables["params"]["stem_out"]["kernel"].shape == (32, 16)
    assert dense.shape == (1, 25, 16) and slots.direction_in_time.shape == (1, 3, 25, 3)
