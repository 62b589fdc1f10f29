# SPDX-License-Identifier: Apache-2.0
"""Shardings on the mesh: one table for parameters, one rule for batches.

A parameter's path ("decoder/layers/q/kernel") matches exactly one row of RULES, which names the
logical axis of each dimension; MESH_AXES maps a logical axis to a mesh axis.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasa.config import ConfigError
from jaxasa.core import trees

# A row without axes (None) replicates the parameter, whatever its rank.
Rules = Sequence[tuple[str, tuple[str, ...] | None]]

RULES: Rules = (
    (r"decoder/(embedding/embedding|head)", ("vocab", "width")),
    (r"decoder/layers/[qkv]/kernel", ("layers", "width", "heads")),
    (r"decoder/layers/[qkv]/bias", ("layers", "heads")),
    (r"decoder/layers/o/kernel", ("layers", "heads", "width")),
    (r"decoder/layers/(gate|up)/kernel", ("layers", "width", "hidden")),
    (r"decoder/layers/down/kernel", ("layers", "hidden", "width")),
    (r"decoder/layers/(norm[12]|[qk]_norm)/scale", ("layers", "norm")),
    (r"decoder/norm/scale", ("norm",)),
    (r"lora/layers/\w+/[ab]", None),
    (r"(semantic|spatial|projector)/.*", None),
)

MESH_AXES: Mapping[str, str | None] = {
    "layers": None,
    "norm": None,
    "vocab": "tensor",
    "heads": "tensor",
    "hidden": "tensor",
    "width": "fsdp",
}

BATCH = PartitionSpec(("data", "fsdp"))


def params_sharding(params: Mapping, mesh: Mesh, rules: Rules = RULES) -> dict:
    """Nested dict of arrays (or shapes) -> nested dict of shardings.

    Raises ConfigError naming every path that no row or several rows match, whose rank
    differs from its row, or whose size a mesh axis does not divide.
    """
    flat = trees.flatten(params)
    faults = []
    shardings = {}
    for path, leaf in flat.items():
        rows = [axes for pattern, axes in rules if re.fullmatch(pattern, path)]
        if len(rows) != 1:
            faults.append(f"{path} matches {len(rows)} rules")
            continue
        axes = rows[0]
        if axes is not None and len(axes) != len(leaf.shape):
            faults.append(f"{path} has shape {tuple(leaf.shape)} but axes {axes}")
            continue
        spec = PartitionSpec(*(MESH_AXES[axis] for axis in axes or ()))
        faults += [f"{path} {fault}" for fault in _indivisible(leaf.shape, spec, mesh)]
        shardings[path] = NamedSharding(mesh, spec)
    if faults:
        raise ConfigError(f"sharding: {'; '.join(faults)} (expected exactly one fitting rule)")
    return trees.merge(shardings, {})


def state_sharding(tree, params_shardings: Mapping):
    """Shardings of an optimizer state: moments are sharded as their parameters.

    tree: pytree of arrays or shapes in which moments are keyed by parameter path, as optax
    keys them; everything else (counters) is replicated.
    """
    by_path = trees.flatten(params_shardings)
    mesh = next(iter(by_path.values())).mesh

    def sharding(keys, leaf) -> NamedSharding:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        matches = [by_path[name] for name in names if name in by_path]
        return matches[0] if matches and leaf.shape else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def put(tree, shardings):
    """Host arrays (the same on every process) -> global arrays with `shardings`.

    A global array that already has its sharding is returned as it is.
    """

    def put_leaf(leaf, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        # From numpy: device_put of a device array may give one that cannot be saved.
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_leaf, tree, shardings)


def shard_batch(batch, mesh: Mesh):
    """This process's rows [B, ...] of every array -> global arrays sharded over (data, fsdp).

    Raises ConfigError if the rows do not divide among this process's devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    processes = jax.process_count()

    def shard(leaf) -> jax.Array:
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] * processes % num_batch_shards(mesh):
            raise ConfigError(
                f"batch: an array of shape {leaf.shape} on {processes} process(es), "
                f"expected rows that divide by data x fsdp = {num_batch_shards(mesh)}"
            )
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(shard, batch)


def num_batch_shards(mesh) -> int:
    """Number of shards of a batch: data x fsdp."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def current_batch_shards() -> int:
    """`num_batch_shards` of the mesh that is set; 1 if none is."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_batch_shards(mesh)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Constrains activations x [B, ...] to the sharding of a batch.

    Without it, the partitioner may shard them as the weights that they are multiplied by, and
    sum partial products instead of gathering those weights. Rows that do not divide, as when a
    model answers a single question, stay as they are.
    """
    shards = current_batch_shards()
    is_sharded = shards > 1 and x.shape[0] % shards == 0
    return jax.lax.with_sharding_constraint(x, BATCH) if is_sharded else x


def gather_width(table: jax.Array) -> jax.Array:
    """Constrains table [V, D] to be sharded over tensor alone, as rows with all of D need it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return table
    return jax.lax.with_sharding_constraint(table, PartitionSpec(MESH_AXES["vocab"], None))


def to_host_local(tree):
    """This process's rows of global arrays that are sharded as a batch, as numpy arrays.

    The inverse of `shard_batch`.
    """

    def local_rows(leaf: jax.Array) -> np.ndarray:
        # A tensor axis gives several devices the same rows.
        rows = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])

    return jax.tree.map(local_rows, tree)


def process_allgather(tree):
    """Numpy arrays [rows, ...] of each process -> those of all processes, the same on each."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def _indivisible(shape: Sequence[int], spec: PartitionSpec, mesh: Mesh) -> list[str]:
    return [
        f"{tuple(shape)}: dimension {d} does not divide by {axis} = {mesh.shape[axis]}"
        for d, axis in enumerate(spec)
        if axis is not None and shape[d] % mesh.shape[axis]
    ]
