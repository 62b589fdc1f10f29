# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.core import trees
from jaxasa.models.asa import ASA, Augmentation
from jaxasa.models.layers import resample_time

AUDIO = 2


@pytest.fixture(scope="module")
def clip():
    """int16 [2, 1 s, 4]: decaying noise."""
    noise = np.random.default_rng(0).integers(-9000, 9000, (2, 16_000, 4))
    return (noise * np.exp(-6 * np.linspace(0, 1, 16_000))[:, None]).astype(np.int16)


@pytest.fixture(scope="module")
def encode(tiny):
    return jax.jit(tiny.asa.encode_audio)


@pytest.fixture(scope="module")
def encoded(tiny, clip, encode):
    return encode(tiny.params, clip)


def test_fresh_adapters_start_at_zero(tiny):
    def init(key):
        params = tiny.asa.init(key)
        return {"decoder": params["decoder"], "lora": params["lora"]}

    fresh = trees.flatten(jax.jit(init)(jax.random.key(0)))
    assert all(x.dtype == np.float32 for x in fresh.values())
    adapters = {p: x for p, x in fresh.items() if p.startswith("lora/")}
    assert len(adapters) == 14
    for path, leaf in adapters.items():
        assert (np.abs(leaf).max() == 0) == path.endswith("/b")
    kernel = np.asarray(fresh["decoder/layers/up/kernel"])
    assert 0.015 < kernel.std() < 0.025
    # The layers of a scan have different initial values.
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_number_of_audio_tokens(tiny, encoded):
    assert [tiny.asa.num_map_tokens(n) for n in (80_000, 16_000, 100)] == [20, 4, 1]
    assert tiny.asa.num_audio_tokens(80_000) == 20 + tiny.model.spatial.num_slots
    projector = dataclasses.replace(tiny.model.projector, token_rate=12.5)
    assert ASA(dataclasses.replace(tiny.model, projector=projector)).num_map_tokens(160_000) == 125
    assert encoded.semantic.shape == encoded.dense.shape == (2, 4, 16)
    # Both encoders' tokens are means over quarters of a second.
    expected = resample_time(encoded.spatial.dense, 4)
    np.testing.assert_allclose(encoded.dense, expected, atol=1e-5)


def test_int16_is_full_scale_at_32767_and_spec_mask_hides_log_mel(tiny, clip, encode, encoded):
    spec_mask = np.zeros((2, 100, 16), bool)
    spec_mask[0] = True
    augmentation = Augmentation(spec_mask, np.zeros((2, 8), np.float32))
    audio = (clip / 32767).astype(np.float32)
    masked = encode(tiny.params, audio, augmentation)
    np.testing.assert_allclose(masked.semantic[1], encoded.semantic[1], atol=1e-4)
    np.testing.assert_allclose(masked.dense, encoded.dense, atol=1e-4)
    assert np.abs(masked.semantic[0] - encoded.semantic[0]).max() > 0.05
    # Only the mean of what is masked is left: the clip's order in time is gone.
    reverse = encode(tiny.params, audio[:, ::-1], augmentation)
    np.testing.assert_allclose(reverse.semantic[0], masked.semantic[0], atol=0.02)
    assert np.abs(reverse.semantic[1] - masked.semantic[1]).max() > 0.05


def test_eq_is_a_filter_on_all_channels(tiny, clip, encode, encoded):
    """A flat gain of 6 dB equals a clip that is 6 dB louder, without its log-mel's floor."""
    eq_log10 = np.full((2, 8), 0.6, np.float32)
    augmentation = Augmentation(np.zeros((2, 100, 16), bool), eq_log10)
    audio = (clip / 32767).astype(np.float32)
    equalized = encode(tiny.params, audio, augmentation)
    louder = encode(tiny.params, audio * 10**0.3)
    for name in ("semantic", "dense"):
        error, change = (getattr(x, name) - getattr(louder, name) for x in (equalized, encoded))
        assert np.abs(error).mean() < 0.1 * np.abs(change).mean()


def test_drop_spatial_replaces_the_dense_map_and_the_slots(tiny, encoded):
    project = jax.jit(tiny.asa.project)
    embeds, _ = project(tiny.params, encoded)
    mixed, experts = project(tiny.params, encoded, np.array([True, False]))
    np.testing.assert_allclose(mixed[1], embeds[1], atol=1e-5)
    assert np.abs(mixed[0] - embeds[0]).max() > 0.05
    null = np.broadcast_to(tiny.params["projector"]["null_embedding"], encoded.dense.shape)
    slots = np.zeros_like(encoded.slot_features)
    expected, _ = project(tiny.params, encoded._replace(dense=null, slot_features=slots))
    np.testing.assert_allclose(mixed[0], expected[0], atol=1e-5)
    assert np.ptp(experts.direction[0], axis=0).max() < 1e-6


def test_the_kth_audio_token_gets_the_kth_audio_embedding(tiny):
    ids = np.array([[0, AUDIO, AUDIO, 9, AUDIO, 8], [0, 0, 9, AUDIO, AUDIO, AUDIO], [5] * 6])
    audio_embeds = np.random.default_rng(0).normal(size=(3, 3, 32)).astype(np.float32)
    x = np.asarray(tiny.asa.embed(tiny.params, ids, audio_embeds, AUDIO))
    words = tiny.params["decoder"]["embedding"]["embedding"]
    for row in range(3):
        positions = np.flatnonzero(ids[row] == AUDIO)
        np.testing.assert_array_equal(x[row, positions], audio_embeds[row, : len(positions)])
    is_text = ids != AUDIO
    np.testing.assert_array_equal(x[is_text], words[ids[is_text]])
    np.testing.assert_array_equal(tiny.asa.embed(tiny.params, ids, None, AUDIO), words[ids])


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=20)
def test_resampling_time_keeps_means(frames, length):
    x = np.random.default_rng(frames).normal(size=(2, frames, 3)).astype(np.float32)
    means = np.asarray(resample_time(x, length))
    assert means.shape == (2, length, 3)
    np.testing.assert_allclose(means.mean(1), x.mean(1), atol=1e-5)
    assert means.max() <= x.max() + 1e-5 and means.min() >= x.min() - 1e-5


def test_resampling_time_means_over_spans():
    x = np.arange(12, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(resample_time(x, 3)[0, :, 0], [1.5, 5.5, 9.5])
    np.testing.assert_allclose(resample_time(x[:, :5], 2)[0, :, 0], [0.8, 3.2], atol=1e-6)


def test_bfloat16_reaches_the_audio_embeddings(tiny, clip):
    asa = ASA(dataclasses.replace(tiny.model, dtype="bfloat16"))

    def project(params, audio):
        audio = asa.encode_audio(params, audio)
        return *asa.project(params, audio), audio

    embeds, experts, audio = jax.eval_shape(project, tiny.params, clip)
    assert embeds.dtype == audio.dense.dtype == audio.semantic.dtype == jax.numpy.bfloat16
    # Inputs of losses are in float32.
    heads = (*experts, *audio.spatial.slots, *audio.spatial.room)
    assert {x.dtype for x in heads} == {np.dtype("float32")}
    assert asa.unembedding(tiny.params).dtype == jax.numpy.bfloat16
    with pytest.raises(config.ConfigError, match="Model.dtype is 'float8'"):
        dataclasses.replace(tiny.model, dtype="float8")


def test_padding_changes_no_estimate(tiny, clip):
    """All outputs of the encoders, whatever the padding holds."""
    audio = (clip / 32767).astype(np.float32)
    lengths = np.array([9777, 13_100], np.int32)
    silent = audio * (np.arange(16_000) < lengths[:, None])[..., None]
    encode_padded = jax.jit(lambda a, n: tiny.asa.encode_audio(tiny.params, a, lengths=n))
    padded = [encode_padded(a, lengths) for a in (audio, silent)]
    encode_alone = jax.jit(lambda a: tiny.asa.encode_audio(tiny.params, a))
    for row, n in enumerate(lengths.tolist()):
        single = encode_alone(audio[row : row + 1, :n])
        steps, tokens = tiny.model.spatial.steps(n), tiny.asa.num_map_tokens(n)
        assert single.semantic.shape[1] == tokens and single.spatial.dense.shape[1] == steps

        def same(a, b, row=row):
            np.testing.assert_allclose(a[row], b[0], atol=2e-5)

        for batch in padded:
            same(batch.semantic[:, :tokens], single.semantic)
            same(batch.dense[:, :tokens], single.dense)
            same(batch.slot_features, single.slot_features)
            same(batch.spatial.dense[:, :steps], single.spatial.dense)
            for name, value in single.spatial.slots._asdict().items():
                slots = getattr(batch.spatial.slots, name)
                in_time = name in ("activity", "direction_in_time")
                same(slots[:, :, :steps] if in_time else slots, value)
            for name, value in single.spatial.room._asdict().items():
                same(getattr(batch.spatial.room, name), value)


def test_number_of_map_tokens_is_the_same_on_host_and_device(tiny):
    samples = np.array([1, 1999, 2000, 5999, 6000, 64_000, 480_000], np.int32)
    counts = [1, 1, 1, 1, 2, 16, 120]
    assert [tiny.asa.num_map_tokens(int(n)) for n in samples] == counts
    np.testing.assert_array_equal(jax.jit(tiny.asa.num_map_tokens)(samples), counts)
    projector = dataclasses.replace(tiny.model.projector, token_rate=12.5)
    full = ASA(dataclasses.replace(tiny.model, projector=projector))
    assert [full.num_map_tokens(n * 16_000) for n in (3, 10, 30)] == [38, 125, 375]
