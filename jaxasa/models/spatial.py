# SPDX-License-Identifier: Apache-2.0
"""Spatial encoder: what sounds where, from FOA or binaural audio.

In reading order (`SpatialEncoder.__call__`):

1. Features of each frame and mel band: log power, a direction vector and diffuseness (for FOA the
   active intensity vector), and for the stem those or the STFT itself.
2. Dense map: a stem that merges patches of time and frequency, then transformer blocks over time.
   Between these, one head for each class measures the direction of the bands that it attends to.
3. DOA peaks of the intensity vectors' histogram (models/peaks.py), without learning. Each slot
   starts from one, and over the whole clip its direction is that peak's.
4. Attractors, one vector for each slot, by an LSTM encoder-decoder over the dense map (EEND-EDA,
   arXiv:2005.09921, which counts speakers so).
5. Slots: presence, class, activity, direction and distance of one source each. A slot's direction
   in time is equivariant to rotation at its core: the mean of the measured vectors, weighted by
   slot and mel band, plus a small learnt residual.
6. The dense map is conditioned on the slots, so that the decoder finds sources and directions in
   it, and room acoustics are estimated from it. `slot_features` give each slot to the projector.

Binaural audio measures no intensity vector and has no peaks. Instead, a learnt 3 x 3 matrix for
each mel band maps its interaural cues (features.interaural) to a direction vector, since the
phase that belongs to a direction depends on the frequency. These cues do not tell front from back
or height, which are in the spectrum; so there the residual of a direction is not bounded.

Norms of the stem have epsilon 1e-6 and its GELUs are the tanh approximation, as in the heads; the
transformer blocks are Whisper's (1e-5, exact GELU). Heads compute in float32 whatever the map's
dtype. Parameter names are older than the names of the functions; they stay because flax derives
initial values from them.

Shapes: B batch, N samples, C channels, F frames, T steps of the map (`Spatial.frames_per_step`
frames each), M mel bands, S slots, D width, K evidence or slot features.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.data import features
from jaxasa.models import peaks
from jaxasa.models.layers import Blocks, interp_bands, length_mask, resample_time

ATTRACTOR_STRIDE = 2  # steps of the map for each step of the LSTM that reads it
MASKED_LOGIT = -1e9
AZIMUTH_HARMONICS = 4  # as slot features: sectors of 45 degrees become linearly separable
ACTIVITY_CUES_WIDTH = 16  # hidden width of the MLP on a slot's measured cues


class Slots(NamedTuple):
    """Estimates for one source in each slot. Directions have lengths of at most about 1, which
    tell how clear they are.

    presence [B, S], label [B, S, classes], activity [B, S, T]: logits.
    direction_in_time [B, S, T, 3] and direction over the clip [B, S, 3]: (x, y, z).
    log_distance [B, S]: natural log of metres.
    """

    presence: jax.Array
    label: jax.Array
    activity: jax.Array
    direction_in_time: jax.Array
    direction: jax.Array
    log_distance: jax.Array


class Room(NamedTuple):
    """Estimates for the room, [B] each: log RT60 (s), log volume (m3), DRR / 10 (dB), number of
    sources."""

    log_rt60: jax.Array
    log_volume: jax.Array
    drr: jax.Array
    count: jax.Array


class SpatialOutput(NamedTuple):
    """The dense map [B, T, D], the slots, and the room."""

    dense: jax.Array
    slots: Slots
    room: Room


def num_slot_features(num_classes: int) -> int:
    """K of `slot_features`."""
    return 1 + num_classes + 2 * AZIMUTH_HARMONICS + 4 + len(Room._fields)


def slot_features(slots: Slots, room: Room, step_seconds: float) -> jax.Array:
    """Each slot as features of order 1 for the projector, [B, S, K].

    First the presence probability; then, each times that probability: class probabilities,
    cosines and sines of 1 to AZIMUTH_HARMONICS times the azimuth (scaled by cos elevation), sin
    elevation, log distance, onset and offset (s), and the room's estimates. Slots are sorted by
    onset; those with presence below 0.5 come last.

    step_seconds: duration of a step of the map.
    """
    presence = jax.nn.sigmoid(slots.presence)
    activity = jax.nn.sigmoid(slots.activity)
    is_active = activity >= 0.5 * activity.max(-1, keepdims=True)
    steps = is_active.shape[-1]
    onset = is_active.argmax(-1) * step_seconds
    offset = (steps - is_active[..., ::-1].argmax(-1)) * step_seconds
    x, y, z = jnp.moveaxis(unit_vector(slots.direction), -1, 0)
    azimuth = jnp.arctan2(y, x)[..., None] * jnp.arange(1, AZIMUTH_HARMONICS + 1)
    horizontal = jnp.hypot(x, y)[..., None]
    parts = [jnp.ones_like(presence)[..., None], jax.nn.softmax(slots.label)]
    parts += [horizontal * jnp.cos(azimuth), horizontal * jnp.sin(azimuth)]
    parts += [n[..., None] for n in (z, slots.log_distance, onset, offset)]
    parts += [jnp.broadcast_to(jnp.stack(room, -1)[:, None], (*presence.shape, len(room)))]
    order = jnp.argsort(jnp.where(presence < 0.5, jnp.inf, onset), axis=1)
    by_slot = presence[..., None] * jnp.concatenate(parts, -1)
    return jnp.take_along_axis(by_slot, order[..., None], axis=1)


def unit_vector(v: jax.Array) -> jax.Array:
    """v [..., 3] scaled to length 1; shorter if v is nearly 0."""
    return v / jnp.sqrt(jnp.sum(v**2, -1, keepdims=True) + 1e-8)


def patches(x: jax.Array, frames: int, bands: int) -> jax.Array:
    """Patches of an image, [B, T, F, C] -> [B, T / frames, F / bands, frames x bands x C].

    With a dense layer after it a convolution whose stride is its kernel, as one product that
    every backend does fast. Bands on top that fill no patch are dropped.
    """
    batch, time, freq, channels = x.shape
    x = x[:, :, : freq // bands * bands]
    x = x.reshape(batch, time // frames, frames, freq // bands, bands, channels)
    x = jnp.moveaxis(x, 2, 3)
    return x.reshape(*x.shape[:3], -1)


class SpatialEncoder(nn.Module):
    """FOA [B, N, 4] or binaural audio [B, N, 2] -> SpatialOutput."""

    spatial: config.Spatial
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        audio: jax.Array,
        eq_log10: jax.Array | None = None,
        lengths: jax.Array | None = None,
    ) -> SpatialOutput:
        """eq_log10 [B, K]: see asa.Augmentation; it changes powers, and no direction.

        lengths [B]: samples of each clip if the rest is padding, see data/features.py. Steps of
        the map beyond `config.Spatial.steps(lengths)` mean nothing; no estimate depends on them.
        """
        s = self.spatial
        is_foa = s.format == "foa"
        measure = features.intensity if is_foa else features.interaural
        vectors = measure(audio, s.n_fft, s.hop_length, s.n_mels, lengths)
        if eq_log10 is not None:
            gain = interp_bands(eq_log10, s.n_mels)[:, None] / features.DECADES_PER_UNIT
            vectors = vectors.at[..., 0].add(gain)
        x = vectors
        if s.features == "stft":
            x = features.compressed_stft(audio, s.n_fft, s.hop_length, lengths)
        # A centred STFT has one frame too many at the end; frames that fill no step are dropped.
        merged = s.frames_per_step
        steps = x.shape[1] // merged
        by_frame = vectors[:, : merged * steps]
        by_step = by_frame.reshape(by_frame.shape[0], steps, merged, s.n_mels, 5).mean(2)
        if not is_foa:
            cues = self.param("cues", nn.initializers.normal(0.5), (s.n_mels, 3, 3))
            direction = jnp.einsum("btmc,mcd->btmd", by_step[..., 1:4], cues)
            by_step = by_step.at[..., 1:4].set(direction)
        clip_steps = None if lengths is None else s.steps(lengths)
        mask = length_mask(clip_steps, steps)
        dense = self._dense_map(x[:, : merged * steps].astype(self.dtype), by_step, mask)
        doa_peaks = None
        if is_foa:
            frame_mask = None if mask is None else jnp.repeat(mask, merged, axis=1)
            doa_peaks = peaks.find_doa_peaks(by_frame[..., 1:4], s.num_slots, frame_mask)
        slots = self._slots(dense, by_frame, by_step, doa_peaks, clip_steps)
        dense = self._condition_on_slots(dense, slots)
        return SpatialOutput(dense, slots, self._room(dense, mask))

    def _dense_map(self, x: jax.Array, by_step: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Stem and blocks: x [B, F, bands, C], by_step [B, T, M, 5] -> [B, T, D]."""
        s = self.spatial
        for i, (channels, frames, bands) in enumerate(s.stem):
            x = patches(x, frames, bands)
            x = nn.Dense(channels, dtype=self.dtype, name=f"stem{i}")(x)
            x = jax.nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"stem_norm{i}")(x))
        x = nn.Dense(s.width, dtype=self.dtype, name="stem_out")(x.reshape(*x.shape[:2], -1))
        x = Blocks(s.heads, s.layers, self.unroll, self.dtype, name="context")(x, mask)
        # One head for each class attends to the bands of that class, and measures direction there.
        gates = jax.nn.sigmoid(self._band_gates("class_bands", x, s.num_classes, by_step))
        measured = jnp.einsum("btsm,btmc->btsc", gates, by_step[..., 1:4]) / s.n_mels
        measured = jnp.concatenate([unit_vector(measured), measured], -1)
        measured = measured.reshape(*x.shape[:2], -1).astype(self.dtype)
        x = x + nn.Dense(s.width, dtype=self.dtype, name="measured")(measured)
        return Blocks(s.heads, s.layers, self.unroll, self.dtype, name="blocks")(x, mask)

    def _band_gates(self, name: str, x: jax.Array, count: int, by_step: jax.Array) -> jax.Array:
        """Attention logits [B, T, count, M] over mel bands: learnt, plus the bands' clarity."""
        s = self.spatial
        bands = nn.Dense(count * s.n_mels, dtype=self.dtype, name=name)(x)
        bands = bands.reshape(*x.shape[:2], count, s.n_mels)
        # Log power and diffuseness of a band say how far its direction can be trusted.
        trust = self.param(f"{name}_trust", lambda _: jnp.array([0.0, -3.0]))
        clarity = by_step[..., 0] * trust[0] + (by_step[..., 4] - 0.5) * trust[1]
        return bands + clarity[:, :, None]

    def _attractors(
        self, dense: jax.Array, evidence: jax.Array | None, clip_steps: jax.Array | None
    ) -> jax.Array:
        """Attractors [B, S, D] by an LSTM encoder-decoder over the dense map [B, T, D].

        evidence [B, S, K]: of the DOA peak at which each slot starts, if there are peaks.
        """
        s = self.spatial
        clip_length = None if clip_steps is None else -(-clip_steps // ATTRACTOR_STRIDE)
        length = -(-dense.shape[1] // ATTRACTOR_STRIDE)
        coarse = resample_time(dense, length, clip_steps, clip_length)
        reader = nn.RNN(nn.OptimizedLSTMCell(s.width, name="reader"), return_carry=True)
        carry, _ = reader(coarse, seq_lengths=clip_length)
        writer = nn.RNN(nn.OptimizedLSTMCell(s.width, name="writer"))
        queries = self.param("slots", nn.initializers.normal(0.5), (s.num_slots, s.width))
        queries = jnp.broadcast_to(queries, (dense.shape[0], *queries.shape)).astype(dense.dtype)
        if evidence is not None:
            queries = queries + nn.Dense(s.width, dtype=self.dtype, name="seen")(evidence)
        return writer(queries, initial_carry=carry)

    def _activity(
        self,
        dense: jax.Array,
        attractors: jax.Array,
        proximity: jax.Array | None,
        by_step: jax.Array,
        clip_steps: jax.Array | None,
    ) -> jax.Array:
        """Activity logits [B, S, T]: attractors as queries, the dense map as keys.

        proximity [B, S, T, M]: of each band's direction to the slot's peak; it adds three
        measured cues.
        """
        s = self.spatial
        keys = nn.Dense(s.width, dtype=self.dtype, name="activity_keys")(dense)
        activity = jnp.einsum("btd,bsd->bst", keys, attractors) / s.width**0.5
        bias = self.param("activity_bias", nn.initializers.zeros, ())
        activity = (activity + bias).astype(jnp.float32)
        if proximity is not None:
            share = proximity.mean(-1)
            weighted = (proximity * by_step[:, None, ..., 0]).sum(-1)
            level = weighted / (proximity.sum(-1) + 1e-3)
            relative = share / (share.max(-1, keepdims=True) + 1e-3)
            cues = jnp.stack([jnp.log(share + 1e-2), level, relative], -1)
            cues = jax.nn.gelu(nn.Dense(ACTIVITY_CUES_WIDTH, name="cues_hidden")(cues))
            activity = activity + nn.Dense(1, name="cues_out")(cues)[..., 0]
        mask = length_mask(clip_steps, activity.shape[-1])
        return activity if mask is None else jnp.where(mask[:, None], activity, MASKED_LOGIT)

    def _slots(
        self,
        dense: jax.Array,
        by_frame: jax.Array,
        by_step: jax.Array,
        doa_peaks: peaks.Peaks | None,
        clip_steps: jax.Array | None,
    ) -> Slots:
        """Attractors, then the heads that read one source from each.

        by_frame [B, F, M, 5]: log power, direction vector and diffuseness of each mel band;
        by_step [B, T, M, 5]: their means over the frames of a step of the map.
        """
        s = self.spatial
        evidence = proximity = None
        if doa_peaks is not None:
            split_steps = lambda x: x.reshape(*x.shape[:2], -1, s.frames_per_step, *x.shape[3:])  # noqa: E731
            proximity = split_steps(doa_peaks.proximity).mean(3)
            strength = doa_peaks.strength
            of_peak = jnp.stack([strength, jnp.log(strength + 1e-3)], -1)
            of_peak = jnp.concatenate([of_peak, doa_peaks.direction[..., 2:]], -1)
            spectra = peaks.peak_spectra(
                by_frame[..., 0], doa_peaks.proximity, doa_peaks.frame_mask
            )
            evidence = jnp.concatenate([of_peak, spectra], -1).astype(self.dtype)
        attractors = self._attractors(dense, evidence, clip_steps)
        activity = self._activity(dense, attractors, proximity, by_step, clip_steps)
        weights = jax.nn.sigmoid(activity)
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-6)
        of_step = nn.Dense(s.width, dtype=self.dtype, name="slot_dense")(dense)[:, None]
        of_slot = nn.Dense(s.width, dtype=self.dtype, name="slot_attractor")(attractors)
        hidden = jax.nn.gelu(of_step + of_slot[:, :, None])
        bands = nn.Dense(s.n_mels, dtype=self.dtype, name="bands")(hidden)
        common = self._band_gates("slot_bands", dense, 1, by_step)
        gates = jax.nn.sigmoid(bands + jnp.moveaxis(common, 2, 1))
        residual = nn.Dense(3, dtype=self.dtype, name="residual")(hidden)
        if doa_peaks is None:
            measured = jnp.einsum("bstm,btmc->bstc", gates, by_step[..., 1:4]) / s.n_mels
        else:
            # Frame by frame: the mean over a step would mix sources that alternate within it.
            vectors = doa_peaks.vote_weight[..., None] * by_frame[:, None, ..., 1:4]
            vectors = split_steps(vectors).mean(3)
            measured = jnp.einsum("bstm,bstmc->bstc", gates, vectors) / s.n_mels
            clarity = jnp.linalg.norm(measured + 1e-6, axis=-1, keepdims=True)
            residual = 0.2 * clarity * jnp.tanh(residual)
        direction_in_time = measured + residual
        direction = jnp.einsum("bst,bstc->bsc", weights, direction_in_time)
        if doa_peaks is not None:
            # The peak, where most votes agree, is more accurate than the mean over time and bands.
            clarity = jnp.linalg.norm(direction + 1e-6, axis=-1, keepdims=True)
            direction = clarity * doa_peaks.direction
        pooled = jnp.einsum("bst,bstd->bsd", weights, hidden)
        summary = [pooled, attractors]
        if doa_peaks is not None:
            # The peak's spectra once more, now of the time in which the slot is active.
            active = jnp.repeat(jax.nn.sigmoid(activity), s.frames_per_step, axis=-1)[..., None]
            spectra = peaks.peak_spectra(
                by_frame[..., 0], doa_peaks.proximity * active, doa_peaks.frame_mask
            )
            summary.append(spectra.astype(self.dtype))
        summary = jnp.concatenate(summary, -1)
        summary = jax.nn.gelu(nn.Dense(s.width, dtype=self.dtype, name="slot_hidden")(summary))
        of_class = summary if doa_peaks is None else jnp.concatenate([summary, spectra], -1)
        return Slots(
            presence=nn.Dense(1, name="presence")(summary)[..., 0],
            label=nn.Dense(s.num_classes, name="label")(of_class),
            activity=activity,
            direction_in_time=direction_in_time,
            direction=direction,
            log_distance=nn.Dense(1, name="distance")(summary)[..., 0],
        )

    def _condition_on_slots(self, dense: jax.Array, slots: Slots) -> jax.Array:
        """Adds to dense [B, T, D] each class's activity, direction and distance by the slots."""
        s = self.spatial
        label = jax.nn.sigmoid(slots.presence)[..., None] * jax.nn.softmax(slots.label)
        ones = jnp.ones_like(slots.log_distance)[..., None]
        place = jnp.concatenate(
            [ones, unit_vector(slots.direction), slots.log_distance[..., None]], -1
        )
        activity = jax.nn.sigmoid(slots.activity)
        by_class = jnp.einsum("bst,bsc,bsk->btck", activity, label, place)
        by_class = by_class.reshape(*by_class.shape[:2], -1).astype(self.dtype)
        dense = dense + nn.Dense(s.width, dtype=self.dtype, name="told")(by_class)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(dense)

    def _room(self, dense: jax.Array, mask: jax.Array | None) -> Room:
        """The room's estimates from mean and maximum over time of dense [B, T, D]."""
        s = self.spatial
        where = None if mask is None else mask[..., None]
        # Not dense.max(1): its gradient is 0 / 0 if XLA rounds the maximum otherwise than dense.
        valid = dense if where is None else jnp.where(where, dense, MASKED_LOGIT)
        index = valid.argmax(1)
        maximum = jnp.take_along_axis(dense, index[:, None], axis=1)[:, 0]
        pooled = jnp.concatenate([dense.mean(1, where=where), maximum], -1)
        hidden = jax.nn.gelu(nn.Dense(s.width, dtype=self.dtype, name="room_hidden")(pooled))
        room = nn.Dense(4, name="room")(hidden)
        return Room(*jnp.moveaxis(room, -1, 0))
