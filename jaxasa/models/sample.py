"""Generation: prefill once a prompt, then a jitted loop of single tokens for G rows of each.

`generate` is both in one; `begin` and `advance` let the host look at what is said in between,
which is how `texts` stops at strings.

Letters: P prompts, G completions of each, R = P x G rows, S prompt length, C new tokens,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxasa.models import decoding
from jaxasa.models.asa import ASA, Params
from jaxasa.models.decoder import Cache


class Completions(NamedTuple):
    """ids [P, G, C] (pad after the end), logps [P, G, C] of the sampled ids, mask [P, G, C].

    The mask is true up to and with the end of sequence.
    """

    ids: jax.Array
    logps: jax.Array
    mask: jax.Array


class Stream(NamedTuple):
    """Completions under way: `at` tokens long; logits [R, V] say what comes next.

    ended [R]; ids, logps, mask [R, C].
    """

    at: jax.Array
    ended: jax.Array
    logits: jax.Array
    cache: decoding.Caches
    ids: jax.Array
    logps: jax.Array
    mask: jax.Array


def generate(
    asa: ASA,
    params: Params,
    prompts: jax.Array,
    tokens: jax.Array | None,
    key: jax.Array,
    *,
    group: int = 1,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pad: int,
    eos: int,
    audio_id: int,
    adapted: bool = True,
    prepared: decoding.Prepared | None = None,
) -> Completions:
    """Completes prompts [P, S] (padded on the left), `group` times each.

    tokens [P, A, D]: projected audio, or None. temperature 0 is greedy; otherwise samples come
    from softmax(logits / temperature), of which `filtered` leaves what top_k and top_p say, and
    logps are those of that distribution. The prompt's keys and values are held once, whatever
    the group. prepared: what `decoding.prepare` made of the parameters; None: made here.
    """
    marks = dict(pad=pad, audio_id=audio_id, adapted=adapted)
    stream = begin(asa, params, prompts, tokens, group=group, max_new=max_new, **marks)
    choice = dict(temperature=temperature, top_k=top_k, top_p=top_p, eos=eos)
    made = advance(asa, params, prompts, stream, key, max_new, prepared=prepared, **choice, **marks)
    shape = (prompts.shape[0], group, max_new)
    return Completions(*(x.reshape(shape) for x in (made.ids, made.logps, made.mask)))


def begin(
    asa: ASA, params: Params, prompts, tokens, *, group=1, max_new, pad, audio_id, adapted=True
) -> Stream:
    """Prefill: nothing said yet. Arguments as `generate` has them."""
    valid = prompts != pad
    x = asa.embed(params, prompts, tokens, audio_id)
    hidden, k, v = asa.hidden(params, x, valid, adapted)
    rows = prompts.shape[0] * group
    layers, _, _, heads, width = k.shape
    own = (layers, prompts.shape[0], group, heads, max_new, width)
    cache = Cache(k, v, jnp.zeros(own, k.dtype), jnp.zeros(own, v.dtype))
    return Stream(
        jnp.zeros((), jnp.int32),
        jnp.zeros(rows, bool),
        jnp.repeat(asa.logits(params, hidden[:, -1]), group, axis=0),
        decoding.caches(asa, cache),
        jnp.full((rows, max_new), pad, jnp.int32),
        jnp.zeros((rows, max_new)),
        jnp.zeros((rows, max_new), bool),
    )


def advance(
    asa: ASA,
    params: Params,
    prompts,
    stream: Stream,
    key,
    until,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    pad,
    eos,
    audio_id,
    adapted=True,
    prepared: decoding.Prepared | None = None,
) -> Stream:
    """Goes on until `until` tokens are said or all rows have ended.

    Token i is drawn with (key, i), so that stops on the way change nothing.
    """
    valid = prompts != pad
    group = stream.ids.shape[0] // prompts.shape[0]
    lengths = jnp.repeat(valid.sum(1), group)
    if prepared is None:
        prepared = decoding.prepare(asa, params, adapted)

    def choose(logits, key):
        scaled = scores = logits
        if temperature:
            scaled = filtered(logits / temperature, top_k, top_p)
            # The highest of these is a draw from softmax(scaled).
            scores = scaled + jax.random.gumbel(key, scaled.shape, scaled.dtype)
        ids = highest(scores)
        logps = jnp.take_along_axis(scaled, ids[:, None], 1)[:, 0] - jax.nn.logsumexp(scaled, -1)
        return ids, logps

    def body(s: Stream) -> Stream:
        chosen, logp = choose(s.logits, jax.random.fold_in(key, s.at))
        chosen = jnp.where(s.ended, pad, chosen)
        ids = s.ids.at[:, s.at].set(chosen)
        logps = s.logps.at[:, s.at].set(jnp.where(s.ended, 0.0, logp))
        mask = s.mask.at[:, s.at].set(~s.ended)
        x = asa.embed(params, chosen[:, None], None, audio_id)
        positions = (lengths + s.at)[:, None]
        logits, cache = decoding.step(
            asa, params, prepared, x, s.cache, positions, valid, s.at, adapted
        )
        return Stream(s.at + 1, s.ended | (chosen == eos), logits, cache, ids, logps, mask)

    return jax.lax.while_loop(lambda s: (s.at < until) & ~s.ended.all(), body, stream)


def highest(scores: jax.Array) -> jax.Array:
    """argmax of scores [R, V] over the last axis, int32 [R], the first of equal ones.

    As two plain reductions: of an argmax XLA makes a loop on the CPU that is no vector code.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    last = scores.shape[1] - 1  # where nothing is equal to itself: NaN
    return jnp.where(scores == scores.max(-1, keepdims=True), places, last).min(-1)


def filtered(logits: jax.Array, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """logits [R, V] with -inf where sampling must not go.

    top_k: only the k likeliest tokens (0: all); what ties with the k-th stays. top_p: of those, the
    likeliest up to the one with which their probabilities add up to p (arXiv:1904.09751).
    """
    count = logits.shape[-1]
    if 0 < top_k < count:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        falling = -jnp.sort(-logits, axis=-1)
        p = jax.nn.softmax(falling, -1)
        is_in = jnp.cumsum(p, -1) - p < top_p
        least = jnp.where(is_in, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def texts(
    stream: Stream,
    advance: Callable[[Stream, int], Stream],
    decode: Callable[[Sequence[int]], str],
    stop: Sequence[str] = (),
    chunk: int = 8,
) -> list[str]:
    """What the rows of a stream say in the end; each up to, and without, the first `stop` in it.

    advance: of this module, with all but the stream and `until` given. decode: ids of a whole row
    to text. Every `chunk` tokens the texts are searched, so that a string that tokens divide is
    found, and a row that has one ends; without `stop` they are not looked at before the end.
    """
    room = stream.ids.shape[1]
    for until in range(chunk, room + chunk, chunk) if stop else [room]:
        stream = advance(stream, min(until, room))
        said = [decode(row) for row in np.asarray(stream.ids)]
        cuts = [min((at for s in stop if (at := text.find(s)) >= 0), default=None) for text in said]
        stream = stream._replace(ended=stream.ended | np.array([cut is not None for cut in cuts]))
        if np.asarray(stream.ended).all():
            break
    return [text[:cut] for text, cut in zip(said, cuts, strict=True)]
