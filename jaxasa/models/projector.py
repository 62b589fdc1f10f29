# SPDX-License-Identifier: Apache-2.0
"""Projectors: from the semantic stream and the dense spatial map to the decoder's embeddings.

The three kinds of arXiv:2601.02954. Each makes six parts of E numbers for a token, one for each of
config.EXPERTS. These are concatenated in that order, normalised (epsilon 1e-6), and mapped by a
bottleneck MLP (GELU, tanh approximation, as everywhere here) to the decoder's embedding space. The
kinds differ in the networks that make the parts:

    p2  dense hybrid: one MLP ("expert") for each part, hidden width 2 E. The semantic expert reads
        the semantic stream; direction, distance, reverberation and count experts read the dense
        map; the joint expert reads both.
    p1  dual tower: an MLP on the semantic stream makes the semantic and the joint part, one on the
        dense map the four others.
    p0  single MLP: one on both streams makes all six.

Hidden widths of p0 and p1 are chosen so that all kinds have the same number of parameters
(`matched_hidden_width`).

In all kinds, each part but the joint one has an auxiliary head, whose losses are on in stages
spatial and align: kinds differ in structure, not in supervision. Direction and distance are
estimated per class (ACCDOA, arXiv:2010.15306: one vector per class, whose length is its activity),
so that "what" and "where" of overlapping sources stay together in one token.

In front of the map's tokens stands one token for each slot, by one MLP over its features in all
kinds. With `Projector.slot_tokens` False their input is zero, an ablation with the same number of
tokens.

Shapes: B batch, S slots, A tokens of the map, D decoder width, E expert width, Ds, Dd widths of
the streams, K slot features.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.config import EXPERTS


class ExpertOutputs(NamedTuple):
    """Auxiliary outputs of the experts for each token; None for one of Projector.drop_experts.

    tags [B, A, classes]: logits. direction [B, A, classes, 3]: ACCDOA vectors. log_distance
    [B, A, classes]: natural log of metres. reverberation [B, A, 2]: log RT60 (s) and DRR / 10 (dB).
    count [B, A]: active sources.
    """

    tags: jax.Array | None
    direction: jax.Array | None
    log_distance: jax.Array | None
    reverberation: jax.Array | None
    count: jax.Array | None  # type: ignore[assignment]


def matched_hidden_width(kind: str, expert: int, semantic: int, dense: int) -> int:
    """Hidden width of the MLPs that gives a kind as many parameters as "p2" has, up to rounding.

    expert: E. semantic, dense: Ds and Dd.
    """
    if kind == "p2":
        return 2 * expert
    inputs = (semantic, *[dense] * 4, semantic + dense)
    budget = sum((n + 1 + expert) * 2 * expert + expert for n in inputs)
    biases = {"p0": 1, "p1": 2}[kind]
    parts = len(EXPERTS) * expert
    return round((budget - parts) / (semantic + dense + biases + parts))


class Projector(nn.Module):
    """Both streams and the slot features to audio embeddings, and the auxiliary outputs.

    semantic [B, A, Ds], dense [B, A, Dd], slot_features [B, S, K] (see spatial.slot_features) ->
    embeddings [B, S + A, D], ExpertOutputs of the map's A tokens.
    """

    projector: config.Projector
    num_classes: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, semantic: jax.Array, dense: jax.Array, slot_features: jax.Array
    ) -> tuple[jax.Array, ExpertOutputs]:
        p = self.projector
        parts = self._parts(semantic, dense)
        x = jnp.concatenate(list(parts.values()), -1)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        x = nn.Dense(p.hidden_width, dtype=self.dtype, name="bottleneck")(x)
        map_tokens = nn.Dense(self.width, dtype=self.dtype, name="out")(jax.nn.gelu(x))
        slots = slot_features if p.slot_tokens else jnp.zeros_like(slot_features)
        slots = nn.Dense(p.hidden_width, dtype=self.dtype, name="slots_in")(slots)
        slot_tokens = nn.Dense(self.width, dtype=self.dtype, name="slots_out")(jax.nn.gelu(slots))
        return jnp.concatenate([slot_tokens, map_tokens], 1), self._auxiliary(parts)

    def _parts(self, semantic: jax.Array, dense: jax.Array) -> dict[str, jax.Array]:
        """{expert: [B, A, E]}, in the order of EXPERTS, without Projector.drop_experts."""
        p = self.projector
        hidden = matched_hidden_width(p.kind, p.expert_width, semantic.shape[-1], dense.shape[-1])

        def mlp(name: str, x: jax.Array, parts: int = 1) -> list[jax.Array]:
            h = jax.nn.gelu(nn.Dense(hidden, dtype=self.dtype, name=f"{name}_in")(x))
            out = nn.Dense(parts * p.expert_width, dtype=self.dtype, name=f"{name}_out")(h)
            return jnp.split(out, parts, -1)

        both = jnp.concatenate([semantic, dense], -1)
        if p.kind == "p0":
            return dict(zip(EXPERTS, mlp("trunk", both, len(EXPERTS)), strict=True))
        if p.kind == "p1":
            content, joint = mlp("semantic", semantic, 2)
            return dict(zip(EXPERTS, [content, *mlp("spatial", dense, 4), joint], strict=True))
        inputs = dict.fromkeys(EXPERTS, dense) | {"semantic": semantic, "joint": both}
        return {name: mlp(name, inputs[name])[0] for name in EXPERTS if name not in p.drop_experts}

    def _auxiliary(self, parts: dict[str, jax.Array]) -> ExpertOutputs:
        """One linear head for each expert but the joint one."""

        def head(name: str, size: int) -> jax.Array | None:
            # No dtype: the heads compute in float32, as the losses do.
            return nn.Dense(size, name=f"{name}_head")(parts[name]) if name in parts else None

        direction, count = head("direction", 3 * self.num_classes), head("count", 1)
        if direction is not None:
            direction = direction.reshape(*direction.shape[:-1], self.num_classes, 3)
        return ExpertOutputs(
            tags=head("semantic", self.num_classes),
            direction=direction,
            log_distance=head("distance", self.num_classes),
            reverberation=head("reverberation", 2),
            count=None if count is None else count[..., 0],
        )
