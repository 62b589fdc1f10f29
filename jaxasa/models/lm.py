# SPDX-License-Identifier: Apache-2.0
"""Token log-probabilities, without ever materializing the logits [B, T, V] at once.

Shapes: B batch, T positions, D width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from jaxasa.parallel import sharding

# Logits that a device materializes at a time.
MAX_LOGITS = 2**26


def token_logps(
    hidden: jax.Array,
    unembedding: jax.Array,
    targets: jax.Array,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target under softmax(logits / temperature), and if it is the argmax.

    hidden [B, T, D], unembedding [V, D], targets int [B, T] -> float32 [B, T], bool [B, T].

    Chunked over time, forward and backward: logits of at most `chunk_size` positions exist at a
    time, of as many as divide T (None: as many as keep a device's logits under MAX_LOGITS). Time is
    chunked and not the batch, since the rows of the batch are spread over the devices.
    """

    def chunk(args):
        h, y = args
        h = sharding.constrain_batch(h)
        logits = jnp.matmul(h, unembedding.T, preferred_element_type=jnp.float32) / temperature
        chosen = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, -1), chosen == logits.max(-1)

    batch, time = targets.shape
    unembedding = sharding.gather_width(unembedding)
    per_position = -(-batch // sharding.current_batch_shards()) * unembedding.shape[0]
    chunk_size = chunk_size or max(1, MAX_LOGITS // per_position)
    chunk_size = next(c for c in range(min(chunk_size, time), 0, -1) if time % c == 0)
    if chunk_size == time:
        # The backward pass begins with these logits: recomputing them would save no memory.
        return chunk((hidden, targets))

    def split(x):
        """[B, T, ...] -> [T / chunk_size, B, chunk_size, ...]."""
        return jnp.moveaxis(x.reshape(batch, time // chunk_size, chunk_size, *x.shape[2:]), 1, 0)

    chunks = jax.lax.map(jax.checkpoint(chunk), (split(hidden), split(targets)))
    logps, hits = (jnp.moveaxis(x, 0, 1).reshape(batch, time) for x in chunks)
    return logps, hits
