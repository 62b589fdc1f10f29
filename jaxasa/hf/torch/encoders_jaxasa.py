# SPDX-License-Identifier: Apache-2.0
"""The encoders of a jaxasa model: Whisper's layers on one channel, and the spatial encoder.

They compute what models/semantic.py and models/spatial.py of jaxasa compute, where each step is
explained.

Shapes: B batch, N samples, F frames, T steps of the dense map, M mel bands, S slots, D width.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from .features_jaxasa import SAMPLE_RATE, compressed_stft, intensity, interaural, resample_time
from .peaks_jaxasa import find_doa_peaks, peak_spectra

FRAMES_PER_SECOND = 50
ATTRACTOR_STRIDE = 2
ACTIVITY_CUES_WIDTH = 16


class Slots(NamedTuple):
    """Estimates for one source in each slot.

    presence [B, S], label [B, S, classes], activity [B, S, T]: logits.
    direction_in_time [B, S, T, 3] and direction over the clip [B, S, 3]: (x, y, z), of any length.
    log_distance [B, S]: natural log of metres.
    """

    presence: torch.Tensor
    label: torch.Tensor
    activity: torch.Tensor
    direction_in_time: torch.Tensor
    direction: torch.Tensor
    log_distance: torch.Tensor


class SpatialOutput(NamedTuple):
    """The dense map [B, T, D], the slots, and the room [B, 4]: log RT60 (s), log volume (m3),
    DRR / 10 (dB), number of sources."""

    dense: torch.Tensor
    slots: Slots
    room: torch.Tensor


class Dense(nn.Linear):
    """A linear layer whose input may have another dtype than its weights."""

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
    """Whisper's position embeddings [length, channels]: sines, then cosines."""
    scales = np.exp(-np.log(10_000.0) / (channels // 2 - 1) * np.arange(channels // 2))
    angles = np.arange(length)[:, None] * scales[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class SemanticEncoder(Blocks):
    """Whisper's encoder, log-mel [B, 2 T, M] -> [B, T, D] at 50 frames a second.

    Position embeddings are cut to the clip's length; WhisperEncoder itself takes 30 s only.
    """

    def __init__(self, c, pool):
        """c: WhisperConfig. pool: frames averaged into one, as in Qwen2-Audio."""
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


class LstmCell(nn.Module):
    """An LSTM with one matrix for each gate, as in flax: i, f, g, o from input and from state."""

    def __init__(self, width):
        super().__init__()
        for gate in "ifgo":
            setattr(self, f"i{gate}", nn.Linear(width, width, bias=False))
            setattr(self, f"h{gate}", nn.Linear(width, width))

    def forward(self, x, carry):
        """x [B, T, D], (cell, hidden) [B, D] each -> outputs [B, T, D], the last (cell, hidden)."""
        gates = "ifgo"
        of_input = F.linear(x, torch.cat([getattr(self, f"i{g}").weight for g in gates]))
        weight = torch.cat([getattr(self, f"h{g}").weight for g in gates])
        bias = torch.cat([getattr(self, f"h{g}").bias for g in gates])
        cell, hidden = carry
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (of_input[:, t] + F.linear(hidden, weight, bias)).chunk(4, -1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1), (cell, hidden)


class Attractors(nn.Module):
    """Attractors [B, S, D] by an LSTM encoder-decoder over dense [B, T, D] (EEND-EDA)."""

    def __init__(self, width, slots, evidence):
        """evidence: number of features of the DOA peak at which each slot starts, or 0."""
        super().__init__()
        self.slots = nn.Parameter(torch.zeros(slots, width))
        if evidence:
            self.seen = Dense(evidence, width)
        self.reader, self.writer = LstmCell(width), LstmCell(width)

    def forward(self, dense, evidence):
        coarse = resample_time(dense, -(-dense.shape[1] // ATTRACTOR_STRIDE))
        zeros = dense.new_zeros(dense.shape[0], dense.shape[2])
        _, carry = self.reader(coarse, (zeros, zeros))
        queries = self.slots.expand(dense.shape[0], -1, -1)
        if evidence is not None:
            queries = queries + self.seen(evidence)
        return self.writer(queries, carry)[0]


class StemLayer(nn.Module):
    """Linear layer on patches, norm and GELU."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.linear = Dense(inputs, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x):
        return gelu(self.norm(self.linear(x)))


def gelu(x):
    return F.gelu(x, approximate="tanh")


def unit_vector(v):
    """v [..., 3] scaled to length 1; shorter if v is nearly 0."""
    return v / torch.sqrt((v**2).sum(-1, keepdim=True) + 1e-8)


def patches(x, frames, bands):
    """Patches [B, T, F, C] -> [B, T / frames, F / bands, frames x bands x C]."""
    batch, time, freq, channels = x.shape
    x = x[:, :, : freq // bands * bands]
    x = x.reshape(batch, time // frames, frames, freq // bands, bands, channels).transpose(2, 3)
    return x.flatten(3)


def band_gates(layer, trust, x, count, by_step):
    """Attention logits [B, T, count, M] over mel bands: learnt, plus the bands' clarity."""
    bands = layer(x).reshape(*x.shape[:2], count, by_step.shape[2])
    clarity = by_step[..., 0] * trust[0] + (by_step[..., 4] - 0.5) * trust[1]
    return bands + clarity[:, :, None]


class Heads(nn.Module):
    """The heads that read the slots and the room."""

    def __init__(self, s):
        super().__init__()
        width, mels = s["width"], s["n_mels"]
        # Features of `peak_spectra`; binaural audio has no peaks.
        spectra = 4 * mels + 2 if s.get("format", "foa") == "foa" else 0
        self.activity_bias = nn.Parameter(torch.zeros(()))
        self.activity_keys = Dense(width, width)
        if spectra:
            self.cues_hidden = Dense(3, ACTIVITY_CUES_WIDTH)
            self.cues_out = Dense(ACTIVITY_CUES_WIDTH, 1)
        self.slot_dense, self.slot_attractor = Dense(width, width), Dense(width, width)
        self.slot_hidden = Dense(2 * width + spectra, width)
        self.bands, self.residual = Dense(width, mels), Dense(width, 3)
        self.slot_bands, self.slot_bands_trust = Dense(width, mels), nn.Parameter(torch.zeros(2))
        self.presence, self.distance = Dense(width, 1), Dense(width, 1)
        self.label = Dense(width + spectra, s["num_classes"])
        self.room_hidden, self.room = Dense(2 * width, width), Dense(width, 4)

    def slots(self, dense, attractors, by_frame, by_step, peaks):
        """by_frame [B, F, M, 5]: features of each frame and band; by_step [B, T, M, 5]: their
        means over each step of the map; peaks: Peaks or None -> Slots."""
        activity = torch.einsum("btd,bsd->bst", self.activity_keys(dense), attractors)
        activity = (activity / dense.shape[-1] ** 0.5 + self.activity_bias).float()
        merged = by_frame.shape[1] // by_step.shape[1]
        if peaks is not None:
            proximity = peaks.proximity.unflatten(2, (-1, merged)).mean(3)
            share = proximity.mean(-1)
            weighted = (proximity * by_step[:, None, ..., 0]).sum(-1)
            level = weighted / (proximity.sum(-1) + 1e-3)
            relative = share / (share.amax(-1, keepdim=True) + 1e-3)
            cues = torch.stack([torch.log(share + 1e-2), level, relative], -1)
            activity = activity + self.cues_out(gelu(self.cues_hidden(cues)))[..., 0].float()
        active = torch.sigmoid(activity)
        weights = active / (active.sum(-1, keepdim=True) + 1e-6)
        hidden = gelu(self.slot_dense(dense)[:, None] + self.slot_attractor(attractors)[:, :, None])
        common = band_gates(self.slot_bands, self.slot_bands_trust, dense, 1, by_step)
        gates = torch.sigmoid(self.bands(hidden) + common.movedim(2, 1)).float()
        residual = self.residual(hidden)
        pooled = torch.einsum("bst,bstd->bsd", weights, hidden.float())
        summary = [pooled, attractors]
        mels = by_step.shape[2]
        if peaks is None:
            measured = torch.einsum("bstm,btmc->bstc", gates, by_step[..., 1:4]) / mels
        else:
            vectors = peaks.vote_weight[..., None] * by_frame[:, None, ..., 1:4]
            vectors = vectors.unflatten(2, (-1, merged)).mean(3)
            measured = torch.einsum("bstm,bstmc->bstc", gates, vectors) / mels
            clarity = torch.linalg.vector_norm(measured + 1e-6, dim=-1, keepdim=True)
            residual = 0.2 * clarity * torch.tanh(residual)
            by_frame_active = active.repeat_interleave(merged, -1)[..., None]
            spectra = peak_spectra(by_frame[..., 0], peaks.proximity * by_frame_active)
            summary.append(spectra)
        direction_in_time = measured + residual
        direction = torch.einsum("bst,bstc->bsc", weights, direction_in_time)
        if peaks is not None:
            direction = (direction + 1e-6).norm(dim=-1, keepdim=True) * peaks.direction
        summary = gelu(self.slot_hidden(torch.cat(summary, -1)))
        of_class = summary if peaks is None else torch.cat([summary, spectra], -1)
        return Slots(
            presence=self.presence(summary)[..., 0],
            label=self.label(of_class),
            activity=activity,
            direction_in_time=direction_in_time,
            direction=direction,
            log_distance=self.distance(summary)[..., 0],
        )

    def room_estimates(self, dense):
        """dense [B, T, D] -> [B, 4], see SpatialOutput."""
        pooled = torch.cat([dense.mean(1), dense.amax(1)], -1)
        return self.room(gelu(self.room_hidden(pooled)))


class SpatialEncoder(Blocks):
    """FOA [B, N, 4] or binaural audio [B, N, 2] -> SpatialOutput."""

    def __init__(self, audio_config, s):
        """s: config.model["spatial"]."""
        super().__init__(audio_config, s["width"], s["heads"], s["layers"])
        width, mels, classes = s["width"], s["n_mels"], s["num_classes"]
        self.sizes = s
        self.merged = int(np.prod([frames for _, frames, _ in s["stem"]]))  # frames of a step
        self.step_seconds = self.merged * s["hop_length"] / SAMPLE_RATE
        self.context = Blocks(audio_config, width, s["heads"], s["layers"])
        self.foa = s.get("format", "foa") == "foa"
        if not self.foa:
            self.cues = nn.Parameter(torch.zeros(mels, 3, 3))
        parts = (s["n_fft"] // 2 + 1, 8 if self.foa else 4)
        rows, inputs = parts if s["features"] == "stft" else (mels, 5)
        self.stem = nn.ModuleList()
        for channels, frames, bands in s["stem"]:
            self.stem.append(StemLayer(frames * bands * inputs, channels))
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
        s, merged = self.sizes, self.merged
        measure = intensity if self.foa else interaural
        vectors = measure(audio, s["n_fft"], s["hop_length"], s["n_mels"])
        x = vectors
        if s["features"] == "stft":
            x = compressed_stft(audio, s["n_fft"], s["hop_length"])
        steps = x.shape[1] // merged
        by_frame = vectors[:, : merged * steps]
        by_step = by_frame.unflatten(1, (steps, merged)).mean(2)
        if not self.foa:
            direction = torch.einsum("btmc,mcd->btmd", by_step[..., 1:4], self.cues.float())
            by_step = torch.cat([by_step[..., :1], direction, by_step[..., 4:]], -1)
        dense = self._dense_map(x[:, : merged * steps], by_step)
        peaks = evidence = None
        if self.foa:
            peaks = find_doa_peaks(by_frame[..., 1:4], s["num_slots"])
            of_peak = torch.stack([peaks.strength, torch.log(peaks.strength + 1e-3)], -1)
            of_peak = torch.cat([of_peak, peaks.direction[..., 2:]], -1)
            evidence = torch.cat([of_peak, peak_spectra(by_frame[..., 0], peaks.proximity)], -1)
        attractors = self.attractors(dense, evidence)
        slots = self.heads.slots(dense, attractors, by_frame, by_step, peaks)
        dense = self._condition_on_slots(dense, slots)
        return SpatialOutput(dense, slots, self.heads.room_estimates(dense))

    def _dense_map(self, x, by_step):
        """Stem and transformer blocks: features [B, F, ...] -> [B, T, D]."""
        for layer, (_, frames, bands) in zip(self.stem, self.sizes["stem"], strict=True):
            x = layer(patches(x, frames, bands))
        x = self.context(self.stem_out(x.flatten(2)))
        gates = band_gates(
            self.class_bands, self.class_bands_trust, x, self.sizes["num_classes"], by_step
        )
        gates = torch.sigmoid(gates).float()
        measured = torch.einsum("btsm,btmc->btsc", gates, by_step[..., 1:4]) / by_step.shape[2]
        measured = torch.cat([unit_vector(measured), measured], -1)
        return super().forward(x + self.measured(measured.flatten(2)))

    def _condition_on_slots(self, dense, slots):
        """Adds to the map each class's activity, direction and distance by the slots."""
        label = torch.sigmoid(slots.presence)[..., None] * torch.softmax(slots.label, -1)
        distance = slots.log_distance[..., None]
        place = torch.cat([torch.ones_like(distance), unit_vector(slots.direction), distance], -1)
        activity = torch.sigmoid(slots.activity)
        by_class = torch.einsum("bst,bsc,bsk->btck", activity, label.float(), place.float())
        return self.layer_norm(dense + self.told(by_class.flatten(2)))
