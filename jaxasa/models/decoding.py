"""Weights and cache as the loop over new tokens reads them fastest.

Where all layers are compiled side by side (`Model.unroll`), each layer's arrays are taken out of
the stack once, before the loop: XLA on the CPU copies a slice of a stacked array at every step.
Kernels then lie as [out, in] and stand on the left of their products, which takes a CPU half the
time for few rows. Large ones lie in pieces, since XLA multiplies a matrix by one column on one
thread, but unrelated products side by side. Below that `unroll`, the stack is scanned as it is and
nothing is stored twice.
"""

import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa.models.asa import ASA, Params
from jaxasa.models.decoder import Block, Cache, by_rows

Caches = Cache | list[Cache]

_PIECE = 2**19  # numbers of a kernel that are worth a thread


class Prepared(NamedTuple):
    """Variables of each layer, and the output's table [V, D] in pieces."""

    layers: list[dict]
    table: tuple[jax.Array, ...]


def prepare(asa: ASA, params: Params, adapted: bool) -> Prepared | None:
    """Weights for `step`, made outside the loop; None: the stack is scanned."""
    if not _is_apart(asa):
        return None
    stack, lora = params["decoder"]["layers"], params["lora"]["layers"] if adapted else {}
    if asa.dtype == jnp.float32:
        # Adapters are added to their kernels. In bfloat16 these would round them away.
        stack, lora = stack | {name: _adapted(asa, stack[name], lora[name]) for name in lora}, {}
    layers = []
    for i, layer in enumerate(_apart(asa, stack)):
        turned = {name: _outputs_first(part, asa.dtype) for name, part in layer.items()}
        layers.append({"params": turned})
        if lora:
            layers[i]["lora"] = jax.tree.map(lambda x, i=i: x[i], lora)
    return Prepared(layers, _pieces(asa.table(params)))


def caches(asa: ASA, cache: Cache) -> Caches:
    """The cache in the form that `step` takes and gives."""
    return _apart(asa, cache) if _is_apart(asa) else cache


def step(
    asa: ASA,
    params: Params,
    prepared: Prepared | None,
    x: jax.Array,
    cache: Caches,
    positions,
    prompt_mask,
    at,
    adapted: bool,
) -> tuple[jax.Array, Caches]:
    """One token a row: x [B, 1, D], positions [B, 1] -> logits [B, V], cache.

    prepared: of `prepare`. at: how many tokens the completions hold before.
    """
    if prepared is None:
        return asa.decode(params, x, cache, positions, prompt_mask, at, adapted)
    d = asa.model.decoder
    block, after = Block(d, asa.model.lora, asa.dtype), []
    for variables, layer in zip(prepared.layers, cache, strict=True):
        x, (k, v) = block.apply(variables, x, layer, positions, prompt_mask, at, method="decode")
        after.append(layer._replace(k=k, v=v))
    norm = nn.RMSNorm(epsilon=d.norm_eps, dtype=asa.dtype)
    hidden = norm.apply({"params": params["decoder"]["norm"]}, x[:, 0])
    return by_rows(hidden, prepared.table, jnp.float32), after


def _adapted(asa: ASA, part: dict, lora: dict) -> dict:
    """A projection of all layers, kernel [L, in, out], with its adapter in it."""
    scale = asa.model.lora.alpha / asa.model.lora.rank
    return part | {"kernel": part["kernel"] + scale * jnp.matmul(lora["a"], lora["b"])}


def _is_apart(asa: ASA) -> bool:
    return asa.model.unroll >= asa.model.decoder.layers


def _outputs_first(part: dict, dtype) -> dict:
    """One layer's projection with "rows" [out, in], in pieces, in place of "kernel" [in, out]."""
    if "kernel" not in part:
        return part
    rest = {name: leaf for name, leaf in part.items() if name != "kernel"}
    return rest | {"rows": _pieces(part["kernel"].T.astype(dtype))}


def _pieces(rows: jax.Array) -> tuple[jax.Array, ...]:
    threads = os.cpu_count() if jax.default_backend() == "cpu" else 1
    return tuple(jnp.array_split(rows, max(1, min(threads or 1, rows.size // _PIECE))))


def _apart(asa: ASA, tree) -> list:
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(asa.model.decoder.layers)]
