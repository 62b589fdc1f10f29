# SPDX-License-Identifier: Apache-2.0
"""Reads a folder of safetensors, one file or shards with an index, tensor by tensor."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy  # noqa: F401  (makes "bfloat16" a name that numpy knows)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxasa.config import ConfigError
from jaxasa.core import text_files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class SafetensorsFolder:
    """The tensors of a folder: names and shapes, and `read` loads one or a part of one.

    Raises ConfigError, one line, for a folder without safetensors (naming a pickle in it, and how
    to convert it), and for a file that is missing, truncated or damaged, or whose tensors differ
    from the index.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, safe_open] = {}
        for path, names in _shards(folder).items():
            file = _open(path)
            in_file = set(file.keys())
            if names is not None and names != in_file:
                different = ", ".join(sorted(names ^ in_file))
                raise ConfigError(f"{path}: its tensors differ from {INDEX}: {different}")
            self._files |= dict.fromkeys(in_file, file)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of all tensors; reads headers only."""
        return {n: tuple(f.get_slice(n).get_shape()) for n, f in self._files.items()}

    def dtype(self, name: str) -> str:
        """The dtype in the file's spelling: "F32", "BF16", ..."""
        return self._files[name].get_slice(name).get_dtype()

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor `name`, or the part `index` of it (slices of step 1)."""
        file = self._files[name]
        with _damaged(self.folder):
            # A tensor without axes has no slices.
            return file.get_slice(name)[index] if index else file.get_tensor(name)


def resolve_folder(source: str) -> Path:
    """The local folder `source`; for a name on the Hugging Face hub, the folder of its download.

    Downloads safetensors and JSON files only. Raises ConfigError if there is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise ConfigError(f"{source}: no such folder, expected one with {WEIGHTS} and config.json")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"{source}: no such folder; to fetch it from the hub, install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:
        # Many classes of errors: no network, no such name, no permission.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{source}: no such folder, and it cannot be downloaded from the hub: {reason}"
        ) from None


def _shards(folder: Path) -> Mapping[Path, set[str] | None]:
    """{file: names of its tensors by the index} (None: there is no index)."""
    if (folder / INDEX).is_file():
        by_file: dict[Path, set[str] | None] = {}
        for name, file in text_files.read_json(folder / INDEX).get("weight_map", {}).items():
            names = by_file.setdefault(folder / Path(file).name, set())
            names.add(name)  # type: ignore[union-attr]
        return by_file
    if not (folder / WEIGHTS).is_file():
        for pickle in _pickles(folder):
            raise ConfigError(
                f"{pickle}: a pickle, which can run any code when it is loaded; expected "
                "safetensors. If you trust it, load the folder with transformers' from_pretrained "
                "and save it with save_pretrained"
            )
    return {folder / WEIGHTS: None}


def _pickles(folder: Path) -> Iterator[Path]:
    for pattern in _PICKLES:
        yield from sorted(folder.glob(pattern))


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected weights")
    with _damaged(path):
        return safe_open(path, framework="numpy")


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: truncated or damaged: {error}") from None
