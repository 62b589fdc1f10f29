# SPDX-License-Identifier: Apache-2.0
"""Loads pretrained encoders and decoders from a folder of safetensors into sharded arrays.

    whisper        any size: its encoder is the semantic encoder
    qwen2, qwen3   Qwen2, Qwen2.5 and Qwen3 (dense): the decoder
    qwen2_audio    its audio tower, its text model, or both

One tensor at a time is read, converted and put on the devices, and each process reads only the
parts that its devices hold. So besides the resulting arrays, the host needs memory for two copies
of one tensor. Layers are written one by one into the array [L, ...] that is scanned.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import text_files
from jaxasa.hf import keymap, weights
from jaxasa.models.layers import sinusoids
from jaxasa.models.semantic import FRAMES_PER_SECOND

KINDS = {"semantic": ("whisper", "qwen2_audio"), "decoder": ("qwen2", "qwen3", "qwen2_audio")}
_FLOATS = ("F64", "F32", "F16", "BF16")
# Defaults of transformers for fields that a config.json lacks, as Qwen2-Audio's does.
_DEFAULTS = {
    "decoder": {
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "semantic": {
        "num_mel_bins": 128,
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_layers": 32,
        "encoder_ffn_dim": 5120,
        "max_source_positions": 1500,
    },
}
_FIELDS = {
    "decoder": {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "intermediate_size": "intermediate_size",
        "layers": "num_hidden_layers",
        "rope_theta": "rope_theta",
        "norm_eps": "rms_norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    "semantic": {
        "n_mels": "num_mel_bins",
        "width": "d_model",
        "heads": "encoder_attention_heads",
        "layers": "encoder_layers",
    },
}


def load(
    source: str, part: str, model: config.Model, targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """{path: array} of the parameters of `part` ("semantic" or "decoder") from `source`.

    source: a folder, or a name on the hub. targets: {path: shape, dtype and sharding} of that
    part's parameters. Raises ConfigError, one line, for another architecture or other sizes than
    those of `model`, for tensors that are missing, surplus or of another shape (naming all of
    them), for values that are not finite, and as `weights.SafetensorsFolder` does.
    """
    folder = weights.resolve_folder(source)
    kind, hf_config = _read_config(folder, part)
    faults = list(_config_differences(kind, hf_config, part, model))
    if faults:
        raise ConfigError(f"{folder / 'config.json'}: {'; '.join(faults)}")
    architecture = keymap.ARCHITECTURES[kind]
    tensors = weights.SafetensorsFolder(folder)
    shapes = tensors.shapes
    # A file of the model without its head lacks the prefix in every name.
    prefix = architecture.base_prefix
    prefix = "" if any(name.startswith(prefix) for name in shapes) else prefix
    names = {prefix + name: name for name in shapes}
    locations = {
        path: keymap.tensor_locations(path, target.shape[0], architecture.rows)
        for path, target in targets.items()
    }
    faults = list(_tensor_faults(locations, targets, names, tensors, architecture, part))
    if faults:
        raise ConfigError(f"{folder}: {'; '.join(faults)}")
    if part == "semantic":
        _check_positions(tensors, names[architecture.positions], model.semantic.width)
    params = {}
    for path, of_path in locations.items():
        of_path = [location._replace(name=names[location.name]) for location in of_path]
        params[path], not_finite = _load_parameter(tensors, of_path, targets[path])
        faults += not_finite
    if faults:
        raise ConfigError(f"{folder}: NaN or infinite values in {', '.join(faults)}")
    return params


def init_new_token_rows(
    params: Mapping[str, jax.Array], subtoken_ids: Mapping[int, Sequence[int]]
) -> dict[str, jax.Array]:
    """Initialises the rows of tokens that were added to the tokenizer.

    subtoken_ids: {id of a new token: ids of the tokens that spelled it before}. Its row, a spare
    one so far, becomes the mean of theirs. Returns the input embedding and, if there is one, the
    output matrix; {} if no token is new.
    """

    def fill(table):
        for row, ids in subtoken_ids.items():
            mean = table[np.array(ids)].astype(jnp.float32).mean(0)
            table = table.at[row].set(mean.astype(table.dtype))
        return table

    return {
        path: jax.jit(fill, donate_argnums=0, out_shardings=params[path].sharding)(params[path])
        for path in ("decoder/embedding/embedding", "decoder/head")
        if path in params and subtoken_ids
    }


def tokenizer_path(source: str) -> Path:
    """Path of a decoder's tokenizer.json. Raises ConfigError if there is none."""
    path = weights.resolve_folder(source) / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected the decoder's tokenizer")
    return path


def _read_config(folder: Path, part: str) -> tuple[str, dict]:
    """model_type, and the fields of config.json that are of the part."""
    path = folder / "config.json"
    hf_config = text_files.read_json(path)
    kind = hf_config.get("model_type")
    if kind not in KINDS[part]:
        expected = ", ".join(KINDS[part])
        raise ConfigError(f"{path}: model_type is {kind!r}, expected one of {expected} ({part})")
    if kind == "qwen2_audio":
        inner = hf_config.get("text_config" if part == "decoder" else "audio_config", {})
        hf_config = _DEFAULTS[part] | inner
    return kind, hf_config


def _config_differences(
    kind: str, hf_config: dict, part: str, model: config.Model
) -> Iterator[str]:
    """Faults: fields of config.json that differ from the gin model, or are not supported."""
    hf_config = dict(hf_config)
    expected: dict[str, object] = {}
    if part == "decoder":
        rope = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
        hf_config.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
        hf_config["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
        hf_config.setdefault("tie_word_embeddings", False)
        heads = hf_config.get("num_attention_heads") or 1
        hf_config.setdefault("num_key_value_heads", heads)
        hf_config["head_dim"] = (
            hf_config.get("head_dim") or (hf_config.get("hidden_size") or 0) // heads
        )
        expected |= {"hidden_act": "silu", "rope_type": "default", "use_sliding_window": False}
        hf_form = (kind != "qwen3", kind == "qwen3")
        form = (model.decoder.qkv_bias, model.decoder.qk_norm)
        if form != hf_form:
            yield f"a {kind} has (Decoder.qkv_bias, qk_norm) = {hf_form}, the gin model {form}"
        if kind == "qwen3":
            expected["attention_bias"] = False
    else:
        expected |= {"activation_function": "gelu", "scale_embedding": False}
        expected["encoder_ffn_dim"] = 4 * model.semantic.width
        pool = 2 if kind == "qwen2_audio" else 1
        if pool != model.semantic.pool:
            yield f"a {kind} has Semantic.pool = {pool}, the gin model {model.semantic.pool}"
        frames, most = hf_config.get("max_source_positions", 0), model.semantic.max_seconds
        if frames < most * FRAMES_PER_SECOND:
            yield f"max_source_positions is {frames}, too few for Semantic.max_seconds = {most}"
    for key, value in expected.items():
        if hf_config.get(key, value) != value:
            yield f"{key} is {hf_config[key]!r}, expected {value!r}"
    owner = getattr(model, part)
    for field, key in _FIELDS[part].items():
        value = getattr(owner, field)
        if hf_config.get(key) != value:
            name = f"{type(owner).__name__}.{field}"
            yield f"{key} is {hf_config.get(key)!r}, the gin model's {name} {value!r}"


def _tensor_faults(locations, targets, names, tensors, architecture, part: str) -> Iterator[str]:
    """Faults: tensors that are missing, surplus, of another shape, or quantised."""
    shapes = tensors.shapes
    expected = {location.name for of_path in locations.values() for location in of_path}
    if part == "semantic":
        expected.add(architecture.positions)
    yield from (f"missing {name}" for name in sorted(expected - set(names)))
    for name in sorted(set(names) - expected):
        if any(re.fullmatch(pattern, name) for pattern in architecture.ignored):
            continue
        if name == architecture.positions or _is_of_other_part(name, architecture.rows, part):
            continue
        # Some files repeat the embedding as the output matrix although the two are tied.
        if part == "decoder" and name.endswith("lm_head.weight"):
            continue
        yield f"surplus {names[name]}"
    for path, of_path in locations.items():
        for location in of_path:
            if location.name not in names:
                continue
            shape = targets[path].shape
            shape = shape[1:] if location.stacked else shape
            shape, name = keymap.to_hf_layout(shape, location.layout), names[location.name]
            if shapes[name] != shape:
                yield f"{name} is {list(shapes[name])}, expected {list(shape)}"
            elif tensors.dtype(name) not in _FLOATS:
                dtypes = ", ".join(_FLOATS)
                yield f"{name} is of type {tensors.dtype(name)}, expected one of {dtypes}"


def _is_of_other_part(name: str, rows: tuple[keymap.Row, ...], part: str) -> bool:
    """Whether a tensor belongs to a part of the architecture that is not being loaded."""
    return keymap.has_row(name, tuple(r for r in rows if not r.jax_path.startswith(f"{part}/")))


def _check_positions(tensors: weights.SafetensorsFolder, name: str, width: int) -> None:
    positions = tensors.read(name).astype(np.float32)
    has_width = positions.shape[1:] == (width,)
    # Half precision is accurate to 0.004.
    if not has_width or np.abs(positions - sinusoids(len(positions), width)).max() > 0.01:
        raise ConfigError(f"{tensors.folder}: {name} has other positions than Whisper's sinusoids")


def _load_parameter(
    tensors: weights.SafetensorsFolder,
    locations: list[keymap.TensorLocation],
    target: jax.ShapeDtypeStruct,
) -> tuple[jax.Array, list[str]]:
    """A parameter with the target's sharding, and the names of tensors that are not finite."""
    sharding = target.sharding
    not_finite = []
    if not locations[0].stacked:
        array = _load_tensor(tensors, locations[0], target.shape, target.dtype, sharding)
        if not _is_finite(sharding)(array):
            not_finite.append(locations[0].name)
        return array, not_finite
    layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    empty = functools.partial(jnp.zeros, target.shape, target.dtype)
    array = jax.jit(empty, out_shardings=sharding)()
    for n, location in enumerate(locations):
        layer = _load_tensor(tensors, location, target.shape[1:], target.dtype, layer_sharding)
        array, finite = _write_layer(sharding)(array, layer, np.int32(n))
        # Also waits, so that the host frees this layer before it reads the next one.
        if not finite:
            not_finite.append(location.name)
    return array, not_finite


def _load_tensor(
    tensors, location: keymap.TensorLocation, shape, dtype, sharding: NamedSharding
) -> jax.Array:
    """A tensor of the file in jaxasa's layout; each device gets only its part."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        spans = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        if spans not in parts:
            in_file = keymap.to_hf_layout(tuple(slice(*span) for span in spans), location.layout)
            out = np.empty([high - low for low, high in spans], dtype)
            values = tensors.read(location.name, in_file)
            out[...] = keymap.from_hf_layout(values, location.layout)
            parts[spans] = out
        return parts[spans]

    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _is_finite(sharding: NamedSharding):
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(lambda x: jnp.isfinite(x).all(), out_shardings=replicated)


@functools.cache
def _write_layer(sharding: NamedSharding):
    """(array [L, ...], layer [...], n) -> (array with the layer at n, whether it is finite)."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec())

    def write(array, layer, n):
        updated = jax.lax.dynamic_update_index_in_dim(array, layer, n, 0)
        return updated, jnp.isfinite(layer).all()

    return jax.jit(write, donate_argnums=0, out_shardings=(sharding, replicated))
