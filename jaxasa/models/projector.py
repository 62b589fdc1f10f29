"""Projectors: from the semantic stream and the dense spatial map to the decoder's embeddings.

All kinds make six parts of E numbers a token, one of each of NAMES. These are concatenated in that
order, normalised (epsilon 1e-6), and pass a bottleneck MLP (GELU, tanh approximation, as
everywhere here) into the decoder's embedding space. They differ in what makes the parts:

    p2  dense hybrid: an MLP of its own for each part, hidden width 2 E. The semantic expert reads
        the semantic stream; direction, distance, reverberation and count experts read the dense
        map; the joint expert reads both.
    p1  dual tower: an MLP on the semantic stream makes the semantic and the joint part, one on the
        dense map the four others.
    p0  single MLP: one on both streams makes all six.

Hidden widths of p0 and p1 are such that all kinds have equally many parameters (`hidden_width`).

Parts but the joint one have an auxiliary head each, on in stages 1 and 2, in all kinds: kinds
are told apart by their structure, not by what they are taught. Direction and distance are bound
to classes (ACCDOA, arXiv:2010.15306: a vector a class, its length the activity), so that "what"
and "where" of overlapping sources stay together in one token.

What the slots say has tokens of its own before those, one a slot, by one MLP in all kinds: there a
decoder finds in a single place what the map spreads over time. With Projector.slot_tokens False they are
the same for all sounds.

Letters: B batch, S slots, A tokens of the map, D decoder width, E expert width.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config

NAMES = config.EXPERTS


class Experts(NamedTuple):
    """Auxiliary outputs at token rate; None for an expert that is left out.

    tags [B, A, classes]: logits; direction [B, A, classes, 3]; log_distance [B, A, classes];
    reverberation [B, A, 2]: log RT60 and DRR / 10; count [B, A]: sources active.
    """

    tags: jax.Array | None
    direction: jax.Array | None
    log_distance: jax.Array | None
    reverberation: jax.Array | None
    count: jax.Array | None  # type: ignore[assignment]


def hidden_width(kind: str, expert: int, semantic: int, dense: int) -> int:
    """Hidden width of the MLPs of "p0" or "p1" that costs as much as the experts of "p2".

    expert: E; semantic, dense: widths of the two streams. What remains is a rounding of the width.
    """
    if kind == "p2":
        return 2 * expert
    inputs = (semantic, *[dense] * 4, semantic + dense)
    budget = sum((n + 1 + expert) * 2 * expert + expert for n in inputs)
    biases = {"p0": 1, "p1": 2}[kind]
    parts = len(NAMES) * expert
    return round((budget - parts) / (semantic + dense + biases + parts))


class Projector(nn.Module):
    """semantic [B, A, Ds], dense [B, A, Dd], said [B, S, K] -> tokens [B, S + A, D], Experts.

    said: spatial.statements. Experts are of the map's A tokens.
    """

    projector: config.Projector
    classes: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, semantic: jax.Array, dense: jax.Array, said: jax.Array
    ) -> tuple[jax.Array, Experts]:
        parts = self._parts(semantic, dense)
        x = jnp.concatenate(list(parts.values()), -1)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = nn.Dense(self.projector.hidden_width, dtype=self.dtype, name="bottleneck")(x)
        tokens = nn.Dense(self.width, dtype=self.dtype, name="out")(jax.nn.gelu(x))
        said = said if self.projector.slot_tokens else jnp.zeros_like(said)
        y = nn.Dense(self.projector.hidden_width, dtype=self.dtype, name="slots_in")(said)
        y = nn.Dense(self.width, dtype=self.dtype, name="slots_out")(jax.nn.gelu(y))
        return jnp.concatenate([y, tokens], 1), self._heads(parts)

    def _parts(self, semantic: jax.Array, dense: jax.Array) -> dict[str, jax.Array]:
        """{name: [B, A, E]} of NAMES, but those of Projector.drop_experts."""
        p = self.projector
        hidden = hidden_width(p.kind, p.expert_width, semantic.shape[-1], dense.shape[-1])

        def mlp(name: str, x: jax.Array, parts: int = 1) -> list[jax.Array]:
            h = jax.nn.gelu(nn.Dense(hidden, dtype=self.dtype, name=f"{name}_in")(x))
            out = nn.Dense(parts * p.expert_width, dtype=self.dtype, name=f"{name}_out")(h)
            return jnp.split(out, parts, -1)

        both = jnp.concatenate([semantic, dense], -1)
        if p.kind == "p0":
            return dict(zip(NAMES, mlp("trunk", both, len(NAMES)), strict=True))
        if p.kind == "p1":
            first, last = mlp("semantic", semantic, 2)
            return dict(zip(NAMES, [first, *mlp("spatial", dense, 4), last], strict=True))
        read = dict.fromkeys(NAMES, dense) | {"semantic": semantic, "joint": both}
        return {name: mlp(name, read[name])[0] for name in NAMES if name not in p.drop_experts}

    def _heads(self, parts: dict[str, jax.Array]) -> Experts:
        def head(name: str, size: int) -> jax.Array | None:
            # No dtype: in float32, as the losses are.
            return nn.Dense(size, name=f"{name}_head")(parts[name]) if name in parts else None

        direction, count = head("direction", 3 * self.classes), head("count", 1)
        if direction is not None:
            direction = direction.reshape(*direction.shape[:-1], self.classes, 3)
        return Experts(
            tags=head("semantic", self.classes),
            direction=direction,
            log_distance=head("distance", self.classes),
            reverberation=head("reverberation", 2),
            count=None if count is None else count[..., 0],
        )
