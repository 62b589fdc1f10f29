"""Replies as they are compiled: greedy, drawn, and how likely answers are. `jaxasa.ask` uses them.

Not methods of a model with its weights, so that checkpoints of one model share what is compiled.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxasa.models import lm, sample
from jaxasa.models.asa import ASA, Params

DRAWS = 8  # thoughts of each that weigh its options


class Marks(NamedTuple):
    """Ids of tokens that generation knows."""

    pad: int
    eos: int
    audio: int
    answer: int


@partial(jax.jit, static_argnums=0)
def hear(asa: ASA, params: Params, audio: jax.Array):
    """What the encoders hear, and the logits of the tags at token rate (None: it has none)."""
    listened = asa.listen(params, audio)
    _, experts = asa.project(params, listened)
    return listened.heard, experts.tags


@partial(jax.jit, static_argnums=(0, 1))
def generate(
    asa: ASA, marks: Marks, params: Params, audio, prompts, nulled, lengths=None
) -> jax.Array:
    """Greedy replies [B, C] to prompts [B, P] about audio [B, N, C], of which lengths [B] count.

    nulled [B]: where the learnt null stands for the dense map.
    """
    return _completed(asa, marks, params, audio, prompts, nulled, lengths)[:, 0]


@partial(jax.jit, static_argnums=(0, 1))
def draw(asa: ASA, marks: Marks, params: Params, audio, prompts, nulled, lengths=None) -> jax.Array:
    """DRAWS replies each [B, DRAWS, C], sampled at temperature 1; arguments as of `generate`."""
    how = dict(group=DRAWS, temperature=1.0)
    return _completed(asa, marks, params, audio, prompts, nulled, lengths, **how)


def _completed(asa: ASA, marks: Marks, params: Params, audio, prompts, nulled, lengths, **how):
    placed, _ = asa.project(params, asa.listen(params, audio, lengths=lengths), nulled)
    made = sample.generate(
        asa,
        params,
        prompts,
        placed,
        jax.random.key(0),
        max_new=asa.model.reply_tokens,
        pad=marks.pad,
        eos=marks.eos,
        audio_id=marks.audio,
        adapted="lora" in params,
        **how,
    )
    return made.ids


@partial(jax.jit, static_argnums=(0, 1))
def begin(
    asa: ASA, marks: Marks, params: Params, audio, prompts, nulled, lengths=None
) -> sample.Stream:
    """`sample.begin` on prompts about audio; arguments as of `generate`."""
    placed, _ = asa.project(params, asa.listen(params, audio, lengths=lengths), nulled)
    return sample.begin(
        asa,
        params,
        prompts,
        placed,
        max_new=asa.model.reply_tokens,
        pad=marks.pad,
        audio_id=marks.audio,
        adapted="lora" in params,
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def advance(asa: ASA, marks: Marks, choice, params: Params, prompts, stream, key, until):
    """`sample.advance`; choice: a config.Sampling, whose `stop` is not looked at here."""
    return sample.advance(
        asa,
        params,
        prompts,
        stream,
        key,
        until,
        temperature=choice.temperature,
        top_k=choice.top_k,
        top_p=choice.top_p,
        pad=marks.pad,
        eos=marks.eos,
        audio_id=marks.audio,
        adapted="lora" in params,
    )


@partial(jax.jit, static_argnums=(0, 1))
def likelihoods(
    asa: ASA, marks: Marks, params: Params, audio, prompts, replies, nulled, lengths=None
) -> jax.Array:
    """Log-probability [R, N] of the answer in each of replies [R, N, C] to prompts [R, P]."""
    placed, _ = asa.project(params, asa.listen(params, audio, lengths=lengths), nulled)
    flat = replies.reshape(-1, replies.shape[-1])
    is_there = flat != marks.pad
    hidden = asa.complete(
        params,
        asa.embed(params, prompts, placed, marks.audio),
        prompts != marks.pad,
        asa.embed(params, flat, None, marks.audio),
        is_there,
        "lora" in params,
    )
    logps, _ = lm.token_logps(hidden, asa.table(params), flat)
    is_answer = jnp.cumsum(flat == marks.answer, 1) > 0
    return (logps * (is_answer & is_there)).sum(-1).reshape(replies.shape[:2])
