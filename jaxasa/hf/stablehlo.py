"""Writes a model as serialised functions (jax.export, StableHLO) that run with jax alone.

    logits.bin        weights, ids [b, T], audio [b, N, 4] -> float32 [b, T, V]
    answer.bin        weights, ids [b, T], audio [b, N, 4] -> int32 [b, C], the greedy reply
    signature.json    shapes, dtypes, token ids, how to call them

`weights` is a dict of the arrays of the exported model.safetensors (of all its shards, where
there are several) by their names, so that the functions hold no weights and stay small. The
batch b is free; N and T are those of the clips that the model was trained on.
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

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    out: Path, tensors: Mapping[str, np.ndarray], meta: Mapping, tokenizer: str | Path
) -> None:
    """Writes the new folder `out`. tensors: as in the exported model.safetensors.

    Raises ConfigError where the library that serialises is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("--stablehlo: expected flatbuffers, `pip install jaxasa[stablehlo]`")
    # Layers in a loop, whatever the machine that trained liked: small files.
    model = dataclasses.replace(config.model_from_dict(meta["model"]), unroll=1)
    asa, text = ASA(model), tokens.Text.load(tokenizer)
    samples = round(meta["seconds"] * SAMPLE_RATE)
    places = asa.audio_tokens(samples)
    length = places + asa.model.prompt_tokens
    (batch,) = jax.export.symbolic_shape("b")
    shaped = jax.ShapeDtypeStruct
    arguments = (
        {name: shaped(tensor.shape, tensor.dtype) for name, tensor in tensors.items()},
        shaped((batch, length), jnp.int32),
        shaped((batch, samples, asa.model.spatial.channels), jnp.float32),
    )
    out.mkdir(parents=True)
    facts = {
        "read": "jax.export.deserialize(FILE's bytes).call(weights, ids, audio)",
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "weights": "dict of all arrays of model.safetensors, or of all its shards, by name",
        "ids": {
            "shape": ["b", length],
            "dtype": "int32",
            "what": f"pad on the left, {places} times audio, ' QUESTION\\n' by tokenizer.json",
        },
        "audio": {
            "shape": ["b", samples, asa.model.spatial.channels],
            "dtype": "float32",
            "what": f"in [-1, 1], {card.audio(meta)}",
        },
        "tokens": {"pad": text.pad, "audio": text.audio, "eos": text.eos},
        "functions": {},
    }
    for name, function in (("logits", _logits), ("answer", _answer)):
        made = jax.export.export(jax.jit(partial(function, asa, text)), platforms=PLATFORMS)
        exported = made(*arguments)
        (out / f"{name}.bin").write_bytes(exported.serialize())
        (result,) = exported.out_avals
        facts["functions"][name] = {
            "file": f"{name}.bin",
            "result": {
                "shape": [n if isinstance(n, int) else str(n) for n in result.shape],
                "dtype": str(result.dtype),
            },
        }
    folder.write_json(out / "signature.json", facts)


def _heard(asa: ASA, weights, audio):
    params = trees.merge({}, keymap.from_file(weights, jnp.stack))
    return params, asa.project(params, asa.listen(params, audio))[0]


def _logits(asa: ASA, text: tokens.Text, weights, ids, audio):
    params, placed = _heard(asa, weights, audio)
    x = asa.embed(params, ids, placed, text.audio)
    hidden, *_ = asa.hidden(params, x, ids != text.pad, adapted=False)
    return asa.logits(params, hidden)


def _answer(asa: ASA, text: tokens.Text, weights, ids, audio):
    params, placed = _heard(asa, weights, audio)
    made = sample.generate(
        asa,
        params,
        ids,
        placed,
        jax.random.key(0),
        max_new=asa.model.reply_tokens,
        pad=text.pad,
        eos=text.eos,
        audio_id=text.audio,
        adapted=False,
    )
    return made.ids[:, 0]
