# SPDX-License-Identifier: Apache-2.0
"""The gin files of gin/model: published models have the published numbers of parameters."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxasa import config
from jaxasa.config import gin_files
from jaxasa.models.decoder import Decoder
from jaxasa.models.semantic import SemanticEncoder

# Safetensors totals of the hub's model pages; encoders: transformers' WhisperEncoder.
DECODERS = {
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
}
ENCODERS = {"whisper_small": 88_154_112, "whisper_large_v3": 636_968_960}
QWEN2_AUDIO = 8_397_094_912


def part(name: str, owner: str) -> dict:
    """Fields of a class that gin/model/NAME.gin binds."""
    bindings = gin_files.read([f"model/{name}.gin"]).values()
    return {b.field: b.value for b in bindings if b.owner == owner}


def size(module, *args, **kwargs) -> int:
    params = jax.eval_shape(
        functools.partial(module.init, **kwargs), jax.random.key(0), *args
    )["params"]  # fmt: skip
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def decoder_size(name: str) -> int:
    d = config.Decoder(**part(name, "Decoder"))
    module = Decoder(d, config.Lora())
    ids = size(module, jnp.zeros((1, 1), int), method="embed")
    layers = size(module, jnp.zeros((1, 1, d.width)), jnp.ones((1, 1), bool))
    return (
        ids + layers - (0 if d.tie_word_embeddings else d.vocab_size * d.width)
    )  # the head is in both


def encoder_size(name: str) -> int:
    """With the position embeddings, which a checkpoint stores and this code computes."""
    s = config.Semantic(**part(name, "Semantic"))
    return size(SemanticEncoder(s), jnp.zeros((1, 4, s.n_mels))) + 1500 * s.width


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name):
    assert decoder_size(name) == DECODERS[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name):
    assert encoder_size(name) == ENCODERS[name]


def test_qwen2_audio():
    own_projector = 1280 * 4096 + 4096
    total = decoder_size("qwen2_audio_7b") + encoder_size("qwen2_audio_7b") + own_projector
    assert total == QWEN2_AUDIO


@pytest.mark.parametrize("name", ["small", "base", "large"])
def test_a_model_file_binds_a_whole_model_and_nothing_else(name):
    bindings = gin_files.read([f"model/{name}.gin"])
    parts = {"Semantic", "Spatial", "Projector", "Decoder", "Lora", "Model"}
    assert {b.owner for b in bindings.values()} == parts
    whole = gin_files.read(["parts.gin", f"model/{name}.gin"])
    assert not sorted(gin_files._missing("Model", whole))
