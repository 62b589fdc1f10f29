# SPDX-License-Identifier: Apache-2.0
import jax
import numpy as np
import pytest

from jaxasa.models.layers import sinusoids


@pytest.fixture(scope="module")
def encode(tiny):
    return jax.jit(lambda mels: tiny.asa.semantic.apply({"params": tiny.params["semantic"]}, mels))


def log_mel(frames):
    return np.random.default_rng(0).normal(size=(2, frames, 16)).astype(np.float32)


def test_it_equals_whispers_encoder_on_a_shorter_clip(tiny, encode):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from jaxasa.hf import keymap, load

    s = tiny.model.semantic
    # WhisperEncoder takes the full length only, which is 0.5 s here.
    settings = transformers.WhisperConfig(
        num_mel_bins=s.n_mels,
        d_model=s.width,
        encoder_layers=s.layers,
        encoder_attention_heads=s.heads,
        encoder_ffn_dim=4 * s.width,
        max_source_positions=25,
        attn_implementation="eager",
    )
    twin = WhisperEncoder(settings).eval()
    leaves = load.flatten_params({"semantic": tiny.params["semantic"]})
    tensors = {
        name.removeprefix("audio_tower."): torch.tensor(t)
        for name, t in keymap.to_hf(leaves).items()
    }
    missing, surplus = twin.load_state_dict(tensors, strict=False)
    assert missing == ["embed_positions.weight"] and not surplus
    mels = log_mel(50)
    with torch.no_grad():
        expected = twin(torch.tensor(mels).transpose(1, 2)).last_hidden_state.numpy()
    assert expected.shape == (2, 25, 16) and expected.std() > 0.3
    np.testing.assert_allclose(np.asarray(encode(mels)), expected, atol=1e-4)


def test_positions_are_sines_then_cosines_from_2_pi_to_10_000():
    table = sinusoids(200, 16)
    assert table.shape == (200, 16)
    t = np.arange(200)
    np.testing.assert_allclose(table[:, 0], np.sin(t), atol=1e-5)
    np.testing.assert_allclose(table[:, 7], np.sin(t / 10_000), atol=1e-5)
    np.testing.assert_allclose(table[:, 8], np.cos(t), atol=1e-5)
    np.testing.assert_array_equal(sinusoids(1500, 16)[:200], table)


def test_order_in_time_matters_and_longer_clips_than_30_s_are_refused(encode):
    mels = log_mel(50)
    forward, reverse = np.asarray(encode(mels)), np.asarray(encode(mels[:, ::-1]))[:, ::-1]
    assert forward.shape == (2, 25, 16)
    assert np.abs(forward - reverse).max() > 0.1
    with pytest.raises(ValueError, match="1501 frames, expected at most 1500"):
        encode(np.zeros((1, 3002, 16), np.float32))
