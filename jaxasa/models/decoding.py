# SPDX-License-Identifier: Apache-2.0
"""Weights and KV cache in the layout that the decoding loop reads fastest.

If all layers are unrolled (`Model.unroll`), each layer's arrays are taken out of the stack once,
before the loop over new tokens: XLA on CPU would copy a slice of a stacked array at every step.
Kernels are then stored as [out, in] and stand left in their products, which halves a CPU's time
for few rows. Large kernels are split into pieces, since XLA multiplies a matrix by one column on
one thread, but independent products in parallel. With a smaller `unroll` the stack is scanned as
it is, and nothing is stored twice.

Shapes: as in models/decoder.py.
"""

import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa.models.asa import ASA, Params
from jaxasa.models.decoder import Block, KVCache, small_batch_matmul

DecodeCache = KVCache | list[KVCache]

_MIN_PIECE_SIZE = 2**19  # elements of a kernel that are worth a thread


class DecodeWeights(NamedTuple):
    """Flax variables of each layer, and the output matrix [V, D] in pieces of its rows."""

    layers: list[dict]
    unembedding: tuple[jax.Array, ...]


def prepare_weights(asa: ASA, params: Params) -> DecodeWeights | None:
    """Weights for `decode_step`, made outside the loop; None if the stack is scanned as it is."""
    if not _is_unrolled(asa):
        return None
    stack, lora = params["decoder"]["layers"], params.get("lora", {"layers": {}})["layers"]
    if asa.dtype == jnp.float32:
        # Adapters are merged into their kernels. In bfloat16 rounding would lose them.
        merged = {name: _merge_adapter(asa, stack[name], lora[name]) for name in lora}
        stack, lora = stack | merged, {}
    layers = []
    for i, layer in enumerate(_unstack_layers(asa, stack)):
        transposed = {name: _transpose_kernel(part, asa.dtype) for name, part in layer.items()}
        layers.append({"params": transposed})
        if lora:
            layers[i]["lora"] = jax.tree.map(lambda x, i=i: x[i], lora)
    return DecodeWeights(layers, _split_rows(asa.unembedding(params)))


def prepare_cache(asa: ASA, cache: KVCache) -> DecodeCache:
    """The KV cache in the form that `decode_step` takes and returns."""
    return _unstack_layers(asa, cache) if _is_unrolled(asa) else cache


def decode_step(
    asa: ASA,
    params: Params,
    weights: DecodeWeights | None,
    x: jax.Array,
    cache: DecodeCache,
    positions,
    prompt_mask,
    step,
) -> tuple[jax.Array, DecodeCache]:
    """One token for each row: x [R, 1, D], positions [R, 1] -> logits [R, V], the cache.

    weights: from `prepare_weights`. prompt_mask [B, P]. step: tokens that the completions have.
    """
    if weights is None:
        return asa.decode_step(params, x, cache, positions, prompt_mask, step)
    d = asa.model.decoder
    block, layers = Block(d, asa.model.lora, asa.dtype), []
    for variables, layer in zip(weights.layers, cache, strict=True):
        x, (k, v) = block.apply(
            variables, x, layer, positions, prompt_mask, step, method="decode_step"
        )
        layers.append(layer._replace(k=k, v=v))
    norm = nn.RMSNorm(epsilon=d.norm_eps, dtype=asa.dtype)
    hidden = norm.apply({"params": params["decoder"]["norm"]}, x[:, 0])
    return small_batch_matmul(hidden, weights.unembedding, jnp.float32), layers


def _is_unrolled(asa: ASA) -> bool:
    return asa.model.unroll >= asa.model.decoder.layers


def _merge_adapter(asa: ASA, part: dict, lora: dict) -> dict:
    """A projection of all layers, kernel [Z, in, out], with its adapter merged into it."""
    scale = asa.model.lora.alpha / asa.model.lora.rank
    return part | {"kernel": part["kernel"] + scale * jnp.matmul(lora["a"], lora["b"])}


def _transpose_kernel(part: dict, dtype) -> dict:
    """One layer's projection with "kernel_rows" [out, in], in pieces, for "kernel" [in, out]."""
    if "kernel" not in part:
        return part
    rest = {name: leaf for name, leaf in part.items() if name != "kernel"}
    return rest | {"kernel_rows": _split_rows(part["kernel"].T.astype(dtype))}


def _split_rows(matrix: jax.Array) -> tuple[jax.Array, ...]:
    threads = os.cpu_count() if jax.default_backend() == "cpu" else 1
    pieces = max(1, min(threads or 1, matrix.size // _MIN_PIECE_SIZE))
    return tuple(jnp.array_split(matrix, pieces))


def _unstack_layers(asa: ASA, tree) -> list:
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(asa.model.decoder.layers)]
