"""Semantic encoder: Whisper's, of any size (arXiv:2212.04356), on the W channel.

Clips are not padded to 30 s: positions are sliced to the clip's length. A clip that is padded to
share a compiled shape with others gives the same frames as without its padding: what lies beyond
its end is zero before each convolution, as at the end of an array, and nothing attends to it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.models.layers import Blocks, heard_frames, sinusoids

FRAMES_PER_SECOND = 50


class Semantic(nn.Module):
    """log-mel [B, 2T, M] -> [B, T // pool, D], 50 / pool frames a second."""

    semantic: config.Semantic
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, log_mel: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """frames [B]: how many of the 2T are the clip's; None: all. Outputs after them are void."""
        s = self.semantic
        real = heard_frames(frames, log_mel.shape[1])
        keep = lambda x: x if real is None else jnp.where(real[..., None], x, 0)  # noqa: E731
        conv = lambda stride, name: nn.Conv(  # noqa: E731
            s.width, (3,), (stride,), padding=((1, 1),), dtype=self.dtype, name=name
        )
        x = jax.nn.gelu(conv(1, "conv1")(keep(log_mel).astype(self.dtype)), approximate=False)
        x = jax.nn.gelu(conv(2, "conv2")(keep(x)), approximate=False)
        limit = int(s.max_seconds * FRAMES_PER_SECOND)
        if x.shape[1] > limit:
            raise ValueError(f"{x.shape[1]} frames, expected at most {limit}")
        x = x + sinusoids(limit, s.width)[: x.shape[1]].astype(self.dtype)
        mask = None if real is None else real[:, ::2]
        x = Blocks(s.heads, s.layers, self.unroll, self.dtype, name="blocks")(x, mask)
        if s.pool > 1:
            # As in Qwen2-Audio: frames that do not fill a mean are dropped.
            x = nn.avg_pool(x, (s.pool,), (s.pool,))
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
