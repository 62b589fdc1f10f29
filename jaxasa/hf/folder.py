# SPDX-License-Identifier: Apache-2.0
"""Files of exported folders: JSON, and safetensors in one file or in shards."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxasa.hf.weights import INDEX, WEIGHTS

# Larger files are slow on the hub, and some file systems refuse them.
SHARD_BYTES = 5_000_000_000


def write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path, tensors: Mapping[str, np.ndarray], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes one file, or shards of at most `shard_bytes` each (a larger tensor has its own)."""
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
