"""What a training step carries along, as one pytree."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasa import config
from jaxasa.core import trees
from jaxasa.parallel import sharding
from jaxasa.train import optim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """step: int32 [], steps done. params: nested dict, all of the model, learning or not.

    opt_state: optax state over the flat dict {path: array} of the trainable parameters.
    reference: those parameters as they were at step 0, where the stage keeps them; else {}.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    reference: dict = dataclasses.field(default_factory=dict)


def stored(params: Mapping, stage: config.Stage, frozen_dtype: str = "float32") -> dict:
    """Nested `params` as a stage keeps them: what it trains in float32, the rest in `frozen_dtype`.

    Arrays of numpy or jax; under `jax.eval_shape` shapes will do. Raises as `optim.split` does.
    """
    trainable, frozen = trees.split(params, stage.trainable)

    def as_type(leaf, dtype):
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)

    return trees.merge(
        {path: as_type(leaf, jnp.float32) for path, leaf in trainable.items()},
        {path: as_type(leaf, jnp.dtype(frozen_dtype)) for path, leaf in frozen.items()},
    )


def shapes(
    params: Mapping,
    stage: config.Stage,
    mesh: Mesh,
    frozen_dtype: str = "float32",
    rules: sharding.Rules = sharding.RULES,
) -> State:
    """`create` of parameters or of their shapes, and nothing is allocated.

    Every leaf is a jax.ShapeDtypeStruct with its sharding. Raises ConfigError as `create` does.
    """
    kept = jax.eval_shape(functools.partial(stored, stage=stage, frozen_dtype=frozen_dtype), params)
    lies = sharding.params_sharding(kept, mesh, rules)
    trainable, _ = trees.split(kept, stage.trainable)
    opt_state = jax.eval_shape(optim.make(stage).init, trainable)
    reference = trainable if stage.keeps_ref_params else {}
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf, lie: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=lie),
        State(jax.ShapeDtypeStruct((), np.int32), kept, opt_state, reference),
        State(whole, lies, *(sharding.state_sharding(x, lies) for x in (opt_state, reference))),
    )


def create(
    params: Mapping,
    stage: config.Stage,
    mesh: Mesh,
    rules: sharding.Rules = sharding.RULES,
    frozen_dtype: str = "float32",
) -> State:
    """State at step 0 that lies on `mesh` by `rules`; `params` hold numpy or jax arrays.

    What of them lies there already, in its type, becomes part of the state, and is not copied.

    Raises ConfigError as `optim.split` and `sharding.params_sharding` do.
    """
    lies = jax.tree.map(
        lambda leaf: leaf.sharding, shapes(params, stage, mesh, frozen_dtype, rules)
    )
    # Only values of plain dicts: flax may give other mappings.
    placed = sharding.place(stored(params, stage, frozen_dtype), lies.params)
    trainable, _ = trees.split(placed, stage.trainable)
    opt_state = jax.jit(optim.make(stage).init, out_shardings=lies.opt_state)(trainable)
    # Copies: an update overwrites what it is given.
    copied = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=lies.reference)
    reference = copied(trainable) if stage.keeps_ref_params else {}
    return State(sharding.place(np.int32(0), lies.step), placed, opt_state, reference)
