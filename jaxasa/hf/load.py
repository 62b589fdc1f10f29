# SPDX-License-Identifier: Apache-2.0
"""Loads a model from an exported folder or a training checkpoint, through one function.

Both give parameters as a nested dict of numpy arrays, `meta` (stage, classes, seconds, model), and
the path of the tokenizer. An exported folder has no adapters, since they are merged into the
decoder; `merge_lora` does the same to a checkpoint's parameters.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.core.text_files import read_json
from jaxasa.core.workdir import output_of
from jaxasa.data.tokens import TextTokenizer
from jaxasa.hf import keymap, weights
from jaxasa.models import asa
from jaxasa.train import checkpoint

CONFIG = "config.json"
MODEL_TYPE = "jaxasa"
_META = ("stage", "classes", "seconds", "model", "tokenizer")


def load_model(folder: str | Path) -> tuple[dict, dict, Path]:
    """(params, meta, path of tokenizer.json) of an export folder or of `checkpoints/<stage>`.

    meta: {"stage", "classes", "seconds", "model" (see `config.model_from_dict`), "tokenizer"}.
    Raises ConfigError, one line, for a folder that is neither, for files that are truncated or
    missing, for tensors that are missing, surplus, of another shape or not finite, and for a
    tokenizer with tokens beyond the rows of the embedding.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    model = config.model_from_dict(meta["model"])
    if (folder / CONFIG).is_file():
        params = _read_weights(folder)
    else:
        params = trees.flatten(checkpoint.load(folder)[0])
    _check(folder, params, expected_shapes(model))
    tokenizer = tokenizer_path(folder)
    TextTokenizer.load(tokenizer).check_embedding_rows(model.decoder.vocab_size, tokenizer)
    return trees.merge({}, params), meta, tokenizer


def tokenizer_path(folder: str | Path) -> Path:
    """Path of the model's tokenizer.json. Raises ConfigError if it is missing."""
    path = Path(folder) / Path(read_meta(folder)["tokenizer"]).name
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected the model's tokenizer")
    return path


def read_meta(folder: str | Path) -> dict:
    """`meta` of `load_model`, without reading weights. Raises ConfigError as that does."""
    folder = Path(folder)
    path = folder / CONFIG
    if path.is_file():
        meta = read_json(path)
        kind = meta.get("model_type")
        if kind != MODEL_TYPE:
            raise ConfigError(f"{path}: model_type is {kind!r}, expected {MODEL_TYPE!r}")
    elif (folder / checkpoint.META).is_file():
        path = folder / checkpoint.META
        meta = read_json(path)
    else:
        raise ConfigError(
            f"{folder}: neither {CONFIG} nor {checkpoint.META} is there, expected "
            + output_of(folder, "the output of `jaxasa export`, or WORKDIR/checkpoints/STAGE")
        )
    lacking = [key for key in _META if key not in meta]
    if lacking:
        raise ConfigError(f"{path} lacks {', '.join(lacking)}")
    return meta


def flatten_params(params: Mapping) -> dict[str, np.ndarray]:
    """{"decoder/layers/q/kernel": array, ...} of nested parameters."""
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}


def merge_lora(params: Mapping, model: Mapping) -> dict:
    """Merges LoRA adapters: kernel + (alpha / rank) a b (arXiv:2106.09685, section 4.1).

    a [L, in, r], b [L, r, out], kernel [L, in, out] of L layers; computed in float32, returned in
    the kernel's dtype. model: meta["model"]. Returns nested parameters without "lora".
    """
    leaves = flatten_params(params)
    scale = model["lora"]["alpha"] / model["lora"]["rank"]
    merged = {path: leaf for path, leaf in leaves.items() if not path.startswith("lora/")}
    for path, a in leaves.items():
        if not path.startswith("lora/") or not path.endswith("/a"):
            continue
        target = "decoder/" + path.removeprefix("lora/").removesuffix("a") + "kernel"
        if target not in merged:
            raise ConfigError(f"{path}: no parameter {target} to merge it into")
        b = leaves[path.removesuffix("a") + "b"]
        kernel = merged[target]
        delta = np.float32(scale) * (a.astype(np.float32) @ b.astype(np.float32))
        merged[target] = (kernel.astype(np.float32) + delta).astype(kernel.dtype)
    return trees.merge({}, merged)


@functools.cache  # tracing takes a second
def expected_shapes(model: config.Model) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all parameters of `model` except the adapters."""
    leaves = trees.flatten(jax.eval_shape(asa.ASA(model).init, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in leaves.items() if not path.startswith("lora/")}


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    tensors = weights.SafetensorsFolder(folder)
    try:
        return keymap.from_hf({name: tensors.read(name) for name in tensors.shapes})
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def _check(folder: Path, params: Mapping[str, np.ndarray], expected: Mapping[str, tuple]) -> None:
    """Raises ConfigError listing parameters that are missing, surplus, of another shape or not
    finite. Adapters are optional."""
    faults = [f"missing {path}" for path in sorted(set(expected) - set(params))]
    checked = [path for path in sorted(params) if path in expected or path.startswith("lora/")]
    faults += [f"surplus {path}" for path in sorted(set(params) - set(checked))]
    for path in checked:
        array = params[path]
        if array.shape != expected.get(path, array.shape):
            faults.append(f"{path} is {list(array.shape)}, expected {list(expected[path])}")
        elif not np.isfinite(array.astype(np.float32)).all():
            faults.append(f"{path} has NaN or infinite values")
    if faults:
        raise ConfigError(f"{folder}: {'; '.join(faults)}")
