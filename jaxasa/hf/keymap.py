# SPDX-License-Identifier: Apache-2.0
"""Parameter paths of jaxasa and tensor names of Hugging Face files: tables, read both ways.

TABLE is that of an exported file, ARCHITECTURES holds those of published models. Decoder rows have
the names of Qwen2ForCausalLM and Qwen3ForCausalLM, semantic rows those of WhisperEncoder in
transformers, and the others those of hf/torch. In a row, `{n}` is the layer: in jaxasa the layers
are one array with a leading axis [L, ...], in the file each has a tensor of its own. `{x}` is a
number that stands on both sides. LSTM cells have one matrix for each gate: i, f, g, o from the
input (ii, if, ig, io) and from the state (hi, hf, hg, ho).

Layouts:
    "same"    the array as it is
    "linear"  [in, out] in jaxasa, [out, in] in the file
    "conv1d"  [K, in, out] in jaxasa, [out, in, K] in the file
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from jaxasa.config import EXPERTS, ConfigError

T = TypeVar("T")

# Axes of the file's layout in terms of jaxasa's; the inverse is its argsort.
_AXES = {"linear": (1, 0), "conv1d": (2, 1, 0)}


class Row(NamedTuple):
    """A parameter, or all parameters of a pattern, on both sides."""

    jax_path: str
    hf_name: str
    layout: str = "same"


def _linear(path: str, name: str, bias: bool = True) -> tuple[Row, ...]:
    rows = (Row(f"{path}/kernel", f"{name}.weight", "linear"),)
    return (*rows, Row(f"{path}/bias", f"{name}.bias")) if bias else rows


def _norm(path: str, name: str) -> tuple[Row, ...]:
    return (Row(f"{path}/scale", f"{name}.weight"), Row(f"{path}/bias", f"{name}.bias"))


def _conv1d(path: str, name: str) -> tuple[Row, ...]:
    return (
        Row(f"{path}/kernel", f"{name}.weight", "conv1d"),
        Row(f"{path}/bias", f"{name}.bias"),
    )


def _transformer(path: str, name: str) -> tuple[Row, ...]:
    """Blocks of models/layers.py as layers of WhisperEncoder."""
    a, b = f"{path}/layers", f"{name}.layers.{{n}}"
    return (
        *_linear(f"{a}/attention/q", f"{b}.self_attn.q_proj"),
        *_linear(f"{a}/attention/k", f"{b}.self_attn.k_proj", bias=False),
        *_linear(f"{a}/attention/v", f"{b}.self_attn.v_proj"),
        *_linear(f"{a}/attention/o", f"{b}.self_attn.out_proj"),
        *_linear(f"{a}/up", f"{b}.fc1"),
        *_linear(f"{a}/down", f"{b}.fc2"),
        *_norm(f"{a}/norm1", f"{b}.self_attn_layer_norm"),
        *_norm(f"{a}/norm2", f"{b}.final_layer_norm"),
    )


DECODER: tuple[Row, ...] = (
    Row("decoder/embedding/embedding", "model.embed_tokens.weight"),
    *_linear("decoder/layers/q", "model.layers.{n}.self_attn.q_proj"),
    *_linear("decoder/layers/k", "model.layers.{n}.self_attn.k_proj"),
    *_linear("decoder/layers/v", "model.layers.{n}.self_attn.v_proj"),
    Row("decoder/layers/q_norm/scale", "model.layers.{n}.self_attn.q_norm.weight"),
    Row("decoder/layers/k_norm/scale", "model.layers.{n}.self_attn.k_norm.weight"),
    *_linear("decoder/layers/o", "model.layers.{n}.self_attn.o_proj", bias=False),
    *_linear("decoder/layers/gate", "model.layers.{n}.mlp.gate_proj", bias=False),
    *_linear("decoder/layers/up", "model.layers.{n}.mlp.up_proj", bias=False),
    *_linear("decoder/layers/down", "model.layers.{n}.mlp.down_proj", bias=False),
    Row("decoder/layers/norm1/scale", "model.layers.{n}.input_layernorm.weight"),
    Row("decoder/layers/norm2/scale", "model.layers.{n}.post_attention_layernorm.weight"),
    Row("decoder/norm/scale", "model.norm.weight"),
    Row("decoder/head", "lm_head.weight"),
)

SEMANTIC: tuple[Row, ...] = (
    *_conv1d("semantic/conv1", "audio_tower.conv1"),
    *_conv1d("semantic/conv2", "audio_tower.conv2"),
    *_transformer("semantic/blocks", "audio_tower"),
    *_norm("semantic/norm", "audio_tower.layer_norm"),
)

SPATIAL: tuple[Row, ...] = (
    *_linear("spatial/stem{x}", "spatial_encoder.stem.{x}.linear"),
    *_norm("spatial/stem_norm{x}", "spatial_encoder.stem.{x}.norm"),
    *_linear("spatial/stem_out", "spatial_encoder.stem_out"),
    *_transformer("spatial/context", "spatial_encoder.context"),
    *_transformer("spatial/blocks", "spatial_encoder"),
    *_linear("spatial/class_bands", "spatial_encoder.class_bands"),
    Row("spatial/cues", "spatial_encoder.cues"),
    Row("spatial/class_bands_trust", "spatial_encoder.class_bands_trust"),
    *_linear("spatial/measured", "spatial_encoder.measured"),
    *_linear("spatial/told", "spatial_encoder.told"),
    *_linear("spatial/seen", "spatial_encoder.attractors.seen"),
    *_linear("spatial/slot_bands", "spatial_encoder.heads.slot_bands"),
    Row("spatial/slot_bands_trust", "spatial_encoder.heads.slot_bands_trust"),
    *_norm("spatial/norm", "spatial_encoder.layer_norm"),
    Row("spatial/slots", "spatial_encoder.attractors.slots"),
    *(
        row
        for cell in ("reader", "writer")
        for gate in "ifgo"
        for row in (
            *_linear(
                f"spatial/{cell}/i{gate}", f"spatial_encoder.attractors.{cell}.i{gate}", False
            ),
            *_linear(f"spatial/{cell}/h{gate}", f"spatial_encoder.attractors.{cell}.h{gate}"),
        )
    ),
    Row("spatial/activity_bias", "spatial_encoder.heads.activity_bias"),
    *(
        row
        for name in (
            *("activity_keys", "slot_dense", "slot_attractor", "slot_hidden", "bands"),
            *("cues_hidden", "cues_out"),
            *("residual", "presence", "label", "distance", "room_hidden", "room"),
        )
        for row in _linear(f"spatial/{name}", f"spatial_encoder.heads.{name}")
    ),
)

PROJECTOR: tuple[Row, ...] = (
    *(
        row
        for expert in (*EXPERTS, "trunk", "spatial")
        for part in ("in", "out")
        for row in _linear(f"projector/{expert}_{part}", f"projector.experts.{expert}.{part}")
    ),
    *(
        row
        for expert in EXPERTS[:-1]
        for row in _linear(f"projector/{expert}_head", f"projector.experts.{expert}.head")
    ),
    *(
        row
        for part in ("in", "out")
        for row in _linear(f"projector/slots_{part}", f"projector.slots.{part}")
    ),
    *_norm("projector/norm", "projector.norm"),
    *_linear("projector/bottleneck", "projector.bottleneck"),
    *_linear("projector/out", "projector.out"),
    Row("projector/null_embedding", "projector.null_embedding"),
)

TABLE: tuple[Row, ...] = (*DECODER, *SEMANTIC, *SPATIAL, *PROJECTOR)


class Architecture(NamedTuple):
    """A published model: the rows of its file, and what else the file may hold.

    ignored: names (regular expressions) of tensors that are not read: Whisper's own decoder,
        Qwen2-Audio's own projector, rotary tables in older files.
    positions: name of Whisper's position embeddings, which are stored there and computed here.
    base_prefix: prefix of every name that a file of the model without its head lacks.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...]
    positions: str = ""
    base_prefix: str = ""


def _replace_prefix(rows: tuple[Row, ...], old: str, new: str) -> tuple[Row, ...]:
    return tuple(r._replace(hf_name=new + r.hf_name.removeprefix(old)) for r in rows)


_ROTARY = r"(.*\.)?rotary_emb\.inv_freq"
_QWEN = Architecture(DECODER, (_ROTARY,), base_prefix="model.")
# By `model_type` in config.json.
ARCHITECTURES: Mapping[str, Architecture] = {
    "whisper": Architecture(
        _replace_prefix(SEMANTIC, "audio_tower.", "model.encoder."),
        (r"model\.decoder\..*", r"(model\.)?proj_out\.weight"),
        "model.encoder.embed_positions.weight",
        "model.",
    ),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "qwen2_audio": Architecture(
        (*SEMANTIC, *_replace_prefix(DECODER, "", "language_model.")),
        (r"multi_modal_projector\..*", _ROTARY),
        "audio_tower.embed_positions.weight",
    ),
}


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"(\{n\}|\{x\})", template)
    groups = {"{n}": r"(?P<n>0|[1-9]\d*)", "{x}": r"(?P<x>0|[1-9]\d*)"}
    return re.compile("".join(groups.get(part, re.escape(part)) for part in parts))


@functools.cache
def _by_jax_path(rows: tuple[Row, ...]) -> list[tuple[re.Pattern, Row]]:
    return [(_pattern(row.jax_path), row) for row in rows]


@functools.cache
def _by_hf_name(rows: tuple[Row, ...]) -> list[tuple[re.Pattern, Row]]:
    return [(_pattern(row.hf_name), row) for row in rows]


def _find(patterns: list, name: str) -> tuple[Row, dict[str, str]] | None:
    """The first row whose pattern matches the whole of `name`, and the values of its fields."""
    for pattern, row in patterns:
        match = pattern.fullmatch(name)
        if match:
            return row, match.groupdict()
    return None


def _convert(array: np.ndarray, layout: str, to_jax: bool, name: str) -> np.ndarray:
    if layout == "same":
        return array
    axes = _AXES[layout]
    if array.ndim != len(axes):
        raise ConfigError(f"{name}: {array.ndim} axes, expected {len(axes)} ({layout})")
    return array.transpose(np.argsort(axes) if to_jax else axes)


def to_hf(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by their names in an exported file, for a flat dict {parameter path: array}.

    Raises ConfigError listing paths without a row.
    """
    tensors: dict[str, np.ndarray] = {}
    unknown = []
    for path, array in params.items():
        match = _find(_by_jax_path(TABLE), path)
        if match is None:
            unknown.append(path)
            continue
        row, fields = match
        if "{n}" in row.hf_name:
            for n, layer in enumerate(array):
                name = row.hf_name.format(n=n, **fields)
                tensors[name] = _convert(np.asarray(layer), row.layout, False, path)
        else:
            name = row.hf_name.format(**fields)
            tensors[name] = _convert(np.asarray(array), row.layout, False, path)
    if unknown:
        raise ConfigError("hf/keymap.py has no row for parameters " + ", ".join(sorted(unknown)))
    # Not ascontiguousarray, which turns a scalar into a vector.
    return {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}


def to_hf_layout(axes: tuple[T, ...], layout: str) -> tuple[T, ...]:
    """The shape, or an index, of a parameter with its axes in the file's order."""
    return tuple(axes[axis] for axis in _AXES[layout]) if layout in _AXES else axes


def from_hf_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """A view of a tensor of the file, or of a part of it, with its axes in jaxasa's order."""
    return array.transpose(np.argsort(_AXES[layout])) if layout in _AXES else array


class TensorLocation(NamedTuple):
    """A tensor of a file that holds a parameter, or (stacked) one layer of it."""

    name: str
    layout: str
    stacked: bool


def tensor_locations(path: str, layers: int, rows: tuple[Row, ...] = TABLE) -> list[TensorLocation]:
    """The tensors of a file that hold the parameter `path`: one, or one for each of its `layers`.

    Raises ConfigError for a path without a row.
    """
    match = _find(_by_jax_path(rows), path)
    if match is None:
        raise ConfigError(f"hf/keymap.py has no row for {path}")
    row, fields = match
    stacked = "{n}" in row.hf_name
    numbers = range(layers) if stacked else [0]
    return [TensorLocation(row.hf_name.format(n=n, **fields), row.layout, stacked) for n in numbers]


def has_row(name: str, rows: tuple[Row, ...] = TABLE) -> bool:
    """Whether there is a row for the tensor `name` of a file."""
    return _find(_by_hf_name(rows), name) is not None


def from_hf(tensors: Mapping[str, np.ndarray], stack: Callable = np.stack) -> dict[str, np.ndarray]:
    """The flat dict {parameter path: array} for the tensors of an exported file; inverts `to_hf`.

    stack: jnp.stack if the arrays are jax's, inside a traced function. Raises ConfigError listing
    names without a row, layers that are missing, or layers whose shapes differ.
    """
    params: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    problems = []
    for name, tensor in tensors.items():
        match = _find(_by_hf_name(TABLE), name)
        if match is None:
            problems.append(f"surplus {name}")
            continue
        row, fields = match
        index = fields.pop("n", None)
        path = row.jax_path.format(**fields)
        array = _convert(tensor, row.layout, True, name)
        if index is None:
            params[path] = array
        else:
            layers.setdefault(path, {})[int(index)] = array
    for path, layer in layers.items():
        absent = sorted(set(range(max(layer) + 1)) - set(layer))
        if absent:
            problems.append(f"missing layers {absent} of {path}")
        elif len({array.shape for array in layer.values()}) > 1:
            problems.append(f"layers of different shapes in {path}")
        else:
            params[path] = stack([layer[n] for n in range(len(layer))])
    if problems:
        raise ConfigError("; ".join(sorted(problems)))
    return params
