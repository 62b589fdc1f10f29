# SPDX-License-Identifier: Apache-2.0
"""The training state: step, parameters, optimizer state, reference parameters, as one pytree."""

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
class TrainState:
    """step: int32 [], steps done. params: nested dict of all parameters, trainable or frozen.

    opt_state: optax state over the flat dict {path: array} of the trainable parameters.
    ref_params: those parameters as they were at step 0, if the stage keeps them; else {}.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ref_params: dict = dataclasses.field(default_factory=dict)


def cast_params(params: Mapping, stage: config.Stage, frozen_dtype: str = "float32") -> dict:
    """Nested `params` in the types that a stage stores: trainable ones in float32, the others in
    `frozen_dtype`.

    Takes numpy or jax arrays; under `jax.eval_shape`, shapes. Raises ConfigError as `trees.split`.
    """
    trainable, frozen = trees.split(params, stage.trainable)

    def cast(leaf, dtype):
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)

    return trees.merge(
        {path: cast(leaf, jnp.float32) for path, leaf in trainable.items()},
        {path: cast(leaf, jnp.dtype(frozen_dtype)) for path, leaf in frozen.items()},
    )


def abstract_state(
    params: Mapping,
    stage: config.Stage,
    mesh: Mesh,
    frozen_dtype: str = "float32",
    rules: sharding.Rules = sharding.RULES,
) -> TrainState:
    """The result of `create` as shapes: each leaf a jax.ShapeDtypeStruct with its sharding.

    params: arrays or shapes. Nothing is allocated. Raises ConfigError as `create` does.
    """
    cast = functools.partial(cast_params, stage=stage, frozen_dtype=frozen_dtype)
    shapes = jax.eval_shape(cast, params)
    trainable, _ = trees.split(shapes, stage.trainable)
    opt_state = jax.eval_shape(optim.make_optimizer(stage).init, trainable)
    ref_params = trainable if stage.keeps_ref_params else {}
    replicated = NamedSharding(mesh, PartitionSpec())
    of_params = sharding.params_sharding(shapes, mesh, rules)
    of_others = (sharding.state_sharding(x, of_params) for x in (opt_state, ref_params))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        TrainState(jax.ShapeDtypeStruct((), np.int32), shapes, opt_state, ref_params),
        TrainState(replicated, of_params, *of_others),
    )


def create(
    params: Mapping,
    stage: config.Stage,
    mesh: Mesh,
    rules: sharding.Rules = sharding.RULES,
    frozen_dtype: str = "float32",
) -> TrainState:
    """State at step 0 on `mesh`, sharded by `rules`; `params` hold numpy or jax arrays.

    Arrays that already have their type and sharding become part of the state without a copy.
    Raises ConfigError as `trees.split` and `sharding.params_sharding` do.
    """
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(params, stage, mesh, frozen_dtype, rules)
    )
    # Only values of plain dicts: flax may give other mappings.
    placed = sharding.put(cast_params(params, stage, frozen_dtype), shardings.params)
    trainable, _ = trees.split(placed, stage.trainable)
    init = jax.jit(optim.make_optimizer(stage).init, out_shardings=shardings.opt_state)
    # Copies: an update donates its state.
    copy = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=shardings.ref_params)
    ref_params = copy(trainable) if stage.keeps_ref_params else {}
    step = sharding.put(np.int32(0), shardings.step)
    return TrainState(step, placed, init(trainable), ref_params)
