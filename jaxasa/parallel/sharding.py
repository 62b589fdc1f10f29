"""How arrays lie on the mesh: one table for parameters, one rule for batches.

A parameter's path ("decoder/layers/q/kernel") matches exactly one row of RULES, which names
the logical axis of each dimension; MESH_AXES says on which mesh axis a logical axis lies.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasa.config import ConfigError
from jaxasa.core import trees

# A row without axes (None) leaves the parameter whole on every device, whatever its rank.
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
        faults += [f"{path} {fault}" for fault in _undivided(leaf.shape, spec, mesh)]
        shardings[path] = NamedSharding(mesh, spec)
    if faults:
        raise ConfigError(f"sharding: {'; '.join(faults)} (expected exactly one fitting rule)")
    return trees.merge(shardings, {})


def state_sharding(tree, params_shardings: Mapping):
    """Shardings of an optimizer state: what lies under a parameter's path lies as it does.

    tree: pytree of arrays or shapes in which moments are keyed by parameter path, as optax
    keys them; anything else (counters) is whole on every device.
    """
    by_path = trees.flatten(params_shardings)
    mesh = next(iter(by_path.values())).mesh

    def place(keys, leaf) -> NamedSharding:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        known = [by_path[name] for name in names if name in by_path]
        return known[0] if known and leaf.shape else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def put(tree, shardings):
    """Host arrays (the same on every process) -> global arrays that lie as `shardings` say.

    A global array that lies so already is returned as it is.
    """

    def one(leaf, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        # From numpy: device_put of a device array may give one that cannot be saved.
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree, shardings)


def shard_batch(batch, mesh: Mesh):
    """This process's rows [B, ...] of every array -> global arrays split over (data, fsdp).

    Raises ConfigError when the rows do not divide among this process's devices.
    """
    sharding = NamedSharding(mesh, BATCH)
    processes = jax.process_count()

    def one(leaf) -> jax.Array:
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] * processes % num_batch_shards(mesh):
            raise ConfigError(
                f"batch: an array of shape {leaf.shape} on {processes} process(es), "
                f"expected rows that divide by data x fsdp = {num_batch_shards(mesh)}"
            )
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(one, batch)


def num_batch_shards(mesh) -> int:
    """Among how many devices of a mesh the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def current_batch_shards() -> int:
    """`num_batch_shards` of the mesh that is set; 1 for none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_batch_shards(mesh)


def constrain_batch(x: jax.Array) -> jax.Array:
    """x [B, ...] kept split by rows over (data, fsdp), as the batch is that it comes from.

    Said for activations, or the partitioner lets them lie as the weights that they meet, and
    adds up partial products in place of gathering those weights. Rows that do not divide, as
    when a model answers one question, lie as they come.
    """
    shares = current_batch_shards()
    split = shares > 1 and x.shape[0] % shares == 0
    return jax.lax.with_sharding_constraint(x, BATCH) if split else x


def gather_width(table: jax.Array) -> jax.Array:
    """table [V, D] whole in its width on every device, to meet rows that are: split over tensor."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return table
    return jax.lax.with_sharding_constraint(table, PartitionSpec(MESH_AXES["vocab"], None))


def to_host_local(tree):
    """This process's rows, as numpy arrays, of global arrays that lie as `shard_batch` lays them.

    The inverse of `shard_batch`.
    """

    def one(leaf: jax.Array) -> np.ndarray:
        # A tensor axis gives several devices the same rows.
        rows = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])

    return jax.tree.map(one, tree)


def process_allgather(tree):
    """Numpy arrays [rows, ...] of each process -> those of all processes, everywhere the same."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def _undivided(shape: Sequence[int], spec: PartitionSpec, mesh: Mesh) -> list[str]:
    return [
        f"{tuple(shape)}: dimension {d} does not divide by {axis} = {mesh.shape[axis]}"
        for d, axis in enumerate(spec)
        if axis is not None and shape[d] % mesh.shape[axis]
    ]
