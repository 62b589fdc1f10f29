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


@partial(jax.jit, static_argnums=0)
def place(asa: ASA, params: Params, audio, nulled, lengths=None) -> jax.Array:
    """Audio tokens [B, A, D] of audio [B, N, C], of which lengths [B] count: all that is heard.

    nulled [B]: where the learnt null stands for the dense map.
    """
    placed, _ = asa.project(params, asa.listen(params, audio, lengths=lengths), nulled)
    return placed


@partial(jax.jit, static_argnums=(0, 1))
def generate(asa: ASA, marks: Marks, params: Params, placed, prompts) -> jax.Array:
    """Greedy replies [B, C] to prompts [B, P] about what `place` gave."""
    return _completed(asa, marks, params, placed, prompts)[:, 0]


@partial(jax.jit, static_argnums=(0, 1))
def draw(asa: ASA, marks: Marks, params: Params, placed, prompts) -> jax.Array:
    """DRAWS replies each [B, DRAWS, C], sampled at temperature 1; arguments as of `generate`."""
    return _completed(asa, marks, params, placed, prompts, group=DRAWS, temperature=1.0)


def _completed(asa: ASA, marks: Marks, params: Params, placed, prompts, **how):
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
def begin(asa: ASA, marks: Marks, params: Params, placed, prompts) -> sample.Stream:
    """`sample.begin` on prompts; arguments as of `generate`."""
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
def likelihoods(asa: ASA, marks: Marks, params: Params, placed, prompts, replies) -> jax.Array:
    """Log-probability [B, N] of the answer in each of replies [B, N, C]; else as `generate`."""
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
