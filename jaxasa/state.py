"""What a training step carries along, as one pytree."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasa import config, optim, sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """step: int32 [], steps done. params: nested dict, all of the model, learning or not.

    opt_state: optax state over the flat dict {path: array} of the trainable parameters.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def stored(params: Mapping, stage: config.Stage, frozen_dtype: str = "float32") -> dict:
    """Nested `params` as a stage keeps them: what it trains in float32, the rest in `frozen_dtype`.

    Arrays of numpy or jax; under `jax.eval_shape` shapes will do. Raises as `optim.split` does.
    """
    trainable, frozen = optim.split(params, stage.trainable)
    return optim.merge(
        {path: leaf.astype(np.float32) for path, leaf in trainable.items()},
        {path: leaf.astype(jnp.dtype(frozen_dtype)) for path, leaf in frozen.items()},
    )


def create(
    params: Mapping,
    stage: config.Stage,
    mesh: Mesh,
    rules: sharding.Rules = sharding.RULES,
    frozen_dtype: str = "float32",
) -> State:
    """State at step 0 that lies on `mesh` by `rules`; `params` hold numpy or jax arrays.

    Raises ConfigError as `optim.split` and `sharding.params_sharding` do.
    """
    shardings = sharding.params_sharding(params, mesh, rules)
    whole = NamedSharding(mesh, PartitionSpec())
    # Only values of plain dicts: flax may give other mappings.
    placed = sharding.place(stored(params, stage, frozen_dtype), shardings)
    trainable, _ = optim.split(placed, stage.trainable)
    start = optim.make(stage).init
    lies = sharding.state_sharding(jax.eval_shape(start, trainable), shardings)
    opt_state = jax.jit(start, out_shardings=lies)(trainable)
    return State(sharding.place(np.int32(0), whole), placed, opt_state)


def shapes(
    params: Mapping, stage: config.Stage, mesh: Mesh, frozen_dtype: str = "float32"
) -> State:
    """`create` of shapes: the state's, each with its sharding, and nothing is allocated."""
    shardings = sharding.params_sharding(params, mesh)
    kept = jax.eval_shape(lambda params: stored(params, stage, frozen_dtype), dict(params))
    placed = jax.tree.map(_lies, kept, shardings)
    trainable, _ = optim.split(placed, stage.trainable)
    opt_state = jax.eval_shape(optim.make(stage).init, trainable)
    opt_state = jax.tree.map(_lies, opt_state, sharding.state_sharding(opt_state, shardings))
    whole = NamedSharding(mesh, PartitionSpec())
    return State(jax.ShapeDtypeStruct((), np.int32, sharding=whole), placed, opt_state)


def _lies(shape, lies: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=lies)
