# SPDX-License-Identifier: Apache-2.0
"""The gradient update: forward, backward and optimizer in one jitted function.

Only parameters that `stage.trainable` matches have gradients and optimizer moments. With
`stage.grad_accum_steps` the batch is processed in microbatches to need less memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.parallel import sharding
from jaxasa.train import optim
from jaxasa.train.state import TrainState


def make_update(stage: config.Stage, mesh: Mesh, loss: Callable) -> Any:
    """Jitted update(state, batch, key) -> (state, metrics), which donates `state`.

    loss(params, batch, key) -> (scalar, metrics). Metrics gain "loss" and "gradient_norm".
    Raises ConfigError for microbatches that do not divide among the devices.
    """
    optimizer = optim.make_optimizer(stage)
    parts, shards = stage.grad_accum_steps, sharding.num_batch_shards(mesh)
    if stage.batch_size // parts % shards:
        raise ConfigError(
            f"{type(stage).__name__}.grad_accum_steps is {parts}, expected parts of the batch of "
            f"{stage.batch_size} that divide by data x fsdp = {shards}"
        )

    def update(state: TrainState, batch, key) -> tuple[TrainState, dict]:
        trainable, frozen = trees.split(state.params, stage.trainable)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def gradient(trainable, batch, key):
            return loss(trees.merge(trainable, frozen), batch, key)

        if parts == 1:
            (value, metrics), grads = gradient(trainable, batch, key)
        else:
            microbatch_gradient = functools.partial(gradient, trainable)
            (value, metrics), grads = accumulate_grads(microbatch_gradient, batch, key, parts)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params = trees.merge(trainable, frozen)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(grads)} | metrics
        return dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state
        ), metrics

    return jax.jit(update, donate_argnums=0)


def make_step(stage: config.Stage, mesh: Mesh, loss: Callable, pad: int) -> Callable:
    """step(state, batch, key) of a training loop: shards this process's rows, then updates.

    pad: id of the padding token, which metrics "tokens" does not count.
    """
    update = make_update(stage, mesh, loss)

    def step(state: TrainState, batch, key) -> tuple[TrainState, dict]:
        sharded = sharding.shard_batch(batch, mesh)
        with jax.transfer_guard("disallow"):
            state, metrics = update(state, sharded, key)
        return state, metrics | _counts(batch, pad)

    return step


def _counts(batch: Mapping[str, np.ndarray], pad: int) -> dict[str, int]:
    """Examples of a batch, of all processes, and tokens of their prompts and replies."""
    processes = jax.process_count()
    counts = {"examples": len(next(iter(batch.values()))) * processes}
    texts = [batch[name] for name in ("prompt", "reply") if name in batch]
    if texts:
        counts["tokens"] = sum(int((x != pad).sum()) for x in texts) * processes
    return counts


def over_microbatches(function: Callable, batch, parts: int):
    """function(batch), which maps rows to rows, computed in `parts` microbatches in turn."""
    if parts == 1:
        return function(batch)

    def concatenate(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(concatenate, jax.lax.map(function, split_microbatches(batch, parts)))


def split_microbatches(batch, parts: int):
    """Arrays [B, ...] -> [parts, B / parts, ...]; part i has the rows i, i + parts, ..."""

    def split(x: jax.Array) -> jax.Array:
        # Strided, so that each part is spread over all devices.
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def accumulate_grads(gradient: Callable, batch, key: jax.Array, parts: int):
    """gradient(batch, key) -> ((value, metrics), grads), averaged over `parts` microbatches.

    Of metrics whose names end in "max", the maximum.
    """

    def add(total, inputs):
        measured, grads = gradient(*inputs)
        return jax.tree.map(jnp.add, total, grads), measured

    inputs = split_microbatches(batch, parts), jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], inputs)
    _, like = jax.eval_shape(gradient, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, (values, metrics) = jax.lax.scan(add, zeros, inputs)
    metrics = {n: x.max() if n.endswith("max") else x.mean() for n, x in metrics.items()}
    return (values.mean(), metrics), jax.tree.map(lambda x: x / parts, total)
