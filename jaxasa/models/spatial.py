"""Spatial encoder: FOA features to a dense time map, attractor slots, and room estimates.

A conv stem over frequency and time, transformer layers over time, then an LSTM
encoder-decoder that emits one attractor a slot (EEND-EDA, arXiv:2005.09921). A slot's
direction is equivariant at its core: a weighted mean of the measured intensity vectors,
weights by slot and mel band, plus a bounded learnt residual.

Letters: B batch, T frames (25 a second), S slots, D width, M mel bands.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.data import features
from jaxasa.models.layers import Blocks, resample_time

SLOT_RATE = 5


class Slots(NamedTuple):
    """What each slot says. `direction` is a mean of unit vectors in time, not normalised.

    presence [B, S] and label [B, S, classes]: logits; activity [B, S, T]: logits;
    direction_in_time [B, S, T, 3] (x, y, z); direction [B, S, 3]; log_distance [B, S] (natural
    log of metres).
    """

    presence: jax.Array
    label: jax.Array
    activity: jax.Array
    direction_in_time: jax.Array
    direction: jax.Array
    log_distance: jax.Array


class Room(NamedTuple):
    """Estimates for the room, [B] each: log RT60 (s), log volume (m3), DRR / 10 (dB), count."""

    log_rt60: jax.Array
    log_volume: jax.Array
    drr: jax.Array
    count: jax.Array


class Heard(NamedTuple):
    """dense [B, T, D], slots, room."""

    dense: jax.Array
    slots: Slots
    room: Room


def unit(v: jax.Array) -> jax.Array:
    return v / jnp.sqrt(jnp.sum(v**2, -1, keepdims=True) + 1e-6)


class Spatial(nn.Module):
    """FOA [B, N, 4] -> Heard."""

    spatial: config.Spatial
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, audio: jax.Array) -> Heard:
        s = self.spatial
        vectors = features.intensity(audio, s.fft, s.hop, s.mels)
        x = vectors if s.features == "intensity" else features.foa_stft(audio, s.fft, s.hop)
        # Two feature frames to one of the map; the odd one at the end of a centred STFT is dropped.
        frames = x.shape[1] // 2
        dense = self._dense(x[:, : 2 * frames].astype(self.dtype))
        field = vectors[:, : 2 * frames, :, 1:4]
        field = field.reshape(field.shape[0], frames, 2, s.mels, 3).mean(2)
        slots = self._slots(dense, field)
        pooled = jnp.concatenate([dense.mean(1), dense.max(1)], -1)
        hidden = jax.nn.gelu(nn.Dense(s.width, dtype=self.dtype, name="room_hidden")(pooled))
        room = nn.Dense(4, name="room")(hidden)
        return Heard(dense, slots, Room(*jnp.moveaxis(room, -1, 0)))

    def _dense(self, x: jax.Array) -> jax.Array:
        s = self.spatial
        for i, channels in enumerate(s.channels):
            stride = (2, 2) if i == 1 else (1, 2)
            x = nn.Conv(channels, (3, 3), stride, dtype=self.dtype, name=f"stem{i}")(x)
            x = jax.nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"stem_norm{i}")(x))
        x = nn.Dense(s.width, dtype=self.dtype, name="stem_out")(x.reshape(*x.shape[:2], -1))
        x = Blocks(s.heads, s.layers, self.unroll, self.dtype, name="blocks")(x)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)

    def _attractors(self, dense: jax.Array) -> jax.Array:
        """dense [B, T, D] -> [B, S, D]: an LSTM reads the map, another writes one a slot."""
        s = self.spatial
        coarse = resample_time(dense, max(1, dense.shape[1] * SLOT_RATE // 25))
        reader = nn.RNN(nn.OptimizedLSTMCell(s.width, name="reader"), return_carry=True)
        carry, _ = reader(coarse)
        writer = nn.RNN(nn.OptimizedLSTMCell(s.width, name="writer"))
        start = self.param("slots", nn.initializers.normal(0.5), (s.slots, s.width))
        start = jnp.broadcast_to(start, (dense.shape[0], *start.shape)).astype(dense.dtype)
        return writer(start, initial_carry=carry)

    def _slots(self, dense: jax.Array, field: jax.Array) -> Slots:
        s = self.spatial
        attractors = self._attractors(dense)
        keys = nn.Dense(s.width, dtype=self.dtype, name="activity_keys")(dense)
        activity = jnp.einsum("btd,bsd->bst", keys, attractors) / s.width**0.5
        bias = self.param("activity_bias", nn.initializers.zeros, ())
        activity = (activity + bias).astype(jnp.float32)
        weights = jax.nn.softmax(activity, -1)
        seen = nn.Dense(s.width, dtype=self.dtype, name="slot_dense")(dense)[:, None]
        asked = nn.Dense(s.width, dtype=self.dtype, name="slot_attractor")(attractors)[:, :, None]
        hidden = jax.nn.gelu(seen + asked)
        bands = nn.Dense(s.mels, dtype=self.dtype, name="bands")(hidden)
        measured = jnp.einsum("bstm,btmc->bstc", jax.nn.softmax(bands, -1), field)
        residual = nn.Dense(3, dtype=self.dtype, name="residual")(hidden)
        direction = unit(measured + 0.3 * jnp.tanh(residual))
        pooled = jnp.einsum("bst,bstd->bsd", weights, hidden)
        summary = jax.nn.gelu(
            nn.Dense(s.width, dtype=self.dtype, name="slot_hidden")(
                jnp.concatenate([pooled, attractors], -1)
            )
        )
        return Slots(
            presence=nn.Dense(1, name="presence")(summary)[..., 0],
            label=nn.Dense(s.classes, name="label")(summary),
            activity=activity,
            direction_in_time=direction,
            direction=jnp.einsum("bst,bstc->bsc", weights, direction),
            log_distance=nn.Dense(1, name="distance")(summary)[..., 0],
        )
