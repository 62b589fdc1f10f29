"""Spatial encoder: features of FOA or of two ears to a dense time map, slots, room estimates.

A stem of patches over time and frequency, transformer layers over time, then an LSTM
encoder-decoder that emits one attractor a slot (EEND-EDA, arXiv:2005.09921). Each slot begins at a
peak of the intensity vectors' histogram (models/peaks.py), hears the bands that point there, and
over the whole clip points there. Its direction in time is equivariant at its core: a weighted mean
of those vectors, weights by slot and mel band, plus a bounded learnt residual. The dense map is
given such means too, one a class, and in the end what the slots say, so that what reads the map
finds sources and their directions in it. And the decoder is told by each slot itself, in a token of
its own (`statements`).

Two ears measure no intensity vector, and have no peaks. In its place stands, for each mel band, a
learnt 3 x 3 matrix times the band's interaural cues (features.interaural): phase turns faster the
higher the band, so what it says of direction is learnt band by band. Front from back and height are
in the spectrum rather than in these cues: the residual of a slot's direction is unbounded there, a
linear layer.

Norms of the stem have epsilon 1e-6 and its GELUs are the tanh approximation, as in the heads; the
blocks are Whisper's (1e-5, exact). Heads compute in float32 whatever the dtype of the map.

Letters: B batch, T frames of the map, F of the features, S slots, D width, M mel bands.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.data import features
from jaxasa.models import peaks
from jaxasa.models.layers import Blocks, heard_frames, over_bands, resample_time

SLOT_STEPS = 2
UNHEARD = -1e9
HARMONICS = 4  # of the azimuth: eight sectors are told apart by a small network
CUES = 16  # width of what weighs the cues of a slot's activity


class Slots(NamedTuple):
    """What each slot says. Directions are not normalised: their length says how clear they are.

    presence [B, S] and label [B, S, classes]: logits; activity [B, S, T]: logits;
    direction_in_time [B, S, T, 3] (x, y, z); direction [B, S, 3]: over the clip, where there are
    peaks that of the slot's; log_distance [B, S] (natural log of metres).
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


def statements_width(classes: int) -> int:
    """K of `statements`."""
    return 1 + classes + 2 * HARMONICS + 4 + len(Room._fields)


def statements(slots: Slots, room: Room, seconds: float) -> jax.Array:
    """What a scene's slots say, in order of onset, as numbers of order 1: [B, S, K].

    Each tells how likely its source is there; times that, its class, cosines and sines of one to
    HARMONICS times its azimuth, height, log distance and when it is heard (s); and of the room
    RT60, volume, DRR and count. What is not thought to be there comes last.

    seconds: of a frame of the map.
    """
    there = jax.nn.sigmoid(slots.presence)
    active = jax.nn.sigmoid(slots.activity)
    heard = active >= 0.5 * active.max(-1, keepdims=True)
    frames = heard.shape[-1]
    onset = heard.argmax(-1) * seconds
    offset = (frames - heard[..., ::-1].argmax(-1)) * seconds
    x, y, z = jnp.moveaxis(unit(slots.direction), -1, 0)
    azimuth = jnp.arctan2(y, x)[..., None] * jnp.arange(1, HARMONICS + 1)
    level = jnp.hypot(x, y)[..., None]
    said = [jnp.ones_like(there)[..., None], jax.nn.softmax(slots.label)]
    said += [level * jnp.cos(azimuth), level * jnp.sin(azimuth)]
    said += [n[..., None] for n in (z, slots.log_distance, onset, offset)]
    said += [jnp.broadcast_to(jnp.stack(room, -1)[:, None], (*there.shape, len(room)))]
    order = jnp.argsort(jnp.where(there < 0.5, jnp.inf, onset), axis=1)
    said = there[..., None] * jnp.concatenate(said, -1)
    return jnp.take_along_axis(said, order[..., None], axis=1)


def unit(v: jax.Array) -> jax.Array:
    """v [..., 3] at length 1, or shorter where it is nearly 0."""
    return v / jnp.sqrt(jnp.sum(v**2, -1, keepdims=True) + 1e-8)


def patches(x: jax.Array, frames: int, bands: int) -> jax.Array:
    """[B, T, F, C] -> [B, T / frames, F / bands, frames x bands x C]; odd bands on top dropped.

    A convolution whose stride is its kernel, as one product that every backend does fast.
    """
    batch, time, freq, channels = x.shape
    x = x[:, :, : freq // bands * bands]
    x = x.reshape(batch, time // frames, frames, freq // bands, bands, channels)
    x = jnp.moveaxis(x, 2, 3)
    return x.reshape(*x.shape[:3], -1)


class Spatial(nn.Module):
    """FOA [B, N, 4] or ears [B, N, 2] -> Heard."""

    spatial: config.Spatial
    unroll: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        audio: jax.Array,
        colour: jax.Array | None = None,
        lengths: jax.Array | None = None,
    ) -> Heard:
        """colour [B, K]: see asa.Disguise; it changes powers, and no direction.

        lengths [B]: samples of each clip where the rest is padding, see data/features.py. Frames of
        the map beyond `config.Spatial.steps` of them mean nothing; no estimate depends on them.
        """
        s = self.spatial
        is_foa = s.format == "foa"
        measure = features.intensity if is_foa else features.interaural
        vectors = measure(audio, s.n_fft, s.hop_length, s.n_mels, lengths)
        if colour is not None:
            gain = over_bands(colour, s.n_mels)[:, None] / features.WHISPER_RANGE
            vectors = vectors.at[..., 0].add(gain)
        x = vectors
        if s.features == "stft":
            x = features.stft_parts(audio, s.n_fft, s.hop_length, lengths)
        # A centred STFT has one frame too many at the end; what fills no step is dropped.
        merged = s.frames_per_step
        frames = x.shape[1] // merged
        fine = vectors[:, : merged * frames]
        field = fine.reshape(fine.shape[0], frames, merged, s.n_mels, 5).mean(2)
        if not is_foa:
            cues = self.param("cues", nn.initializers.normal(0.5), (s.n_mels, 3, 3))
            found = jnp.einsum("btmc,mcd->btmd", field[..., 1:4], cues)
            field = field.at[..., 1:4].set(found)
        real = None if lengths is None else s.steps(lengths)
        mask = heard_frames(real, frames)
        dense = self._dense(x[:, : merged * frames].astype(self.dtype), field, mask)
        seen = None
        if is_foa:
            at = None if mask is None else jnp.repeat(mask, merged, axis=1)
            seen = peaks.find(fine[..., 1:4], s.num_slots, at)
        slots = self._slots(dense, fine, field, seen, real)
        dense = self._told(dense, slots)
        where = None if mask is None else mask[..., None]
        # Not dense.max(1): its gradient is 0 / 0 where XLA rounds the maximum otherwise than dense.
        highest = (dense if where is None else jnp.where(where, dense, UNHEARD)).argmax(1)
        peak = jnp.take_along_axis(dense, highest[:, None], axis=1)[:, 0]
        pooled = jnp.concatenate([dense.mean(1, where=where), peak], -1)
        hidden = jax.nn.gelu(nn.Dense(s.width, dtype=self.dtype, name="room_hidden")(pooled))
        room = nn.Dense(4, name="room")(hidden)
        return Heard(dense, slots, Room(*jnp.moveaxis(room, -1, 0)))

    def _dense(self, x: jax.Array, field: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x [B, frames, bands, C] features, field [B, T, M, 5] -> dense map [B, T, D]."""
        s = self.spatial
        for i, (channels, frames, bands) in enumerate(s.stem):
            x = patches(x, frames, bands)
            x = nn.Dense(channels, dtype=self.dtype, name=f"stem{i}")(x)
            x = jax.nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"stem_norm{i}")(x))
        x = nn.Dense(s.width, dtype=self.dtype, name="stem_out")(x.reshape(*x.shape[:2], -1))
        x = Blocks(s.heads, s.layers, self.unroll, self.dtype, name="context")(x, mask)
        # One head a class looks for the bands in which that class may be heard, and measures there.
        gates = jax.nn.sigmoid(self._gates("class_bands", x, s.num_classes, field))
        found = jnp.einsum("btsm,btmc->btsc", gates, field[..., 1:4]) / s.n_mels
        found = jnp.concatenate([unit(found), found], -1).reshape(*x.shape[:2], -1)
        x = x + nn.Dense(s.width, dtype=self.dtype, name="measured")(found.astype(self.dtype))
        return Blocks(s.heads, s.layers, self.unroll, self.dtype, name="blocks")(x, mask)

    def _told(self, dense: jax.Array, slots: Slots) -> jax.Array:
        """dense [B, T, D], with what the slots say of each class at each moment, normalised."""
        s = self.spatial
        named = jax.nn.sigmoid(slots.presence)[..., None] * jax.nn.softmax(slots.label)
        ones = jnp.ones_like(slots.log_distance)[..., None]
        said = jnp.concatenate([ones, unit(slots.direction), slots.log_distance[..., None]], -1)
        active = jax.nn.sigmoid(slots.activity)
        told = jnp.einsum("bst,bsc,bsk->btck", active, named, said)
        told = told.reshape(*told.shape[:2], -1).astype(self.dtype)
        dense = dense + nn.Dense(s.width, dtype=self.dtype, name="told")(told)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(dense)

    def _gates(self, name: str, x: jax.Array, count: int, field: jax.Array) -> jax.Array:
        """Logits [B, T, count, M] of which bands to measure in: learnt, and by their clarity."""
        s = self.spatial
        bands = nn.Dense(count * s.n_mels, dtype=self.dtype, name=name)(x)
        bands = bands.reshape(*x.shape[:2], count, s.n_mels)
        # Log power and diffuseness of a band say how far its direction can be trusted.
        trust = self.param(f"{name}_trust", lambda _: jnp.array([0.0, -3.0]))
        clarity = field[..., 0] * trust[0] + (field[..., 4] - 0.5) * trust[1]
        return bands + clarity[:, :, None]

    def _attractors(
        self, dense: jax.Array, evidence: jax.Array | None, real: jax.Array | None
    ) -> jax.Array:
        """dense [B, T, D] -> [B, S, D]: an LSTM reads the map, another writes one a slot.

        evidence [B, S, K]: of the peak at which a slot begins, if there are any.
        """
        s = self.spatial
        read = None if real is None else -(-real // SLOT_STEPS)
        coarse = resample_time(dense, -(-dense.shape[1] // SLOT_STEPS), real, read)
        reader = nn.RNN(nn.OptimizedLSTMCell(s.width, name="reader"), return_carry=True)
        carry, _ = reader(coarse, seq_lengths=read)
        writer = nn.RNN(nn.OptimizedLSTMCell(s.width, name="writer"))
        start = self.param("slots", nn.initializers.normal(0.5), (s.num_slots, s.width))
        start = jnp.broadcast_to(start, (dense.shape[0], *start.shape)).astype(dense.dtype)
        if evidence is not None:
            start = start + nn.Dense(s.width, dtype=self.dtype, name="seen")(evidence)
        return writer(start, initial_carry=carry)

    def _activity(
        self,
        dense: jax.Array,
        attractors: jax.Array,
        near: jax.Array | None,
        field: jax.Array,
        real: jax.Array | None,
    ) -> jax.Array:
        """Logits [B, S, T]: attractors ask the map; near [B, S, T, M], what points at a peak."""
        s = self.spatial
        keys = nn.Dense(s.width, dtype=self.dtype, name="activity_keys")(dense)
        activity = jnp.einsum("btd,bsd->bst", keys, attractors) / s.width**0.5
        bias = self.param("activity_bias", nn.initializers.zeros, ())
        activity = (activity + bias).astype(jnp.float32)
        if near is not None:
            share = near.mean(-1)
            loud = (near * field[:, None, ..., 0]).sum(-1) / (near.sum(-1) + 1e-3)
            beside = share / (share.max(-1, keepdims=True) + 1e-3)
            cues = jnp.stack([jnp.log(share + 1e-2), loud, beside], -1)
            cues = jax.nn.gelu(nn.Dense(CUES, name="cues_hidden")(cues))
            activity = activity + nn.Dense(1, name="cues_out")(cues)[..., 0]
        heard = heard_frames(real, activity.shape[-1])
        return activity if heard is None else jnp.where(heard[:, None], activity, UNHEARD)

    def _slots(
        self,
        dense: jax.Array,
        fine: jax.Array,
        field: jax.Array,
        seen: peaks.Peaks | None,
        real: jax.Array | None,
    ) -> Slots:
        """fine [B, F, M, 5]: log power, direction vector and diffuseness of each mel band.

        field [B, T, M, 5]: their means over the frames of a step of the map.
        """
        s = self.spatial
        evidence = near = None
        if seen is not None:
            by_step = lambda x: x.reshape(*x.shape[:2], -1, s.frames_per_step, *x.shape[3:])  # noqa: E731
            near = by_step(seen.near).mean(3)
            where = jnp.stack([seen.strength, jnp.log(seen.strength + 1e-3)], -1)
            where = jnp.concatenate([where, seen.direction[..., 2:]], -1)
            heard = peaks.timbre(fine[..., 0], seen.near, seen.heard)
            evidence = jnp.concatenate([where, heard], -1).astype(self.dtype)
        attractors = self._attractors(dense, evidence, real)
        activity = self._activity(dense, attractors, near, field, real)
        weights = jax.nn.sigmoid(activity)
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-6)
        shown = nn.Dense(s.width, dtype=self.dtype, name="slot_dense")(dense)[:, None]
        asked = nn.Dense(s.width, dtype=self.dtype, name="slot_attractor")(attractors)[:, :, None]
        hidden = jax.nn.gelu(shown + asked)
        bands = nn.Dense(s.n_mels, dtype=self.dtype, name="bands")(hidden)
        common = self._gates("slot_bands", dense, 1, field)
        gates = jax.nn.sigmoid(bands + jnp.moveaxis(common, 2, 1))
        residual = nn.Dense(3, dtype=self.dtype, name="residual")(hidden)
        if seen is None:
            measured = jnp.einsum("bstm,btmc->bstc", gates, field[..., 1:4]) / s.n_mels
        else:
            # Frame by frame: the mean of a step's frames would mix what is heard in turns.
            vectors = seen.trusted[..., None] * fine[:, None, ..., 1:4]
            vectors = by_step(vectors).mean(3)
            measured = jnp.einsum("bstm,bstmc->bstc", gates, vectors) / s.n_mels
            clear = jnp.linalg.norm(measured + 1e-6, axis=-1, keepdims=True)
            residual = 0.2 * clear * jnp.tanh(residual)
        in_time = measured + residual
        direction = jnp.einsum("bst,bstc->bsc", weights, in_time)
        if seen is not None:
            # Where most of the votes agree, which no mean over time and bands finds as well.
            clear = jnp.linalg.norm(direction + 1e-6, axis=-1, keepdims=True)
            direction = clear * seen.direction
        pooled = jnp.einsum("bst,bstd->bsd", weights, hidden)
        known = [pooled, attractors]
        if seen is not None:
            # Once more what comes from there, now while the slot holds it to be heard.
            during = jnp.repeat(jax.nn.sigmoid(activity), s.frames_per_step, axis=-1)[..., None]
            heard = peaks.timbre(fine[..., 0], seen.near * during, seen.heard)
            known.append(heard.astype(self.dtype))
        known = jnp.concatenate(known, -1)
        summary = jax.nn.gelu(nn.Dense(s.width, dtype=self.dtype, name="slot_hidden")(known))
        named = summary if seen is None else jnp.concatenate([summary, heard], -1)
        return Slots(
            presence=nn.Dense(1, name="presence")(summary)[..., 0],
            label=nn.Dense(s.num_classes, name="label")(named),
            activity=activity,
            direction_in_time=in_time,
            direction=direction,
            log_distance=nn.Dense(1, name="distance")(summary)[..., 0],
        )
