"""The two encoders: Whisper's layers on W, and the spatial encoder on all four channels.

Letters: B batch, T frames, S slots, D width, M mel bands.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from .features_jaxasa import foa_stft, intensity, resample_time

FRAMES_PER_SECOND = 50
SLOT_STEPS = 2


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

    def __init__(self, c):
        super().__init__(c, c.d_model, c.encoder_attention_heads, c.encoder_layers)
        self.conv1 = nn.Conv1d(c.num_mel_bins, c.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1)
        self.layer_norm = nn.LayerNorm(c.d_model)
        self.limit = c.max_source_positions

    def forward(self, log_mel):
        x = log_mel.transpose(1, 2).to(self.conv1.weight.dtype)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        if x.shape[1] > self.limit:
            raise ValueError(
                f"audio of {x.shape[1] / FRAMES_PER_SECOND:g} s, "
                f"expected at most {self.limit / FRAMES_PER_SECOND:g} s"
            )
        x = x + torch.from_numpy(sinusoids(x.shape[1], x.shape[2])).to(x)
        return self.layer_norm(super().forward(x))


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

    def __init__(self, width, slots):
        super().__init__()
        self.slots = nn.Parameter(torch.zeros(slots, width))
        self.reader, self.writer = Cell(width), Cell(width)

    def forward(self, dense):
        coarse = resample_time(dense, -(-dense.shape[1] // SLOT_STEPS))
        nothing = dense.new_zeros(dense.shape[0], dense.shape[2])
        _, carry = self.reader(coarse, (nothing, nothing))
        start = self.slots.expand(dense.shape[0], -1, -1)
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
        width, mels = s["width"], s["mels"]
        self.activity_bias = nn.Parameter(torch.zeros(()))
        self.activity_keys = Dense(width, width)
        self.slot_dense, self.slot_attractor = Dense(width, width), Dense(width, width)
        self.slot_hidden = Dense(2 * width, width)
        self.bands, self.residual = Dense(width, mels), Dense(width, 3)
        self.slot_bands, self.slot_bands_trust = Dense(width, mels), nn.Parameter(torch.zeros(2))
        self.presence, self.distance = Dense(width, 1), Dense(width, 1)
        self.label = Dense(width, s["classes"])
        self.room_hidden, self.room = Dense(2 * width, width), Dense(width, 4)

    def of_slots(self, dense, attractors, field):
        activity = torch.einsum("btd,bsd->bst", self.activity_keys(dense), attractors)
        activity = (activity / dense.shape[-1] ** 0.5 + self.activity_bias).float()
        weights = torch.sigmoid(activity)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        hidden = gelu(self.slot_dense(dense)[:, None] + self.slot_attractor(attractors)[:, :, None])
        common = gates(self.slot_bands, self.slot_bands_trust, dense, 1, field).movedim(2, 1)
        chosen = torch.sigmoid(self.bands(hidden) + common).float()
        measured = torch.einsum("bstm,btmc->bstc", chosen, field[..., 1:4]) / field.shape[2]
        size = torch.linalg.vector_norm(measured + 1e-6, dim=-1, keepdim=True)
        direction = measured + 0.2 * size * torch.tanh(self.residual(hidden))
        pooled = torch.einsum("bst,bstd->bsd", weights, hidden.float())
        summary = gelu(self.slot_hidden(torch.cat([pooled, attractors], -1)))
        return Slots(
            presence=self.presence(summary)[..., 0],
            label=self.label(summary),
            activity=activity,
            direction_in_time=direction,
            direction=torch.einsum("bst,bstc->bsc", weights, direction),
            log_distance=self.distance(summary)[..., 0],
        )

    def of_room(self, dense):
        pooled = torch.cat([dense.mean(1), dense.amax(1)], -1)
        return self.room(gelu(self.room_hidden(pooled)))


class Spatial(Blocks):
    """FOA [B, N, 4] -> Heard. `s` is config.model["spatial"]."""

    def __init__(self, audio_config, s):
        super().__init__(audio_config, s["width"], s["heads"], s["layers"])
        width, mels, classes = s["width"], s["mels"], s["classes"]
        self.sizes = s
        self.context = Blocks(audio_config, width, s["heads"], s["layers"])
        by_intensity = s["features"] == "intensity"
        rows, inputs = (mels, 5) if by_intensity else (s["fft"] // 2 + 1, 8)
        self.stem = nn.ModuleList()
        for channels, frames, bands in s["stem"]:
            self.stem.append(Stem(frames * bands * inputs, channels))
            rows, inputs = rows // bands, channels
        self.stem_out = Dense(rows * inputs, width)
        self.class_bands = Dense(width, classes * mels)
        self.class_bands_trust = nn.Parameter(torch.zeros(2))
        self.measured = Dense(6 * classes, width)
        self.layer_norm = nn.LayerNorm(width)
        self.attractors = Attractors(width, s["slots"])
        self.heads = Heads(s)

    def forward(self, audio):
        s = self.sizes
        vectors = intensity(audio, s["fft"], s["hop"], s["mels"])
        x = vectors
        if s["features"] != "intensity":
            x = foa_stft(audio, s["fft"], s["hop"])
        merged = int(np.prod([frames for _, frames, _ in s["stem"]]))
        steps = x.shape[1] // merged
        field = vectors[:, : merged * steps]
        field = field.reshape(field.shape[0], steps, merged, *field.shape[2:]).mean(2)
        dense = self._dense(x[:, : merged * steps], field)
        slots = self.heads.of_slots(dense, self.attractors(dense), field)
        return Heard(dense, slots, self.heads.of_room(dense))

    def _dense(self, x, field):
        for stem, (_, frames, bands) in zip(self.stem, self.sizes["stem"], strict=True):
            x = stem(patches(x, frames, bands))
        x = self.context(self.stem_out(x.flatten(2)))
        chosen = gates(self.class_bands, self.class_bands_trust, x, self.sizes["classes"], field)
        found = torch.einsum("btsm,btmc->btsc", torch.sigmoid(chosen).float(), field[..., 1:4])
        found = found / field.shape[2]
        x = x + self.measured(torch.cat([unit(found), found], -1).flatten(2))
        return self.layer_norm(super().forward(x))
