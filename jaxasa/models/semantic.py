"""Semantic encoder: Whisper's, of any size (arXiv:2212.04356), on the W channel.

Clips are not padded to 30 s: positions are sliced to the clip's length.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.models.layers import Blocks, sinusoids

FRAMES_PER_SECOND = 50


class Semantic(nn.Module):
    """log-mel [B, 2T, M] -> [B, T // pool, D], 50 / pool frames a second."""

    semantic: config.Semantic
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, log_mel: jax.Array) -> jax.Array:
        s = self.semantic
        conv = lambda stride, name: nn.Conv(  # noqa: E731
            s.width, (3,), (stride,), padding=((1, 1),), dtype=self.dtype, name=name
        )
        x = jax.nn.gelu(conv(1, "conv1")(log_mel.astype(self.dtype)), approximate=False)
        x = jax.nn.gelu(conv(2, "conv2")(x), approximate=False)
        limit = int(s.max_seconds * FRAMES_PER_SECOND)
        if x.shape[1] > limit:
            raise ValueError(f"{x.shape[1]} frames, expected at most {limit}")
        x = x + sinusoids(limit, s.width)[: x.shape[1]].astype(self.dtype)
        x = Blocks(s.heads, s.layers, self.unroll, self.dtype, name="blocks")(x)
        if s.pool > 1:
            # As in Qwen2-Audio: frames that do not fill a mean are dropped.
            x = nn.avg_pool(x, (s.pool,), (s.pool,))
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
