"""Dense hybrid projector (P2): experts on the dense map and the semantic stream, joined.

The semantic expert reads the semantic stream; direction, distance, reverberation and count
experts read the dense spatial map; the joint expert reads both. Their outputs are
concatenated, normalised, and pass a bottleneck MLP into the decoder's embedding space.

Each expert has an auxiliary head, on in stages 1 and 2. Direction and distance are bound to
classes (ACCDOA, arXiv:2010.15306: a vector a class, its length the activity), so that "what"
and "where" of overlapping sources stay together in one token.

Letters: B batch, A audio tokens, D decoder width, E expert width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config


class Experts(NamedTuple):
    """Auxiliary outputs at token rate.

    tags [B, A, classes]: logits; direction [B, A, classes, 3]; log_distance [B, A, classes];
    reverberation [B, A, 2]: log RT60 and DRR / 10; count [B, A]: sources active.
    """

    tags: jax.Array
    direction: jax.Array
    log_distance: jax.Array
    reverberation: jax.Array
    count: jax.Array


class Projector(nn.Module):
    """semantic [B, A, Ds] and dense [B, A, Dd] -> tokens [B, A, D], Experts."""

    projector: config.Projector
    classes: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, semantic: jax.Array, dense: jax.Array) -> tuple[jax.Array, Experts]:
        p = self.projector

        def expert(name: str, x: jax.Array) -> jax.Array:
            h = jax.nn.gelu(nn.Dense(2 * p.expert, dtype=self.dtype, name=f"{name}_in")(x))
            return nn.Dense(p.expert, dtype=self.dtype, name=f"{name}_out")(h)

        both = jnp.concatenate([semantic, dense], -1)
        names = ("direction", "distance", "reverberation", "count")
        experts = {"semantic": expert("semantic", semantic)}
        experts |= {name: expert(name, dense) for name in names}
        experts["joint"] = expert("joint", both)
        x = jnp.concatenate(list(experts.values()), -1)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = jax.nn.gelu(nn.Dense(p.hidden, dtype=self.dtype, name="bottleneck")(x))
        tokens = nn.Dense(self.width, dtype=self.dtype, name="out")(x)
        return tokens, self._heads(experts)

    def _heads(self, experts: dict[str, jax.Array]) -> Experts:
        head = lambda name, size: nn.Dense(size, name=f"{name}_head")(experts[name])  # noqa: E731
        direction = head("direction", 3 * self.classes)
        return Experts(
            tags=head("semantic", self.classes),
            direction=direction.reshape(*direction.shape[:-1], self.classes, 3),
            log_distance=head("distance", self.classes),
            reverberation=head("reverberation", 2),
            count=head("count", 1)[..., 0],
        )
