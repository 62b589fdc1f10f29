# SPDX-License-Identifier: Apache-2.0
"""Writes a model as serialised functions (jax.export, StableHLO) that run with jax alone.

    logits.bin        weights, ids [b, T], audio [b, N, C] -> float32 [b, T, V]
    answer.bin        weights, ids [b, T], audio [b, N, C] -> int32 [b, L], the greedy reply
    signature.json    shapes, dtypes, token ids, and how to call the functions

`weights` is a dict of the arrays of the exported model.safetensors (or of all its shards) by their
names, so that the functions hold no weights and stay small. The batch size b is free; N and T are
those of the clips that the model was trained on.

Shapes: N samples, C channels, T prompt length, V vocabulary, L reply length.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import tokens
from jaxasa.hf import card, folder, keymap
from jaxasa.models import sample
from jaxasa.models.asa import ASA
from jaxasa.models.sample import SpecialTokenIds

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
    out: Path, tensors: Mapping[str, np.ndarray], meta: Mapping, tokenizer: str | Path
) -> None:
    """Writes the new folder `out`. tensors: as in the exported model.safetensors.

    Raises ConfigError if the library that serialises is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("--stablehlo: expected flatbuffers, `pip install jaxasa[stablehlo]`")
    # Layers in a loop, whatever the training run had: that keeps the files small.
    model = dataclasses.replace(config.model_from_dict(meta["model"]), unroll=1)
    asa = ASA(model)
    special_tokens = SpecialTokenIds.of(tokens.TextTokenizer.load(tokenizer))
    samples = round(meta["seconds"] * SAMPLE_RATE)
    audio_tokens = asa.num_audio_tokens(samples)
    length = audio_tokens + asa.model.prompt_tokens
    (batch,) = jax.export.symbolic_shape("b")
    array = jax.ShapeDtypeStruct
    arguments = (
        {name: array(tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        array((batch, length), jnp.int32),
        array((batch, samples, asa.model.spatial.channels), jnp.float32),
    )
    out.mkdir(parents=True)
    signature = {
        "read": "jax.export.deserialize(FILE's bytes).call(weights, ids, audio)",
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "weights": "dict of all arrays of model.safetensors, or of all its shards, by name",
        "ids": {
            "shape": ["b", length],
            "dtype": "int32",
            "content": f"pad tokens, {audio_tokens} audio tokens, then ' QUESTION\\n' as "
            "tokenizer.json encodes it",
        },
        "audio": {
            "shape": ["b", samples, asa.model.spatial.channels],
            "dtype": "float32",
            "content": f"in [-1, 1], {card.audio_format(meta)}",
        },
        "tokens": {
            "pad": special_tokens.pad,
            "audio": special_tokens.audio,
            "eos": special_tokens.eos,
        },
        "functions": {},
    }
    for name, function in (("logits", _logits), ("answer", _answer)):
        jitted = jax.jit(partial(function, asa, special_tokens))
        exported = jax.export.export(jitted, platforms=PLATFORMS)(*arguments)
        (out / f"{name}.bin").write_bytes(exported.serialize())
        (result,) = exported.out_avals
        signature["functions"][name] = {
            "file": f"{name}.bin",
            "result": {
                "shape": [n if isinstance(n, int) else str(n) for n in result.shape],
                "dtype": str(result.dtype),
            },
        }
    folder.write_json(out / "signature.json", signature)


def _audio_embeds(asa: ASA, weights, audio):
    """The parameters, nested, and the audio embeddings."""
    params = trees.merge({}, keymap.from_hf(weights, jnp.stack))
    return params, asa.project(params, asa.encode_audio(params, audio))[0]


def _logits(asa: ASA, special_tokens: SpecialTokenIds, weights, ids, audio):
    params, audio_embeds = _audio_embeds(asa, weights, audio)
    x = asa.embed(params, ids, audio_embeds, special_tokens.audio)
    hidden, *_ = asa.forward(params, x, ids != special_tokens.pad)
    return asa.logits(params, hidden)


def _answer(asa: ASA, special_tokens: SpecialTokenIds, weights, ids, audio):
    params, audio_embeds = _audio_embeds(asa, weights, audio)
    key = jax.random.key(0)
    return sample.generate(asa, params, ids, audio_embeds, key, special_tokens).ids[:, 0]
