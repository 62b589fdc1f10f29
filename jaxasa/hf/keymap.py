"""Our parameter paths and the names of a file: tables, read both ways.

TABLE is that of an exported file, ARCHITECTURES holds those of published models. A row pairs a
path of ours with a name in the file. Decoder rows are those of Qwen2ForCausalLM and
Qwen3ForCausalLM, semantic rows those of Whisper's encoder in transformers. `{n}` is the layer:
our layers are one array with a leading axis [L, ...], the file has one tensor a layer. `{x}` is
a number that both sides share. The LSTM cells keep one matrix a gate: i, f, g, o from the input
(ii, if, ig, io) and from the state (hi, hf, hg, ho).

The layouts differ as follows:
    "same"    the array as it is
    "linear"  [in, out] here, [out, in] in the file
    "conv1d"  [K, in, out] here, [out, in, K] in the file
    "conv2d"  [KH, KW, in, out] here, [out, in, KH, KW] in the file
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from jaxasa.config import EXPERTS, ConfigError

T = TypeVar("T")

# Axes of the file's layout in terms of ours; the inverse is its argsort.
_AXES = {"linear": (1, 0), "conv1d": (2, 1, 0)}


class Row(NamedTuple):
    ours: str
    theirs: str
    layout: str = "same"


def _linear(ours: str, theirs: str, bias: bool = True) -> tuple[Row, ...]:
    rows = (Row(f"{ours}/kernel", f"{theirs}.weight", "linear"),)
    return (*rows, Row(f"{ours}/bias", f"{theirs}.bias")) if bias else rows


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    return (Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias"))


def _conv(ours: str, theirs: str, layout: str) -> tuple[Row, ...]:
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", layout),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    )


def _transformer(ours: str, theirs: str) -> tuple[Row, ...]:
    """models/layers.py's blocks as layers of WhisperEncoder."""
    a, b = f"{ours}/layers", f"{theirs}.layers.{{n}}"
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
    *_conv("semantic/conv1", "audio_tower.conv1", "conv1d"),
    *_conv("semantic/conv2", "audio_tower.conv2", "conv1d"),
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
    Row("projector/null", "projector.null"),
)

TABLE: tuple[Row, ...] = (*DECODER, *SEMANTIC, *SPATIAL, *PROJECTOR)


class Architecture(NamedTuple):
    """A published model: the rows of its file, and what else the file may hold.

    left: names (regular expressions) that have no place here and are left there: Whisper's own
        decoder, Qwen2-Audio's own projector, rotary tables that older files hold.
    positions: Whisper's sinusoids, stored there and computed here.
    base: what a file of the model without its head lacks before every name.
    """

    rows: tuple[Row, ...]
    left: tuple[str, ...]
    positions: str = ""
    base: str = ""


def _renamed(rows: tuple[Row, ...], before: str, after: str) -> tuple[Row, ...]:
    return tuple(r._replace(theirs=after + r.theirs.removeprefix(before)) for r in rows)


_ROTARY = r"(.*\.)?rotary_emb\.inv_freq"
_QWEN = Architecture(DECODER, (_ROTARY,), base="model.")
# By `model_type` in config.json.
ARCHITECTURES: Mapping[str, Architecture] = {
    "whisper": Architecture(
        _renamed(SEMANTIC, "audio_tower.", "model.encoder."),
        (r"model\.decoder\..*", r"(model\.)?proj_out\.weight"),
        "model.encoder.embed_positions.weight",
        "model.",
    ),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "qwen2_audio": Architecture(
        (*SEMANTIC, *_renamed(DECODER, "", "language_model.")),
        (r"multi_modal_projector\..*", _ROTARY),
        "audio_tower.embed_positions.weight",
    ),
}


def _pattern(template: str) -> re.Pattern:
    parts = re.split(r"(\{n\}|\{x\})", template)
    groups = {"{n}": r"(?P<n>0|[1-9]\d*)", "{x}": r"(?P<x>0|[1-9]\d*)"}
    return re.compile("".join(groups.get(part, re.escape(part)) for part in parts))


@functools.cache
def _ours(rows: tuple[Row, ...]) -> list[tuple[re.Pattern, Row]]:
    return [(_pattern(row.ours), row) for row in rows]


@functools.cache
def _theirs(rows: tuple[Row, ...]) -> list[tuple[re.Pattern, Row]]:
    return [(_pattern(row.theirs), row) for row in rows]


def _find(table: list, name: str) -> tuple[Row, dict[str, str]] | None:
    """The first row that `name` fits wholly, and what its fields stand for."""
    for pattern, row in table:
        match = pattern.fullmatch(name)
        if match:
            return row, match.groupdict()
    return None


def _convert(array: np.ndarray, layout: str, back: bool, name: str) -> np.ndarray:
    if layout == "same":
        return array
    axes = _AXES[layout]
    if array.ndim != len(axes):
        raise ConfigError(f"{name}: {array.ndim} axes, expected {len(axes)} ({layout})")
    return array.transpose(np.argsort(axes) if back else axes)


def to_file(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and arrays of the file for a flat dict {our path: array}.

    Raises ConfigError listing paths without a row.
    """
    tensors: dict[str, np.ndarray] = {}
    unknown = []
    for path, array in params.items():
        found = _find(_ours(TABLE), path)
        if found is None:
            unknown.append(path)
            continue
        row, fields = found
        if "{n}" in row.theirs:
            for n, layer in enumerate(array):
                name = row.theirs.format(n=n, **fields)
                tensors[name] = _convert(np.asarray(layer), row.layout, False, path)
        else:
            tensors[row.theirs.format(**fields)] = _convert(
                np.asarray(array), row.layout, False, path
            )
    if unknown:
        raise ConfigError("hf/keymap.py has no row for parameters " + ", ".join(sorted(unknown)))
    # Not ascontiguousarray, which turns a scalar into a vector.
    return {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}


def in_file(axes: tuple[T, ...], layout: str) -> tuple[T, ...]:
    """A shape, or an index, of an array of ours in the order of the file's axes."""
    return tuple(axes[axis] for axis in _AXES[layout]) if layout in _AXES else axes


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """A view of the file's array (or of a part) with our axes."""
    return array.transpose(np.argsort(_AXES[layout])) if layout in _AXES else array


class Place(NamedTuple):
    """A tensor of a file that holds a parameter, or (stacked) one layer of it."""

    name: str
    layout: str
    stacked: bool


def places(path: str, layers: int, rows: tuple[Row, ...] = TABLE) -> list[Place]:
    """Where the parameter `path` lies in a file: one tensor, or one for each of its `layers`.

    Raises ConfigError for a path without a row.
    """
    found = _find(_ours(rows), path)
    if found is None:
        raise ConfigError(f"hf/keymap.py has no row for {path}")
    row, fields = found
    stacked = "{n}" in row.theirs
    numbers = range(layers) if stacked else [0]
    return [Place(row.theirs.format(n=n, **fields), row.layout, stacked) for n in numbers]


def has_row(name: str, rows: tuple[Row, ...] = TABLE) -> bool:
    """Whether a row stands for the tensor `name` of a file."""
    return _find(_theirs(rows), name) is not None


def from_file(
    tensors: Mapping[str, np.ndarray], stack: Callable = np.stack
) -> dict[str, np.ndarray]:
    """The flat dict {our path: array} for the names and arrays of a file; inverse of `to_file`.

    stack: jnp.stack where the arrays are jax's, inside a function that is traced.
    Raises ConfigError listing names without a row, layers that are missing, or layers whose
    shapes differ.
    """
    params: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    problems = []
    for name, tensor in tensors.items():
        found = _find(_theirs(TABLE), name)
        if found is None:
            problems.append(f"surplus {name}")
            continue
        row, fields = found
        index = fields.pop("n", None)
        path = row.ours.format(**fields)
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
