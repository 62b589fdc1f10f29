"""Log-probabilities of completions, without ever holding [B, T, V]."""

import jax
import jax.numpy as jnp


def token_logps(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    temperature: float = 1.0,
    rows: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and whether it is the likeliest token.

    hidden [B, T, D], table [V, D] (the output's), targets int [B, T] -> float32 [B, T],
    bool [B, T]. The logits exist for at most `rows` rows of the batch at a time, as many as divide
    it (None: as many as keep them under 2^24 numbers), forward and backward.
    """

    def chunk(args):
        h, y = args
        logits = jnp.matmul(h, table.T, preferred_element_type=jnp.float32) / temperature
        chosen = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, -1), logits.argmax(-1) == y

    batch = hidden.shape[0]
    rows = rows or max(1, 2**24 // (targets.shape[1] * table.shape[0]))
    rows = next(r for r in range(min(rows, batch), 0, -1) if batch % r == 0)
    if batch == rows:
        return jax.checkpoint(chunk)((hidden, targets))
    split = lambda x: x.reshape(batch // rows, rows, *x.shape[1:])  # noqa: E731
    logps, hits = jax.lax.map(jax.checkpoint(chunk), (split(hidden), split(targets)))
    return logps.reshape(targets.shape), hits.reshape(targets.shape)
