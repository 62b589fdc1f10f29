"""The two encoders: Whisper's layers on one channel, and the spatial encoder on all.

Letters: B batch, T frames, S slots, D width, M mel bands.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from .features_jaxasa import RATE, intensity, interaural, resample_time, stft_parts
from .peaks_jaxasa import find, timbre

FRAMES_PER_SECOND = 50
SLOT_STEPS = 2
CUES = 16


class Slots(NamedTuple):
    """Logits presence [B, S], label [B, S, classes], activity [B, S, T]; directions (x, y, z)
    in time [B, S, T, 3] and over the clip [B, S, 3]; log_distance [B, S] (log of metres)."""

    presence: torch.Tensor
    label: torch.Tensor
    activity: torch.Tensor
    direction_in_time: torch.Tensor
    direction: torch.Tensor
    log_distance: torch.Tensor


class Heard(NamedTuple):
    """dense [B, T, D], slots, room [B, 4]: log RT60 (s), log volume (m3), DRR / 10 (dB), count."""

    dense: torch.Tensor
    slots: Slots
    room: torch.Tensor


class Dense(nn.Linear):
    """A linear layer that takes features of float32 whatever the type of its weights."""

    def forward(self, x):
        return super().forward(x.to(self.weight.dtype))


class Blocks(nn.Module):
    """Whisper's encoder layers, at `width` and `heads`."""

    def __init__(self, audio_config, width, heads, layers):
        super().__init__()
        sizes = copy.deepcopy(audio_config)
        sizes.d_model, sizes.encoder_ffn_dim = width, 4 * width
        sizes.encoder_attention_heads = heads
        self.layers = nn.ModuleList(WhisperEncoderLayer(sizes) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, None)
        return x


def sinusoids(length, channels):
    """Whisper's positions [length, channels], as it was trained with them."""
    scales = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * scales[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Semantic(Blocks):
    """Whisper's encoder: log-mel [B, 2T, M] -> [B, T, D]. Positions are cut to the clip's length,
    which WhisperEncoder itself does not do: it insists on 30 s."""

    def __init__(self, c, pool):
        """pool: frames averaged into one, as Qwen2-Audio's tower does."""
        super().__init__(c, c.d_model, c.encoder_attention_heads, c.encoder_layers)
        self.conv1 = nn.Conv1d(c.num_mel_bins, c.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1)
        self.layer_norm = nn.LayerNorm(c.d_model)
        self.limit, self.pool = c.max_source_positions, pool

    def forward(self, log_mel):
        x = log_mel.transpose(1, 2).to(self.conv1.weight.dtype)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        if x.shape[1] > self.limit:
            raise ValueError(
                f"audio of {x.shape[1] / FRAMES_PER_SECOND:g} s, "
                f"expected at most {self.limit / FRAMES_PER_SECOND:g} s"
            )
        x = x + torch.from_numpy(sinusoids(x.shape[1], x.shape[2])).to(x)
        x = super().forward(x)
        if self.pool > 1:
            x = F.avg_pool1d(x.transpose(1, 2), self.pool).transpose(1, 2)
        return self.layer_norm(x)


class Cell(nn.Module):
    """An LSTM with a matrix a gate, as flax keeps them: i, f, g, o from input and from state."""

    def __init__(self, width):
        super().__init__()
        for gate in "ifgo":
            setattr(self, f"i{gate}", nn.Linear(width, width, bias=False))
            setattr(self, f"h{gate}", nn.Linear(width, width))

    def forward(self, x, carry):
        """x [B, T, D], (cell, hidden) [B, D] each -> outputs [B, T, D], the last (cell, hidden)."""
        gates = "ifgo"
        given = F.linear(x, torch.cat([getattr(self, f"i{g}").weight for g in gates]))
        weight = torch.cat([getattr(self, f"h{g}").weight for g in gates])
        bias = torch.cat([getattr(self, f"h{g}").bias for g in gates])
        cell, hidden = carry
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (given[:, t] + F.linear(hidden, weight, bias)).chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), (cell, hidden)


class Attractors(nn.Module):
    """dense [B, T, D] -> [B, S, D]: one LSTM reads the map, another writes a vector a slot."""

    def __init__(self, width, slots, evidence):
        """evidence: what is known of the peak at which a slot begins, or 0."""
        super().__init__()
        self.slots = nn.Parameter(torch.zeros(slots, width))
        if evidence:
            self.seen = Dense(evidence, width)
        self.reader, self.writer = Cell(width), Cell(width)

    def forward(self, dense, evidence):
        coarse = resample_time(dense, -(-dense.shape[1] // SLOT_STEPS))
        nothing = dense.new_zeros(dense.shape[0], dense.shape[2])
        _, carry = self.reader(coarse, (nothing, nothing))
        start = self.slots.expand(dense.shape[0], -1, -1)
        if evidence is not None:
            start = start + self.seen(evidence)
        return self.writer(start, carry)[0]


class Stem(nn.Module):
    def __init__(self, inputs, channels):
        super().__init__()
        self.linear = Dense(inputs, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x):
        return gelu(self.norm(self.linear(x)))


def gelu(x):
    return F.gelu(x, approximate="tanh")


def unit(v):
    """v [..., 3] at length 1, or shorter where it is nearly 0."""
    return v / torch.sqrt((v**2).sum(-1, keepdim=True) + 1e-8)


def patches(x, frames, bands):
    """[B, T, F, C] -> [B, T / frames, F / bands, frames x bands x C]; odd bands on top dropped."""
    batch, time, freq, channels = x.shape
    x = x[:, :, : freq // bands * bands]
    x = x.reshape(batch, time // frames, frames, freq // bands, bands, channels).transpose(2, 3)
    return x.flatten(3)


def gates(layer, trust, x, count, field):
    """Logits [B, T, count, M] of which bands to measure in: learnt, and by their clarity."""
    bands = layer(x).reshape(*x.shape[:2], count, field.shape[2])
    clarity = field[..., 0] * trust[0] + (field[..., 4] - 0.5) * trust[1]
    return bands + clarity[:, :, None]


class Heads(nn.Module):
    """What slots and room are read with."""

    def __init__(self, s):
        super().__init__()
        width, mels = s["width"], s["n_mels"]
        # Of what timbre says of a peak; two ears have no peaks.
        timbres = 4 * mels + 2 if s.get("format", "foa") == "foa" else 0
        self.activity_bias = nn.Parameter(torch.zeros(()))
        self.activity_keys = Dense(width, width)
        if timbres:
            self.cues_hidden, self.cues_out = Dense(3, CUES), Dense(CUES, 1)
        self.slot_dense, self.slot_attractor = Dense(width, width), Dense(width, width)
        self.slot_hidden = Dense(2 * width + timbres, width)
        self.bands, self.residual = Dense(width, mels), Dense(width, 3)
        self.slot_bands, self.slot_bands_trust = Dense(width, mels), nn.Parameter(torch.zeros(2))
        self.presence, self.distance = Dense(width, 1), Dense(width, 1)
        self.label = Dense(width + timbres, s["num_classes"])
        self.room_hidden, self.room = Dense(2 * width, width), Dense(width, 4)

    def of_slots(self, dense, attractors, fine, field, seen):
        """fine [B, F, M, 5], field [B, T, M, 5] (its means by step), seen: Peaks or None."""
        activity = torch.einsum("btd,bsd->bst", self.activity_keys(dense), attractors)
        activity = (activity / dense.shape[-1] ** 0.5 + self.activity_bias).float()
        merged = fine.shape[1] // field.shape[1]
        if seen is not None:
            near = seen.near.unflatten(2, (-1, merged)).mean(3)
            share = near.mean(-1)
            loud = (near * field[:, None, ..., 0]).sum(-1) / (near.sum(-1) + 1e-3)
            beside = share / (share.amax(-1, keepdim=True) + 1e-3)
            cues = torch.stack([torch.log(share + 1e-2), loud, beside], -1)
            activity = activity + self.cues_out(gelu(self.cues_hidden(cues)))[..., 0].float()
        heard = torch.sigmoid(activity)
        weights = heard / (heard.sum(-1, keepdim=True) + 1e-6)
        hidden = gelu(self.slot_dense(dense)[:, None] + self.slot_attractor(attractors)[:, :, None])
        common = gates(self.slot_bands, self.slot_bands_trust, dense, 1, field).movedim(2, 1)
        chosen = torch.sigmoid(self.bands(hidden) + common).float()
        residual = self.residual(hidden)
        pooled = torch.einsum("bst,bstd->bsd", weights, hidden.float())
        known = [pooled, attractors]
        if seen is None:
            measured = torch.einsum("bstm,btmc->bstc", chosen, field[..., 1:4]) / field.shape[2]
        else:
            vectors = seen.trusted[..., None] * fine[:, None, ..., 1:4]
            vectors = vectors.unflatten(2, (-1, merged)).mean(3)
            measured = torch.einsum("bstm,bstmc->bstc", chosen, vectors) / field.shape[2]
            size = torch.linalg.vector_norm(measured + 1e-6, dim=-1, keepdim=True)
            residual = 0.2 * size * torch.tanh(residual)
            during = heard.repeat_interleave(merged, -1)[..., None]
            known.append(timbre(fine[..., 0], seen.near * during))
        in_time = measured + residual
        direction = torch.einsum("bst,bstc->bsc", weights, in_time)
        if seen is not None:
            direction = (direction + 1e-6).norm(dim=-1, keepdim=True) * seen.direction
        summary = gelu(self.slot_hidden(torch.cat(known, -1)))
        named = summary if seen is None else torch.cat([summary, known[-1]], -1)
        return Slots(
            presence=self.presence(summary)[..., 0],
            label=self.label(named),
            activity=activity,
            direction_in_time=in_time,
            direction=direction,
            log_distance=self.distance(summary)[..., 0],
        )

    def of_room(self, dense):
        pooled = torch.cat([dense.mean(1), dense.amax(1)], -1)
        return self.room(gelu(self.room_hidden(pooled)))


class Spatial(Blocks):
    """FOA [B, N, 4] or ears [B, N, 2] -> Heard. `s` is config.model["spatial"]."""

    def __init__(self, audio_config, s):
        super().__init__(audio_config, s["width"], s["heads"], s["layers"])
        width, mels, classes = s["width"], s["n_mels"], s["num_classes"]
        self.sizes = s
        self.merged = int(np.prod([frames for _, frames, _ in s["stem"]]))
        self.seconds = self.merged * s["hop_length"] / RATE  # of a frame of the map
        self.context = Blocks(audio_config, width, s["heads"], s["layers"])
        self.foa = s.get("format", "foa") == "foa"
        if not self.foa:
            self.cues = nn.Parameter(torch.zeros(mels, 3, 3))
        parts = (s["n_fft"] // 2 + 1, 8 if self.foa else 4)
        rows, inputs = parts if s["features"] == "stft" else (mels, 5)
        self.stem = nn.ModuleList()
        for channels, frames, bands in s["stem"]:
            self.stem.append(Stem(frames * bands * inputs, channels))
            rows, inputs = rows // bands, channels
        self.stem_out = Dense(rows * inputs, width)
        self.class_bands = Dense(width, classes * mels)
        self.class_bands_trust = nn.Parameter(torch.zeros(2))
        self.measured = Dense(6 * classes, width)
        self.layer_norm = nn.LayerNorm(width)
        self.told = Dense(5 * classes, width)
        self.attractors = Attractors(width, s["num_slots"], 4 * mels + 5 if self.foa else 0)
        self.heads = Heads(s)

    def forward(self, audio):
        s = self.sizes
        measure = intensity if self.foa else interaural
        vectors = measure(audio, s["n_fft"], s["hop_length"], s["n_mels"])
        x = stft_parts(audio, s["n_fft"], s["hop_length"]) if s["features"] == "stft" else vectors
        merged = self.merged
        steps = x.shape[1] // merged
        fine = vectors[:, : merged * steps]
        field = fine.unflatten(1, (steps, merged)).mean(2)
        if not self.foa:
            found = torch.einsum("btmc,mcd->btmd", field[..., 1:4], self.cues.float())
            field = torch.cat([field[..., :1], found, field[..., 4:]], -1)
        dense = self._dense(x[:, : merged * steps], field)
        seen = evidence = None
        if self.foa:
            seen = find(fine[..., 1:4], s["num_slots"])
            where = torch.stack([seen.strength, torch.log(seen.strength + 1e-3)], -1)
            where = torch.cat([where, seen.direction[..., 2:]], -1)
            evidence = torch.cat([where, timbre(fine[..., 0], seen.near)], -1)
        slots = self.heads.of_slots(dense, self.attractors(dense, evidence), fine, field, seen)
        dense = self._told(dense, slots)
        return Heard(dense, slots, self.heads.of_room(dense))

    def _told(self, dense, slots):
        """The map, normalised, with what the slots say of each class at each moment in it."""
        named = torch.sigmoid(slots.presence)[..., None] * torch.softmax(slots.label, -1)
        distance = slots.log_distance[..., None]
        said = torch.cat([torch.ones_like(distance), unit(slots.direction), distance], -1)
        active = torch.sigmoid(slots.activity)
        told = torch.einsum("bst,bsc,bsk->btck", active, named.float(), said.float())
        return self.layer_norm(dense + self.told(told.flatten(2)))

    def _dense(self, x, field):
        for stem, (_, frames, bands) in zip(self.stem, self.sizes["stem"], strict=True):
            x = stem(patches(x, frames, bands))
        x = self.context(self.stem_out(x.flatten(2)))
        chosen = gates(
            self.class_bands, self.class_bands_trust, x, self.sizes["num_classes"], field
        )
        found = torch.einsum("btsm,btmc->btsc", torch.sigmoid(chosen).float(), field[..., 1:4])
        found = found / field.shape[2]
        x = x + self.measured(torch.cat([unit(found), found], -1).flatten(2))
        return super().forward(x)
