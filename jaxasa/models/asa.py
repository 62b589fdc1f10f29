"""The whole model: semantic and spatial encoders, projector, decoder.

Parameters are a plain dict {"semantic", "spatial", "projector", "decoder", "lora"}; the
functions here are pure. `lora` may be left out: then the decoder answers as its base model.

Letters: B batch, N samples, S slots, A tokens of the map, T tokens, D width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxasa import config
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE
from jaxasa.data import features
from jaxasa.models.decoder import Cache, Decoder, by_rows
from jaxasa.models.layers import over_bands, resample_time
from jaxasa.models.projector import Experts, Projector
from jaxasa.models.semantic import Semantic
from jaxasa.models.spatial import Heard, Spatial, statements, statements_width

Params = dict


class Audio(NamedTuple):
    """What the encoders make of a scene: semantic and dense [B, A, .] at token rate, Heard.

    said [B, S, K]: see spatial.statements.
    """

    semantic: jax.Array
    dense: jax.Array
    said: jax.Array
    heard: Heard


class Disguise(NamedTuple):
    """How training makes a scene sound otherwise, so that recordings are not learnt by heart.

    hidden: bool [B, frames, M], what of the log-mel the semantic encoder must do without.
    colour: [B, K] log10 of the power gain at K points from the lowest mel band to the highest.
    """

    hidden: jax.Array
    colour: jax.Array


@dataclass(frozen=True)
class ASA:
    """The modules of one model config, and the functions that compose them."""

    model: config.Model

    @cached_property
    def dtype(self):
        return jnp.dtype(self.model.dtype)

    @cached_property
    def semantic(self) -> Semantic:
        return Semantic(self.model.semantic, self.model.unroll, self.dtype)

    @cached_property
    def spatial(self) -> Spatial:
        return Spatial(self.model.spatial, self.model.unroll, self.dtype)

    @cached_property
    def projector(self) -> Projector:
        m = self.model
        return Projector(m.projector, m.spatial.num_classes, m.decoder.width, self.dtype)

    @cached_property
    def decoder(self) -> Decoder:
        m = self.model
        return Decoder(m.decoder, m.lora, m.unroll, self.dtype, m.remat)

    def audio_tokens(self, samples: int) -> int:
        """How many places a clip of `samples` takes in a prompt: one a slot, then its map's."""
        return self.model.spatial.num_slots + self.map_tokens(samples)

    def map_tokens(self, samples: int) -> int:
        """How many of them are of the map, at least 1; half a place counts.

        In whole numbers, so that it is the same for an array of lengths on the device.
        """
        each = round(SAMPLE_RATE / self.model.projector.token_rate)
        count = (samples + each // 2) // each
        return count + (count < 1)

    def mono(self, audio: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N], what the semantic encoder hears: W of FOA, the mean of two ears.

        That mean is a comb filter for sounds from the side, above about 700 Hz, as any downmix.
        """
        return audio[..., 0] if self.model.spatial.format == "foa" else audio.mean(-1)

    def init(self, key: jax.Array, seconds: float = 1.0) -> Params:
        """Fresh parameters; call inside `jit` to build them sharded. Adapters start at zero."""
        keys = jax.random.split(key, 5)
        m = self.model
        audio = jnp.zeros((1, int(seconds * SAMPLE_RATE), m.spatial.channels))
        mels = features.log_mel(audio[..., 0], m.semantic.n_mels)
        semantic = jnp.zeros((1, 1, m.semantic.width))
        dense = jnp.zeros((1, 1, m.spatial.width))
        x = jnp.zeros((1, 2, m.decoder.width))
        decoder = self.decoder.init(keys[3], jnp.zeros((1, 2), int), method="embed")["params"]
        layers = self.decoder.init(keys[4], x, jnp.ones((1, 2), bool))
        null = jnp.zeros((m.spatial.width,))
        said = jnp.zeros((1, 1, statements_width(m.spatial.num_classes)))
        return {
            "semantic": self.semantic.init(keys[0], mels)["params"],
            "spatial": self.spatial.init(keys[1], audio)["params"],
            "projector": self.projector.init(keys[2], semantic, dense, said)["params"]
            | {"null": null},
            "decoder": decoder | layers["params"],
            "lora": layers["lora"],
        }

    def listen(
        self,
        params: Params,
        audio: jax.Array,
        disguise: Disguise | None = None,
        lengths: jax.Array | None = None,
    ) -> Audio:
        """audio [B, N, C], int16 or float -> both encoders' views at token rate.

        lengths [B]: samples of each clip, at least one step of the map, where the rest of N is
        padding. Its first map_tokens(lengths) tokens are what they are without the padding, and
        the others have no place in a prompt.
        """
        if audio.dtype == jnp.int16:
            audio = audio.astype(jnp.float32) * (1 / FULL_SCALE)
        mels = features.log_mel(self.mono(audio), self.model.semantic.n_mels, lengths)
        colour = None
        if disguise is not None:
            colour = disguise.colour
            mels = mels + over_bands(colour, mels.shape[-1])[:, None] / features.WHISPER_RANGE
            mels = jnp.where(disguise.hidden, mels.mean(axis=(1, 2), keepdims=True), mels)
        frames = None if lengths is None else lengths // features.HOP
        semantic = self.semantic.apply({"params": params["semantic"]}, mels, frames)
        heard = self.spatial.apply({"params": params["spatial"]}, audio, colour, lengths)
        count = self.map_tokens(audio.shape[1])
        s = self.model.spatial
        said = statements(heard.slots, heard.room, s.hop_length * s.frames_per_step / SAMPLE_RATE)
        if lengths is None:
            dense = resample_time(heard.dense, count)
            return Audio(resample_time(semantic, count), dense, said, heard)
        frames, steps = self.model.semantic.frames(lengths), self.model.spatial.steps(lengths)
        tokens = self.map_tokens(lengths)
        return Audio(
            resample_time(semantic, count, frames, tokens),
            resample_time(heard.dense, count, steps, tokens),
            said,
            heard,
        )

    def project(
        self, params: Params, audio: Audio, nulled: jax.Array | None = None
    ) -> tuple[jax.Array, Experts]:
        """Audio tokens [B, S + A, D]: what each slot says, then the map.

        Where nulled [B] is true, the learnt null stands for the map and the slots say nothing.
        """
        weights = dict(params["projector"])
        null = weights.pop("null").astype(self.dtype)
        dense, said = audio.dense, audio.said
        if nulled is not None:
            dense = jnp.where(nulled[:, None, None], null, dense)
            said = jnp.where(nulled[:, None, None], 0.0, said)
        return self.projector.apply({"params": weights}, audio.semantic, dense, said)

    def _variables(self, params: Params, adapted: bool) -> dict:
        variables = {"params": params["decoder"]}
        return variables | {"lora": params["lora"]} if adapted else variables

    def embed(self, params: Params, ids: jax.Array, tokens: jax.Array | None, audio_id: int):
        """ids [B, T] -> [B, T, D], audio `tokens` [B, S + A, D] at the places of `audio_id`."""
        x = self.decoder.apply({"params": params["decoder"]}, ids, method="embed")
        if tokens is None:
            return x
        here = ids == audio_id
        index = jnp.clip(jnp.cumsum(here, 1) - 1, 0, tokens.shape[1] - 1)
        placed = jnp.take_along_axis(tokens, index[..., None], axis=1)
        return jnp.where(here[..., None], placed.astype(x.dtype), x)

    def hidden(self, params: Params, x: jax.Array, valid: jax.Array, adapted: bool = True):
        """x [B, T, D], valid [B, T] -> hidden [B, T, D] and keys and values of the prompt."""
        return self.decoder.apply(self._variables(params, adapted), x, valid)

    def complete(self, params: Params, prompt, valid, said, said_valid, adapted: bool = True):
        """Hidden states that choose the completions [R, C, D] of P prompts [P, S, D].

        R = P x G: the G completions of a prompt follow one another. valid [P, S], said_valid
        [R, C]. In one pass, in which each prompt is read once.
        """
        groups = lambda x: x.reshape(len(prompt), -1, *x.shape[1:])  # noqa: E731
        hidden = self.decoder.apply(
            self._variables(params, adapted),
            prompt,
            valid,
            groups(said),
            groups(said_valid),
            method="complete",
        )
        return hidden.reshape(said.shape)

    def table(self, params: Params) -> jax.Array:
        """The output's table [V, D] in compute dtype, for `lm.token_logps`."""
        tied = self.model.decoder.tie_word_embeddings
        decoder = params["decoder"]
        return (decoder["embedding"]["embedding"] if tied else decoder["head"]).astype(self.dtype)

    def decode(self, params: Params, x, cache: Cache, positions, prompt_mask, step, adapted=True):
        """One token a row: x [B, 1, D] -> logits [B, V], Cache."""
        variables = self._variables(params, adapted)
        hidden, cache = self.decoder.apply(
            variables, x, cache, positions, prompt_mask, step, method="decode"
        )
        return self.logits(params, hidden[:, 0]), cache

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """hidden [B, D] of few rows -> float32 [B, V]."""
        return by_rows(hidden, [self.table(params)], jnp.float32)
