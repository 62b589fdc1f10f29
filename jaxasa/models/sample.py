"""Generation: prefill once a prompt, then a jitted loop of single tokens for G rows of each.

Letters: P prompts, G completions of each, S prompt length, C new tokens, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxasa.models.asa import ASA, Params
from jaxasa.models.decoder import Cache


class Completions(NamedTuple):
    """ids [P, G, C] (pad after the end), logps [P, G, C] of the sampled ids, mask [P, G, C].

    The mask is true up to and with the end of sequence.
    """

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
    pad: int,
    eos: int,
    audio_id: int,
    adapted: bool = True,
) -> Completions:
    """Completes prompts [P, S] (padded on the left), `group` times each.

    tokens [P, A, D]: projected audio, or None. temperature 0 is greedy; otherwise samples come
    from softmax(logits / temperature), without top-k or top-p. The prompt's keys and values are
    held once, whatever the group.
    """
    valid = prompts != pad
    x = asa.embed(params, prompts, tokens, audio_id)
    hidden, k, v = asa.hidden(params, x, valid, adapted)
    rows = prompts.shape[0] * group
    own = (k.shape[0], prompts.shape[0], group, max_new, *k.shape[3:])
    cache = Cache(k, v, jnp.zeros(own, k.dtype), jnp.zeros(own, v.dtype))
    logits = (hidden[:, -1] @ asa.table(params).T).astype(jnp.float32)
    logits = jnp.repeat(logits, group, axis=0)
    lengths = jnp.repeat(valid.sum(1), group)

    def choose(logits, key):
        scaled = logits / (temperature or 1.0)
        ids = jax.random.categorical(key, scaled) if temperature else logits.argmax(-1)
        logps = jnp.take_along_axis(scaled, ids[:, None], 1)[:, 0] - jax.nn.logsumexp(scaled, -1)
        return ids.astype(jnp.int32), logps

    def more(carry):
        step, ended = carry[0], carry[1]
        return (step < max_new) & ~ended.all()

    def body(carry):
        step, ended, logits, cache, ids, logps, mask = carry
        chosen, logp = choose(logits, jax.random.fold_in(key, step))
        chosen = jnp.where(ended, pad, chosen)
        ids = ids.at[:, step].set(chosen)
        logps = logps.at[:, step].set(jnp.where(ended, 0.0, logp))
        mask = mask.at[:, step].set(~ended)
        ended |= chosen == eos
        x = asa.embed(params, chosen[:, None], None, audio_id)
        positions = (lengths + step)[:, None]
        logits, cache = asa.decode(params, x, cache, positions, valid, step, adapted)
        return step + 1, ended, logits, cache, ids, logps, mask

    start = (
        jnp.zeros((), jnp.int32),
        jnp.zeros(rows, bool),
        logits,
        cache,
        jnp.full((rows, max_new), pad, jnp.int32),
        jnp.zeros((rows, max_new)),
        jnp.zeros((rows, max_new), bool),
    )
    *_, ids, logps, mask = jax.lax.while_loop(more, body, start)
    shape = (prompts.shape[0], group, max_new)
    return Completions(ids.reshape(shape), logps.reshape(shape), mask.reshape(shape))
