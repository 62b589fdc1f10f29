# SPDX-License-Identifier: Apache-2.0
"""The compiled functions with which a model answers (inference/qa.py).

They take the parameters as an argument, so that checkpoints of one model share what is compiled.

Shapes: B batch (a clip and its prompt), N samples, C channels, A audio tokens, D width, P prompt
length, L reply length, O replies to score.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxasa.config import Sampling
from jaxasa.models import lm, sample
from jaxasa.models.asa import ASA, Params
from jaxasa.models.sample import SpecialTokenIds
from jaxasa.models.spatial import Slots, SpatialOutput

NUM_SAMPLES = 8  # reasoning traces over which the options' probabilities are averaged


@partial(jax.jit, static_argnums=0)
def encode(asa: ASA, params: Params, audio: jax.Array) -> tuple[SpatialOutput, jax.Array | None]:
    """The spatial encoder's estimates for audio [B, N, C], and the logits of the semantic expert's
    class tags [B, A, classes] (None if the projector has no such expert)."""
    encoded = asa.encode_audio(params, audio)
    _, experts = asa.project(params, encoded)
    return encoded.spatial, experts.tags


@partial(jax.jit, static_argnums=0)
def encode_slots(asa: ASA, params: Params, audio: jax.Array, lengths=None) -> Slots:
    """The slots alone of audio [B, N, C], of which lengths [B] samples are no padding."""
    return asa.encode_audio(params, audio, lengths=lengths).spatial.slots


@partial(jax.jit, static_argnums=0)
def audio_embeddings(asa: ASA, params: Params, audio, drop_spatial, lengths=None) -> jax.Array:
    """Audio embeddings [B, A, D] of audio [B, N, C], of which lengths [B] samples are no padding.

    drop_spatial [B]: see ASA.project.
    """
    encoded = asa.encode_audio(params, audio, lengths=lengths)
    audio_embeds, _ = asa.project(params, encoded, drop_spatial)
    return audio_embeds


@partial(jax.jit, static_argnums=(0, 1))
def greedy_replies(
    asa: ASA, special_tokens: SpecialTokenIds, params: Params, audio_embeds, prompts
) -> jax.Array:
    """Ids [B, L] of the greedy replies to prompts [B, P] with `audio_embeddings`."""
    key = jax.random.key(0)
    return sample.generate(asa, params, prompts, audio_embeds, key, special_tokens).ids[:, 0]


@partial(jax.jit, static_argnums=(0, 1))
def sample_replies(
    asa: ASA, special_tokens: SpecialTokenIds, params: Params, audio_embeds, prompts
) -> jax.Array:
    """Ids [B, NUM_SAMPLES, L] of replies at temperature 1; arguments as of `greedy_replies`."""
    return sample.generate(
        asa,
        params,
        prompts,
        audio_embeds,
        jax.random.key(0),
        special_tokens,
        Sampling(temperature=1.0),
        num_generations=NUM_SAMPLES,
    ).ids


@partial(jax.jit, static_argnums=(0, 1))
def prefill(
    asa: ASA, special_tokens: SpecialTokenIds, params: Params, audio_embeds, prompts
) -> sample.DecodeState:
    """`sample.prefill` for one reply to each prompt; arguments as of `greedy_replies`."""
    length = asa.model.reply_tokens
    return sample.prefill(asa, params, prompts, audio_embeds, special_tokens, 1, length)


@partial(jax.jit, static_argnums=(0, 1, 2))
def decode_until(
    asa: ASA,
    special_tokens: SpecialTokenIds,
    sampling: Sampling,
    params: Params,
    prompts,
    state: sample.DecodeState,
    key,
    until,
) -> sample.DecodeState:
    """`sample.decode_until`. Clear `sampling.stop`, or each set of strings compiles anew."""
    return sample.decode_until(asa, params, prompts, state, key, until, special_tokens, sampling)


@partial(jax.jit, static_argnums=(0, 1))
def option_logprobs(
    asa: ASA, special_tokens: SpecialTokenIds, params: Params, audio_embeds, prompts, replies
) -> jax.Array:
    """Log-probability [B, O] of the answer in each of `replies` [B, O, L], given what precedes it.

    Only the tokens from <answer> on count. Other arguments as of `greedy_replies`.
    """
    flat = replies.reshape(-1, replies.shape[-1])
    mask = flat != special_tokens.pad
    hidden = asa.score_completions(
        params,
        asa.embed(params, prompts, audio_embeds, special_tokens.audio),
        prompts != special_tokens.pad,
        asa.embed(params, flat, None, special_tokens.audio),
        mask,
    )
    logps, _ = lm.token_logps(hidden, asa.unembedding(params), flat)
    is_answer = jnp.cumsum(flat == special_tokens.answer, 1) > 0
    return (logps * (is_answer & mask)).sum(-1).reshape(replies.shape[:2])
