"""Folders that appear whole or not at all, and what is written to them."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxasa.config import ConfigError
from jaxasa.hf.weights import INDEX, WEIGHTS

# Hubs and older file systems dislike larger files.
SHARD_BYTES = 5_000_000_000


@contextlib.contextmanager
def replacing(out: str | Path, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` at the end; an error leaves `out` as it was.

    A folder at `out` that is not empty is replaced only if `ours(out)`; otherwise, and where
    `out` is a file, ConfigError.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or ours(out))):
        raise ConfigError(f"{out}: holds something else than an export, expected a new folder")
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    before = out.with_name(f".{out.name}.{os.getpid()}.before")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        if out.exists():
            os.replace(out, before)
        try:
            os.replace(draft, out)
        except OSError:
            if before.exists():
                os.replace(before, out)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int = SHARD_BYTES
) -> None:
    """One file, or shards of at most `shard_bytes` (a larger tensor gets a shard of its own)."""
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX, index)
