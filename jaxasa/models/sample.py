# SPDX-License-Identifier: Apache-2.0
"""Sampling completions: prefill once for each prompt, then a compiled loop over new tokens.

`generate` is both in one. `prefill` and `decode_until` are its halves, between which the host can
look at the text; `decode_with_stop_strings` ends it at strings so.

Shapes: B prompts, G completions per prompt, R = B x G rows, P prompt length, A audio tokens, L new
tokens, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa.config import Sampling
from jaxasa.models import decoding
from jaxasa.models.asa import ASA, Params
from jaxasa.models.decoder import KVCache

GREEDY = Sampling()


class SpecialTokenIds(NamedTuple):
    """Ids of the special tokens that generation needs. answer: the one that opens the answer."""

    pad: int
    eos: int
    audio: int
    answer: int

    @classmethod
    def of(cls, tokenizer) -> "SpecialTokenIds":
        """Those of a data.tokens.TextTokenizer."""
        return cls(tokenizer.pad_id, tokenizer.eos_id, tokenizer.audio_id, tokenizer.answer_id)


class Completions(NamedTuple):
    """Sampled completions, each array [B, G, L].

    ids: pad after the end. logps: log-probabilities of the sampled ids. mask: True up to and
    including the end of sequence.
    """

    ids: jax.Array
    logps: jax.Array
    mask: jax.Array


class DecodeState(NamedTuple):
    """State of the decoding loop after `step` new tokens.

    ended: bool [R]. logits [R, V]: of the next token. ids, logps, mask: [R, L].
    """

    step: jax.Array
    ended: jax.Array
    logits: jax.Array
    cache: decoding.DecodeCache
    ids: jax.Array
    logps: jax.Array
    mask: jax.Array


def generate(
    asa: ASA,
    params: Params,
    prompts: jax.Array,
    audio_embeds: jax.Array | None,
    key: jax.Array,
    special_tokens: SpecialTokenIds,
    sampling: Sampling = GREEDY,
    *,
    num_generations: int = 1,
    max_new_tokens: int | None = None,
    weights: decoding.DecodeWeights | None = None,
) -> Completions:
    """Samples `num_generations` completions of each prompt [B, P], padded on the left.

    audio_embeds [B, A, D]: at the prompts' audio tokens; None: no audio. sampling: see
    `config.Sampling`; logps are those of the distribution that it samples from. Its `stop` strings
    are not looked at. max_new_tokens: L, by default Model.reply_tokens. The KV cache of a prompt
    exists once for all its completions. weights: from `decoding.prepare_weights`, if they are
    already there.
    """
    length = max_new_tokens or asa.model.reply_tokens
    state = prefill(asa, params, prompts, audio_embeds, special_tokens, num_generations, length)
    state = decode_until(
        asa, params, prompts, state, key, length, special_tokens, sampling, weights
    )
    shape = (prompts.shape[0], num_generations, length)
    return Completions(*(x.reshape(shape) for x in (state.ids, state.logps, state.mask)))


def prefill(
    asa: ASA,
    params: Params,
    prompts: jax.Array,
    audio_embeds: jax.Array | None,
    special_tokens: SpecialTokenIds,
    num_generations: int,
    max_new_tokens: int,
) -> DecodeState:
    """Prefills the KV cache with the prompts: a DecodeState with no new tokens yet.

    Arguments as of `generate`.
    """
    mask = prompts != special_tokens.pad
    x = asa.embed(params, prompts, audio_embeds, special_tokens.audio)
    hidden, k, v = asa.forward(params, x, mask)
    rows = prompts.shape[0] * num_generations
    layers, _, _, heads, head_dim = k.shape
    own = (layers, prompts.shape[0], num_generations, heads, max_new_tokens, head_dim)
    cache = KVCache(k, v, jnp.zeros(own, k.dtype), jnp.zeros(own, v.dtype))
    return DecodeState(
        jnp.zeros((), jnp.int32),
        jnp.zeros(rows, bool),
        jnp.repeat(asa.logits(params, hidden[:, -1]), num_generations, axis=0),
        decoding.prepare_cache(asa, cache),
        jnp.full((rows, max_new_tokens), special_tokens.pad, jnp.int32),
        jnp.zeros((rows, max_new_tokens)),
        jnp.zeros((rows, max_new_tokens), bool),
    )


def decode_until(
    asa: ASA,
    params: Params,
    prompts: jax.Array,
    state: DecodeState,
    key: jax.Array,
    until: jax.Array | int,
    special_tokens: SpecialTokenIds,
    sampling: Sampling = GREEDY,
    weights: decoding.DecodeWeights | None = None,
) -> DecodeState:
    """Decodes up to `until` new tokens, or until every row has ended.

    Token i is sampled with fold_in(key, i), so that stopping on the way changes nothing.
    """
    mask = prompts != special_tokens.pad
    num_generations = state.ids.shape[0] // prompts.shape[0]
    lengths = jnp.repeat(mask.sum(1), num_generations)
    if weights is None:
        weights = decoding.prepare_weights(asa, params)

    def sample_token(logits, key):
        scaled = scores = logits
        if sampling.temperature:
            scaled = logits / sampling.temperature
            scaled = top_k_top_p_filter(scaled, sampling.top_k, sampling.top_p)
            # Gumbel-max: the argmax is a sample from softmax(scaled).
            scores = scaled + jax.random.gumbel(key, scaled.shape, scaled.dtype)
        ids = first_argmax(scores)
        logps = jnp.take_along_axis(scaled, ids[:, None], 1)[:, 0] - jax.nn.logsumexp(scaled, -1)
        return ids, logps

    def body(s: DecodeState) -> DecodeState:
        token, logp = sample_token(s.logits, jax.random.fold_in(key, s.step))
        token = jnp.where(s.ended, special_tokens.pad, token)
        ids = s.ids.at[:, s.step].set(token)
        logps = s.logps.at[:, s.step].set(jnp.where(s.ended, 0.0, logp))
        new_mask = s.mask.at[:, s.step].set(~s.ended)
        x = asa.embed(params, token[:, None], None, special_tokens.audio)
        positions = (lengths + s.step)[:, None]
        logits, cache = decoding.decode_step(
            asa, params, weights, x, s.cache, positions, mask, s.step
        )
        return DecodeState(
            step=s.step + 1,
            ended=s.ended | (token == special_tokens.eos),
            logits=logits,
            cache=cache,
            ids=ids,
            logps=logps,
            mask=new_mask,
        )

    return jax.lax.while_loop(lambda s: (s.step < until) & ~s.ended.all(), body, state)


def first_argmax(scores: jax.Array) -> jax.Array:
    """argmax of scores [R, V] over the last axis, int32 [R]; of equal ones the first.

    As two plain reductions, since XLA compiles an argmax on CPU to a loop that is not vectorized.
    """
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    last = scores.shape[1] - 1  # if nothing equals itself: NaN
    return jnp.where(scores == scores.max(-1, keepdims=True), index, last).min(-1)


def top_k_top_p_filter(logits: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """logits [R, V] with -inf at tokens that must not be sampled.

    top_k: keeps the k likeliest tokens, and those that tie with the k-th (0: all). top_p: nucleus
    sampling (arXiv:1904.09751), keeps of these the likeliest up to the one with which their
    probabilities reach p.
    """
    count = logits.shape[-1]
    if 0 < top_k < count:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        p = jax.nn.softmax(descending, -1)
        is_in = jnp.cumsum(p, -1) - p < top_p
        least = jnp.where(is_in, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def decode_with_stop_strings(
    state: DecodeState,
    decode_until: Callable[[DecodeState, int], DecodeState],
    detokenize: Callable[[Sequence[int]], str],
    stop: Sequence[str] = (),
    chunk: int = 8,
) -> list[str]:
    """The completions as text, each up to and without the first string of `stop` in it.

    decode_until: the function of this module with all arguments but the state and `until` bound.
    detokenize: ids of a row to text. Every `chunk` tokens the texts are searched, so that a string
    across several tokens is found, and rows with one end; without `stop` there is one chunk.
    """
    length = state.ids.shape[1]
    for until in range(chunk, length + chunk, chunk) if stop else [length]:
        state = decode_until(state, min(until, length))
        texts = [detokenize(row) for row in np.asarray(state.ids)]
        cuts = [
            min((at for s in stop if (at := text.find(s)) >= 0), default=None) for text in texts
        ]
        state = state._replace(ended=state.ended | np.array([cut is not None for cut in cuts]))
        if np.asarray(state.ended).all():
            break
    return [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
