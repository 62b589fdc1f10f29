"""Log-probabilities of completions, without ever holding [B, T, V]."""

import jax
import jax.numpy as jnp

from jaxasa.parallel import sharding

# Logits that a device holds at a time.
LIMIT = 2**26


def token_logps(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    temperature: float = 1.0,
    columns: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and whether no token is likelier.

    hidden [B, T, D], table [V, D] (the output's), targets int [B, T] -> float32 [B, T],
    bool [B, T]. The logits exist for at most `columns` moments at a time, as many as divide T
    (None: as many as keep a device's under LIMIT numbers), forward and backward. Time is cut and
    not the batch, whose rows are spread over the devices.
    """

    def chunk(args):
        h, y = args
        h = sharding.by_rows(h)
        logits = jnp.matmul(h, table.T, preferred_element_type=jnp.float32) / temperature
        chosen = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, -1), chosen == logits.max(-1)

    batch, time = targets.shape
    table = sharding.gathered(table)
    own = -(-batch // sharding.row_shares()) * table.shape[0]
    columns = columns or max(1, LIMIT // own)
    columns = next(c for c in range(min(columns, time), 0, -1) if time % c == 0)
    if columns == time:
        # The backward pass begins with these logits: made again they would take no less room.
        return chunk((hidden, targets))

    def split(x):
        """[B, T, ...] -> [T / columns, B, columns, ...]."""
        return jnp.moveaxis(x.reshape(batch, time // columns, columns, *x.shape[2:]), 1, 0)

    found = jax.lax.map(jax.checkpoint(chunk), (split(hidden), split(targets)))
    logps, hits = (jnp.moveaxis(x, 0, 1).reshape(batch, time) for x in found)
    return logps, hits
