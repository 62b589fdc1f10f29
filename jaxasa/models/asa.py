# SPDX-License-Identifier: Apache-2.0
"""The spatial audio language model, from audio to logits.

A reimplementation of the model of "The World is Not Mono" (arXiv:2601.02954):

    audio [B, N, C] ─┬─ one channel ── semantic encoder ── semantic [B, U, Ds] ──────┐
                     │                 (Whisper)                                     │
                     └─ all channels ─ spatial encoder ─┬─ slot features [B, S, K] ──┤
                                       (slots, room)    │    │ what slots estimate   │
                                                        └─ dense map [B, U, Dd] ─────┤
                                                                                 projector
                                                                                     │
    prompt ids [B, P] ─ embeddings, with the audio embeddings [B, A, D] in them ─────┘
                          │
                     decoder (Qwen) with LoRA adapters ── logits

    semantic encoder  what sounds: frames of Whisper's encoder (models/semantic.py)
    spatial encoder   where it sounds: a dense map over time; `num_slots` attractors ("slots",
                      EEND-EDA), each for at most one source, from which its class, direction and
                      distance are estimated and written back into the map; room acoustics, which
                      are part of every slot's features (models/spatial.py)
    projector         both streams to the decoder's embeddings, by default "dense hybrid" (P2): an
                      expert each for content, direction, distance, reverberation and source
                      count, and a joint one (models/projector.py)
    decoder           a causal language model, frozen or not, with LoRA adapters (models/decoder.py)

Not in the paper: slots that start from DOA peaks of the intensity vectors, and an audio token for
each slot in front of those of the dense map.

`ASA` composes them. Its functions are pure: parameters are a plain nested dict {"semantic",
"spatial", "projector", "decoder", "lora"} that each takes as its first argument. The adapters are
applied if `params` holds "lora"; `without_adapters(params)` is the base model.

Shapes: B batch of clips or prompts, N samples, C channels, M mel bands, S slots, U tokens of the
map, A = S + U audio tokens, T tokens, P prompt length with its audio tokens, D decoder width,
Ds, Dd widths of the streams, K slot features, G completions per prompt, R = B x G rows, L new
tokens, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE
from jaxasa.data import features
from jaxasa.models.decoder import Decoder, KVCache, small_batch_matmul
from jaxasa.models.layers import interp_bands, resample_time
from jaxasa.models.projector import ExpertOutputs, Projector
from jaxasa.models.semantic import SemanticEncoder
from jaxasa.models.spatial import (
    SpatialEncoder,
    SpatialOutput,
    num_slot_features,
    slot_features,
)

Params = dict


class EncodedAudio(NamedTuple):
    """What both encoders make of a batch of clips, ready for the projector.

    semantic [B, U, Ds] and dense [B, U, Dd]: the two streams, averaged to Projector.token_rate
    (tokens a second). slot_features [B, S, K]: estimates of each slot and of the room, sorted by
    onset, empty slots last (spatial.slot_features). spatial: all that the spatial encoder
    estimates, at its own rate.
    """

    semantic: jax.Array
    dense: jax.Array
    slot_features: jax.Array
    spatial: SpatialOutput


class Augmentation(NamedTuple):
    """Training augmentation of the encoders' inputs, against overfitting to the recordings.

    spec_mask: bool [B, N // 160, M], SpecAugment's mask (arXiv:1904.08779) of the semantic
        encoder's log-mel; M is Semantic.n_mels.
    eq_log10: [B, E], a random equaliser: log10 of the power gain at E points, spread evenly from
        the lowest mel band to the highest. It applies to both encoders.
    """

    spec_mask: jax.Array
    eq_log10: jax.Array


def without_adapters(params: Params) -> Params:
    """The parameters of the base model: `params` without its LoRA adapters."""
    return {part: tree for part, tree in params.items() if part != "lora"}


@dataclass(frozen=True)
class ASA:
    """The modules of one model config, and the pure functions that compose them.

    Hashable, so that it can be a static argument of `jax.jit`.
    """

    model: config.Model

    @cached_property
    def dtype(self):
        return jnp.dtype(self.model.dtype)

    @cached_property
    def semantic(self) -> SemanticEncoder:
        return SemanticEncoder(self.model.semantic, self.model.unroll, self.dtype)

    @cached_property
    def spatial(self) -> SpatialEncoder:
        return SpatialEncoder(self.model.spatial, self.model.unroll, self.dtype)

    @cached_property
    def projector(self) -> Projector:
        m = self.model
        return Projector(m.projector, m.spatial.num_classes, m.decoder.width, self.dtype)

    @cached_property
    def decoder(self) -> Decoder:
        m = self.model
        return Decoder(m.decoder, m.lora, m.unroll, self.dtype, m.remat)

    def num_audio_tokens(self, samples: int) -> int:
        """Audio tokens of a clip of so many samples: one for each slot, then its map's."""
        return self.model.spatial.num_slots + self.num_map_tokens(samples)

    def num_map_tokens(self, samples: int) -> int:
        """Tokens of the dense map, rounded to the nearest whole number and at least 1.

        Integer arithmetic, so that an array of lengths on the device gives the same numbers.
        """
        each = round(SAMPLE_RATE / self.model.projector.token_rate)
        count = (samples + each // 2) // each
        return count + (count < 1)

    def to_mono(self, audio: jax.Array) -> jax.Array:
        """The semantic encoder's channel, [B, N, C] -> [B, N]: W of FOA, the mean of two ears.

        For sounds from the side that mean is a comb filter, with its first notch near 700 Hz.
        """
        return audio[..., 0] if self.model.spatial.format == "foa" else audio.mean(-1)

    def init(self, key: jax.Array, seconds: float = 1.0) -> Params:
        """Initial parameters; call it inside `jit` to create them sharded.

        LoRA's B matrices start at zero, so adapters add nothing at first. Do not rename modules or
        parameters lightly: flax derives each initial value from `key` and the parameter's path.
        """
        keys = jax.random.split(key, 5)
        m = self.model
        audio = jnp.zeros((1, int(seconds * SAMPLE_RATE), m.spatial.channels))
        mels = features.log_mel(audio[..., 0], m.semantic.n_mels)
        semantic = jnp.zeros((1, 1, m.semantic.width))
        dense = jnp.zeros((1, 1, m.spatial.width))
        slots = jnp.zeros((1, 1, num_slot_features(m.spatial.num_classes)))
        x = jnp.zeros((1, 2, m.decoder.width))
        embedding_variables = self.decoder.init(keys[3], jnp.zeros((1, 2), int), method="embed")
        block_variables = self.decoder.init(keys[4], x, jnp.ones((1, 2), bool))
        null_embedding = jnp.zeros((m.spatial.width,))
        return {
            "semantic": self.semantic.init(keys[0], mels)["params"],
            "spatial": self.spatial.init(keys[1], audio)["params"],
            "projector": self.projector.init(keys[2], semantic, dense, slots)["params"]
            | {"null_embedding": null_embedding},
            "decoder": embedding_variables["params"] | block_variables["params"],
            "lora": block_variables["lora"],
        }

    def encode_audio(
        self,
        params: Params,
        audio: jax.Array,
        augmentation: Augmentation | None = None,
        lengths: jax.Array | None = None,
    ) -> EncodedAudio:
        """Runs both encoders on audio [B, N, C], int16 or float in [-1, 1].

        lengths [B]: samples of each clip, at least one step of the map; the rest of N is padding.
        The first num_map_tokens(lengths) tokens of a clip equal those of the clip alone; the
        others mean nothing and get no place in a prompt.
        """
        if audio.dtype == jnp.int16:
            audio = audio.astype(jnp.float32) * (1.0 / FULL_SCALE)
        mels = features.log_mel(self.to_mono(audio), self.model.semantic.n_mels, lengths)
        eq_log10 = None
        if augmentation is not None:
            eq_log10 = augmentation.eq_log10
            gain = interp_bands(eq_log10, mels.shape[-1])[:, None]
            mels = mels + gain / features.DECADES_PER_UNIT
            mean = mels.mean(axis=(1, 2), keepdims=True)
            mels = jnp.where(augmentation.spec_mask, mean, mels)
        mel_frames = None if lengths is None else lengths // features.HOP
        semantic = self.semantic.apply({"params": params["semantic"]}, mels, mel_frames)
        spatial = self.spatial.apply({"params": params["spatial"]}, audio, eq_log10, lengths)
        s = self.model.spatial
        step_seconds = s.hop_length * s.frames_per_step / SAMPLE_RATE
        slots = slot_features(spatial.slots, spatial.room, step_seconds)
        max_tokens = self.num_map_tokens(audio.shape[1])
        if lengths is None:
            dense = resample_time(spatial.dense, max_tokens)
            return EncodedAudio(resample_time(semantic, max_tokens), dense, slots, spatial)
        encoder_frames, map_steps = self.model.semantic.frames(lengths), s.steps(lengths)
        tokens = self.num_map_tokens(lengths)
        return EncodedAudio(
            resample_time(semantic, max_tokens, encoder_frames, tokens),
            resample_time(spatial.dense, max_tokens, map_steps, tokens),
            slots,
            spatial,
        )

    def project(
        self, params: Params, audio: EncodedAudio, drop_spatial: jax.Array | None = None
    ) -> tuple[jax.Array, ExpertOutputs]:
        """Audio embeddings [B, A, D], the slots' first, and the experts' auxiliary outputs.

        drop_spatial: bool [B], clips whose spatial input is withheld (dropout in SFT, and a control
        of the benchmark): a learnt null embedding replaces the dense map, and zeros the slot
        features.
        """
        weights = dict(params["projector"])
        null_embedding = weights.pop("null_embedding").astype(self.dtype)
        dense, slots = audio.dense, audio.slot_features
        if drop_spatial is not None:
            dense = jnp.where(drop_spatial[:, None, None], null_embedding, dense)
            slots = jnp.where(drop_spatial[:, None, None], 0.0, slots)
        return self.projector.apply({"params": weights}, audio.semantic, dense, slots)

    def embed(
        self, params: Params, ids: jax.Array, audio_embeds: jax.Array | None, audio_id: int
    ) -> jax.Array:
        """Input embeddings [B, T, D] of ids [B, T].

        The k-th occurrence of `audio_id` in a row gets audio_embeds[:, k] of [B, A, D].
        """
        x = self.decoder.apply({"params": params["decoder"]}, ids, method="embed")
        if audio_embeds is None:
            return x
        is_audio = ids == audio_id
        index = jnp.clip(jnp.cumsum(is_audio, 1) - 1, 0, audio_embeds.shape[1] - 1)
        placed = jnp.take_along_axis(audio_embeds, index[..., None], axis=1)
        return jnp.where(is_audio[..., None], placed.astype(x.dtype), x)

    def forward(
        self, params: Params, x: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Causal forward pass of the decoder on embeddings x [B, T, D].

        mask: the attention mask, bool [B, T], False at padding. Returns hidden states [B, T, D],
        and the keys and values of every layer, [layers, B, T, kv_heads, head_dim], with which
        sampling prefills the KV cache.
        """
        return self.decoder.apply(_decoder_variables(params), x, mask)

    def score_completions(
        self, params: Params, prompt: jax.Array, prompt_mask, completion: jax.Array, mask
    ) -> jax.Array:
        """Teacher-forced hidden states [R, L, D] of G completions for each of B prompts.

        prompt: embeddings [B, P, D]; completion: embeddings [R, L, D], those of a prompt next to
        each other. prompt_mask [B, P] and mask [R, L]: attention masks, False at padding. The state
        at position i predicts token i. Each prompt is computed once for all its completions.
        """
        groups = lambda x: x.reshape(len(prompt), -1, *x.shape[1:])  # noqa: E731
        hidden = self.decoder.apply(
            _decoder_variables(params),
            prompt,
            prompt_mask,
            groups(completion),
            groups(mask),
            method="score_completions",
        )
        return hidden.reshape(completion.shape)

    def decode_step(
        self, params: Params, x: jax.Array, cache: KVCache, positions, prompt_mask, step
    ) -> tuple[jax.Array, KVCache]:
        """One token for each row against the KV cache: x [R, 1, D] -> logits [R, V], the cache.

        positions [R, 1]: RoPE position of each row's new token; step: its index among the L new
        tokens. prompt_mask [B, P].
        """
        hidden, cache = self.decoder.apply(
            _decoder_variables(params), x, cache, positions, prompt_mask, step, method="decode_step"
        )
        return self.logits(params, hidden[:, 0]), cache

    def unembedding(self, params: Params) -> jax.Array:
        """The output matrix [V, D] in compute dtype: the input embedding if the two are tied."""
        is_tied = self.model.decoder.tie_word_embeddings
        decoder = params["decoder"]
        table = decoder["embedding"]["embedding"] if is_tied else decoder["head"]
        return table.astype(self.dtype)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]; for few rows (see lm.token_logps)."""
        return small_batch_matmul(hidden, [self.unembedding(params)], jnp.float32)


def _decoder_variables(params: Params) -> dict:
    """Flax collections of the decoder: LoRA is one of its own."""
    variables = {"params": params["decoder"]}
    return variables | {"lora": params["lora"]} if "lora" in params else variables
