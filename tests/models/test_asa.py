import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.core import trees
from jaxasa.models.asa import ASA, Disguise
from jaxasa.models.layers import resample_time

AUDIO = 2


@pytest.fixture(scope="module")
def clip():
    """int16 [2, 1 s, 4]: noise that dies away."""
    noise = np.random.default_rng(0).integers(-9000, 9000, (2, 16_000, 4))
    return (noise * np.exp(-6 * np.linspace(0, 1, 16_000))[:, None]).astype(np.int16)


@pytest.fixture(scope="module")
def heard(tiny, clip):
    return jax.jit(tiny.asa.listen)(tiny.params, clip)


def test_fresh_adapters_start_at_zero(tiny):
    def init(key):
        made = tiny.asa.init(key)
        return {"decoder": made["decoder"], "lora": made["lora"]}

    fresh = trees.flatten(jax.jit(init)(jax.random.key(0)))
    assert all(x.dtype == np.float32 for x in fresh.values())
    adapters = {p: x for p, x in fresh.items() if p.startswith("lora/")}
    assert len(adapters) == 14
    for path, leaf in adapters.items():
        assert (np.abs(leaf).max() == 0) == path.endswith("/b")
    kernel = np.asarray(fresh["decoder/layers/up/kernel"])
    assert 0.015 < kernel.std() < 0.025
    # Layers of a scan do not begin alike.
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_how_many_places_audio_takes(tiny, heard):
    assert [tiny.asa.map_tokens(n) for n in (80_000, 16_000, 100)] == [20, 4, 1]
    assert tiny.asa.audio_tokens(80_000) == 20 + tiny.model.spatial.slots
    projector = dataclasses.replace(tiny.model.projector, token_rate=12.5)
    assert ASA(dataclasses.replace(tiny.model, projector=projector)).map_tokens(160_000) == 125
    assert heard.semantic.shape == heard.dense.shape == (2, 4, 16)
    # Both encoders' tokens are means over quarters of a second.
    np.testing.assert_allclose(heard.dense, resample_time(heard.heard.dense, 4), atol=1e-5)


def test_int16_is_full_scale_at_32767_and_hidden_log_mel_is_not_heard(tiny, clip, heard):
    hidden = np.zeros((2, 100, 16), bool)
    hidden[0] = True
    plain = Disguise(hidden, np.zeros((2, 8), np.float32))
    listen = jax.jit(tiny.asa.listen)
    audio = (clip / 32767).astype(np.float32)
    found = listen(tiny.params, audio, plain)
    np.testing.assert_allclose(found.semantic[1], heard.semantic[1], atol=1e-4)
    np.testing.assert_allclose(found.dense, heard.dense, atol=1e-4)
    assert np.abs(found.semantic[0] - heard.semantic[0]).max() > 0.05
    # Only the mean of what is hidden is left: the clip's order in time is gone.
    back = listen(tiny.params, audio[:, ::-1], plain)
    np.testing.assert_allclose(back.semantic[0], found.semantic[0], atol=0.02)
    assert np.abs(back.semantic[1] - found.semantic[1]).max() > 0.05


def test_a_colour_is_a_filter_on_all_channels(tiny, clip, heard):
    """A flat colour of 6 dB is a clip at 6 dB more: log-mel, powers, and no direction changes."""
    colour = np.full((2, 8), 0.6, np.float32)
    disguise = Disguise(np.zeros((2, 100, 16), bool), colour)
    audio = (clip / 32767).astype(np.float32)
    found = jax.jit(tiny.asa.listen)(tiny.params, audio, disguise)
    louder = jax.jit(tiny.asa.listen)(tiny.params, audio * 10**0.3)
    # But for the floors under what is nearly silent, which a louder clip leaves.
    for name in ("semantic", "dense"):
        off, change = (getattr(x, name) - getattr(louder, name) for x in (found, heard))
        assert np.abs(off).mean() < 0.1 * np.abs(change).mean()


def test_the_learnt_null_replaces_the_dense_map(tiny, heard):
    project = jax.jit(tiny.asa.project)
    tokens, _ = project(tiny.params, heard)
    mixed, experts = project(tiny.params, heard, np.array([True, False]))
    np.testing.assert_allclose(mixed[1], tokens[1], atol=1e-5)
    assert np.abs(mixed[0] - tokens[0]).max() > 0.05
    null = np.broadcast_to(tiny.params["projector"]["null"], heard.dense.shape)
    nothing = heard._replace(dense=null, said=np.zeros_like(heard.said))
    expected, _ = project(tiny.params, nothing)
    np.testing.assert_allclose(mixed[0], expected[0], atol=1e-5)
    assert np.ptp(experts.direction[0], axis=0).max() < 1e-6


def test_the_kth_audio_token_takes_the_kth_place(tiny):
    ids = np.array([[0, AUDIO, AUDIO, 9, AUDIO, 8], [0, 0, 9, AUDIO, AUDIO, AUDIO], [5] * 6])
    tokens = np.random.default_rng(0).normal(size=(3, 3, 32)).astype(np.float32)
    found = np.asarray(tiny.asa.embed(tiny.params, ids, tokens, AUDIO))
    words = tiny.params["decoder"]["embedding"]["embedding"]
    for row in range(3):
        places = np.flatnonzero(ids[row] == AUDIO)
        np.testing.assert_array_equal(found[row, places], tokens[row, : len(places)])
    rest = ids != AUDIO
    np.testing.assert_array_equal(found[rest], words[ids[rest]])
    np.testing.assert_array_equal(tiny.asa.embed(tiny.params, ids, None, AUDIO), words[ids])


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=20)
def test_resampling_time_keeps_means(frames, length):
    x = np.random.default_rng(frames).normal(size=(2, frames, 3)).astype(np.float32)
    found = np.asarray(resample_time(x, length))
    assert found.shape == (2, length, 3)
    np.testing.assert_allclose(found.mean(1), x.mean(1), atol=1e-5)
    assert found.max() <= x.max() + 1e-5 and found.min() >= x.min() - 1e-5


def test_resampling_time_means_over_spans():
    x = np.arange(12, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(resample_time(x, 3)[0, :, 0], [1.5, 5.5, 9.5])
    np.testing.assert_allclose(resample_time(x[:, :5], 2)[0, :, 0], [0.8, 3.2], atol=1e-6)


def test_bfloat16_reaches_the_tokens(tiny, clip):
    asa = ASA(dataclasses.replace(tiny.model, dtype="bfloat16"))

    def listen(params, audio):
        audio = asa.listen(params, audio)
        return *asa.project(params, audio), audio

    made, experts, audio = jax.eval_shape(listen, tiny.params, clip)
    assert made.dtype == audio.dense.dtype == audio.semantic.dtype == jax.numpy.bfloat16
    # What losses are taken of is in float32.
    heads = (*experts, *audio.heard.slots, *audio.heard.room)
    assert {x.dtype for x in heads} == {np.dtype("float32")}
    assert asa.table(tiny.params).dtype == jax.numpy.bfloat16
    with pytest.raises(config.ConfigError, match="Model.dtype is 'float8'"):
        dataclasses.replace(tiny.model, dtype="float8")


def test_a_clip_in_a_longer_array_is_heard_as_if_alone(tiny, clip):
    """Everything that the encoders say, whatever the padding holds."""
    audio = (clip / 32767).astype(np.float32)
    lengths = np.array([9777, 13_100], np.int32)
    silent = audio * (np.arange(16_000) < lengths[:, None])[..., None]
    listen = jax.jit(lambda a, n: tiny.asa.listen(tiny.params, a, lengths=n))
    padded = [listen(a, lengths) for a in (audio, silent)]
    by_itself = jax.jit(lambda a: tiny.asa.listen(tiny.params, a))
    for row, n in enumerate(lengths.tolist()):
        alone = by_itself(audio[row : row + 1, :n])
        steps, places = tiny.model.spatial.steps(n), tiny.asa.map_tokens(n)
        assert alone.semantic.shape[1] == places and alone.heard.dense.shape[1] == steps

        def same(a, b, row=row):
            np.testing.assert_allclose(a[row], b[0], atol=2e-5)

        for found in padded:
            same(found.semantic[:, :places], alone.semantic)
            same(found.dense[:, :places], alone.dense)
            same(found.said, alone.said)
            same(found.heard.dense[:, :steps], alone.heard.dense)
            for name, value in alone.heard.slots._asdict().items():
                made = getattr(found.heard.slots, name)
                in_time = name in ("activity", "direction_in_time")
                same(made[:, :, :steps] if in_time else made, value)
            for name, value in alone.heard.room._asdict().items():
                same(getattr(found.heard.room, name), value)


def test_half_an_audio_token_counts_on_the_host_as_on_the_device(tiny):
    samples = np.array([1, 1999, 2000, 5999, 6000, 64_000, 480_000], np.int32)
    counts = [1, 1, 1, 1, 2, 16, 120]
    assert [tiny.asa.map_tokens(int(n)) for n in samples] == counts
    np.testing.assert_array_equal(jax.jit(tiny.asa.map_tokens)(samples), counts)
    projector = dataclasses.replace(tiny.model.projector, token_rate=12.5)
    full = ASA(dataclasses.replace(tiny.model, projector=projector))
    assert [full.map_tokens(n * 16_000) for n in (3, 10, 30)] == [38, 125, 375]
