"""Pretrained encoders and decoders, from a folder of safetensors into sharded arrays.

    whisper        any size: its encoder is the semantic encoder
    qwen2, qwen3   Qwen2, Qwen2.5 and Qwen3 (dense): the decoder
    qwen2_audio    its audio tower, its text model, or both

A tensor is read, laid out as ours and placed before the next one is read, each process reading
the parts that its devices hold; so the host holds two copies of one tensor at most besides the
arrays that are made. Layers are written one by one into the array [L, ...] that scans them.
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
from jaxasa.hf import keymap, weights
from jaxasa.models.layers import sinusoids
from jaxasa.models.semantic import FRAMES_PER_SECOND

KINDS = {"semantic": ("whisper", "qwen2_audio"), "decoder": ("qwen2", "qwen3", "qwen2_audio")}
_FLOATS = ("F64", "F32", "F16", "BF16")
# What transformers takes where a config.json says nothing, as Qwen2-Audio's does of its sizes.
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
    """{path: array} of the parameters of `part` ("semantic" or "decoder") that `source` holds.

    source: a folder, or a name on the hub. targets: {path: shape, dtype and sharding} of that
    part's parameters. Raises ConfigError, one line, for another architecture, other sizes than
    `model` has, tensors that are missing, surplus or of another shape (all of them named), values
    that are not finite, and as `weights.Weights` does.
    """
    folder = weights.folder_of(source)
    kind, meta = _config(folder, part)
    faults = list(_differences(kind, meta, part, model))
    if faults:
        raise ConfigError(f"{folder / 'config.json'}: {'; '.join(faults)}")
    architecture = keymap.ARCHITECTURES[kind]
    held = weights.Weights(folder)
    shapes = held.shapes
    # A file of the model without its head lacks the first part of every name.
    base = architecture.base
    base = "" if any(name.startswith(base) for name in shapes) else base
    names = {base + name: name for name in shapes}
    wanted = {
        path: keymap.places(path, target.shape[0], architecture.rows)
        for path, target in targets.items()
    }
    faults = list(_unfit(wanted, targets, names, held, architecture, part))
    if faults:
        raise ConfigError(f"{folder}: {'; '.join(faults)}")
    if part == "semantic":
        _check_positions(held, names[architecture.positions], model.semantic.width)
    made = {}
    for path, places in wanted.items():
        places = [place._replace(name=names[place.name]) for place in places]
        made[path], bad = _placed(held, places, targets[path])
        faults += bad
    if faults:
        raise ConfigError(f"{folder}: NaN or infinite values in {', '.join(faults)}")
    return made


def with_rows(
    made: Mapping[str, jax.Array], spelt: Mapping[int, Sequence[int]]
) -> dict[str, jax.Array]:
    """The tables of `made` with rows for tokens that the tokenizer gained.

    spelt: {id of a new token: ids of the pieces that spelt it before}. Spare rows have learnt
    nothing; each becomes the mean of the rows of its pieces.
    """

    def fill(table):
        for row, pieces in spelt.items():
            mean = table[np.array(pieces)].astype(jnp.float32).mean(0)
            table = table.at[row].set(mean.astype(table.dtype))
        return table

    return {
        path: jax.jit(fill, donate_argnums=0, out_shardings=made[path].sharding)(made[path])
        for path in ("decoder/embedding/embedding", "decoder/head")
        if path in made and spelt
    }


def tokenizer_of(source: str) -> Path:
    """tokenizer.json of a decoder's folder. Raises ConfigError where there is none."""
    path = weights.folder_of(source) / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected the decoder's tokenizer")
    return path


def _config(folder: Path, part: str) -> tuple[str, dict]:
    """(model_type, what config.json says of the part)."""
    path = folder / "config.json"
    meta = weights.read_json(path)
    kind = meta.get("model_type")
    if kind not in KINDS[part]:
        expected = ", ".join(KINDS[part])
        raise ConfigError(f"{path}: model_type is {kind!r}, expected one of {expected} ({part})")
    if kind == "qwen2_audio":
        inner = meta.get("text_config" if part == "decoder" else "audio_config", {})
        meta = _DEFAULTS[part] | inner
    return kind, meta


def _differences(kind: str, meta: dict, part: str, model: config.Model) -> Iterator[str]:
    """What of config.json differs from the gin model, or is not computed here."""
    meta = dict(meta)
    expected: dict[str, object] = {}
    if part == "decoder":
        rope = meta.get("rope_parameters") or meta.get("rope_scaling") or {}
        meta.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
        meta["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
        meta.setdefault("tie_word_embeddings", False)
        heads = meta.get("num_attention_heads") or 1
        meta.setdefault("num_key_value_heads", heads)
        meta["head_dim"] = meta.get("head_dim") or (meta.get("hidden_size") or 0) // heads
        expected |= {"hidden_act": "silu", "rope_type": "default", "use_sliding_window": False}
        form = (kind != "qwen3", kind == "qwen3")
        ours = (model.decoder.qkv_bias, model.decoder.qk_norm)
        if form != ours:
            yield f"a {kind} has (Decoder.qkv_bias, qk_norm) = {form}, the gin model {ours}"
        if kind == "qwen3":
            expected["attention_bias"] = False
    else:
        expected |= {"activation_function": "gelu", "scale_embedding": False}
        expected["encoder_ffn_dim"] = 4 * model.semantic.width
        pool = 2 if kind == "qwen2_audio" else 1
        if pool != model.semantic.pool:
            yield f"a {kind} has Semantic.pool = {pool}, the gin model {model.semantic.pool}"
        frames, most = meta.get("max_source_positions", 0), model.semantic.max_seconds
        if frames < most * FRAMES_PER_SECOND:
            yield f"max_source_positions is {frames}, too few for Semantic.max_seconds = {most}"
    for key, value in expected.items():
        if meta.get(key, value) != value:
            yield f"{key} is {meta[key]!r}, expected {value!r}"
    owner = getattr(model, part)
    for field, key in _FIELDS[part].items():
        value = getattr(owner, field)
        if meta.get(key) != value:
            name = f"{type(owner).__name__}.{field}"
            yield f"{key} is {meta.get(key)!r}, the gin model's {name} {value!r}"


def _unfit(wanted, targets, names, held, architecture, part: str) -> Iterator[str]:
    """Tensors that are missing, surplus, of another shape, or quantised."""
    shapes = held.shapes
    expected = {place.name for places in wanted.values() for place in places}
    if part == "semantic":
        expected.add(architecture.positions)
    yield from (f"missing {name}" for name in sorted(expected - set(names)))
    for name in sorted(set(names) - expected):
        if any(re.fullmatch(pattern, name) for pattern in architecture.left):
            continue
        if name == architecture.positions or _is_others(name, architecture.rows, part):
            continue
        # Written beside the table that it equals, where the two are tied.
        if part == "decoder" and name.endswith("lm_head.weight"):
            continue
        yield f"surplus {names[name]}"
    for path, places in wanted.items():
        shape = targets[path].shape
        for place in places:
            ours = shape[1:] if place.stacked else shape
            if place.name not in names:
                continue
            name = names[place.name]
            theirs = keymap.in_file(ours, place.layout)
            if shapes[name] != theirs:
                yield f"{name} is {list(shapes[name])}, expected {list(theirs)}"
            elif held.dtype(name) not in _FLOATS:
                yield f"{name} is of type {held.dtype(name)}, expected one of {', '.join(_FLOATS)}"


def _is_others(name: str, rows: tuple[keymap.Row, ...], part: str) -> bool:
    """Whether a tensor belongs to a part of the architecture that is not being loaded."""
    return keymap.has_row(name, tuple(r for r in rows if not r.ours.startswith(f"{part}/")))


def _check_positions(held: weights.Weights, name: str, width: int) -> None:
    found = held.read(name).astype(np.float32)
    # Half precision stores them to 0.004.
    if found.shape[1:] != (width,) or np.abs(found - sinusoids(len(found), width)).max() > 0.01:
        raise ConfigError(f"{held.folder}: {name} holds other positions than Whisper's sinusoids")


def _placed(
    held: weights.Weights, places: list[keymap.Place], target: jax.ShapeDtypeStruct
) -> tuple[jax.Array, list[str]]:
    """The array that lies as `target` says, and names of tensors with values not finite."""
    sharding = target.sharding
    bad = []
    if not places[0].stacked:
        array = _tensor(held, places[0], target.shape, target.dtype, sharding)
        if not _is_finite(sharding)(array):
            bad.append(places[0].name)
        return array, bad
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    empty = functools.partial(jnp.zeros, target.shape, target.dtype)
    array = jax.jit(empty, out_shardings=sharding)()
    for n, place in enumerate(places):
        layer = _tensor(held, place, target.shape[1:], target.dtype, of_layer)
        array, finite = _write(sharding)(array, layer, np.int32(n))
        # Waits too, so that the host forgets this layer before it reads the next.
        if not finite:
            bad.append(place.name)
    return array, bad


def _tensor(held, place: keymap.Place, shape, dtype, sharding: NamedSharding) -> jax.Array:
    """A tensor of the file as ours, of which each device is given its part alone."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        spans = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        if spans not in parts:
            there = keymap.in_file(tuple(slice(*span) for span in spans), place.layout)
            out = np.empty([high - low for low, high in spans], dtype)
            out[...] = keymap.from_layout(held.read(place.name, there), place.layout)
            parts[spans] = out
        return parts[spans]

    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _is_finite(sharding: NamedSharding):
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(lambda x: jnp.isfinite(x).all(), out_shardings=whole)


@functools.cache
def _write(sharding: NamedSharding):
    """(array [L, ...], layer [...], n) -> (array with the layer at n, whether it is finite)."""
    whole = NamedSharding(sharding.mesh, PartitionSpec())

    def write(array, layer, n):
        made = jax.lax.dynamic_update_index_in_dim(array, layer, n, 0)
        return made, jnp.isfinite(layer).all()

    return jax.jit(write, donate_argnums=0, out_shardings=(sharding, whole))
