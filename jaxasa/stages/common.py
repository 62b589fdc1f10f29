# SPDX-License-Identifier: Apache-2.0
"""Building blocks that stages share: audio augmentation, the reply loss, batches, evaluation.

Shapes: see jaxasa/stages/__init__.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxasa import config
from jaxasa.core.audio import FULL_SCALE
from jaxasa.data import pipeline
from jaxasa.data.tokens import TextTokenizer
from jaxasa.models import lm
from jaxasa.models.asa import ASA, Params
from jaxasa.parallel import sharding
from jaxasa.stages.stage import Context
from jaxasa.train import update

EVAL_SCENES = 64
ANSWER_WEIGHT = 4.0  # of the two tokens that decide on an answer; all others have weight 1


def augment_audio(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Audio [B, N, C] of a batch, int16 -> float32 in -1..1, rotated, or reduced to mono.

    FOA is rotated by batch["yaw"] [B] (degrees): by psi, X becomes X cos psi - Y sin psi and Y
    becomes X sin psi + Y cos psi, which is exact. Where batch["mono"] [B] is true, X, Y and Z are
    zero. Binaural audio is not rotated, and mono is the mean of both channels.
    """
    audio = batch["audio"].astype(jnp.float32) * (1 / FULL_SCALE)
    mono = batch["mono"][:, None, None]
    if audio.shape[-1] == 2:
        return jnp.where(mono, audio.mean(-1, keepdims=True), audio)
    w, y, z, x = jnp.moveaxis(audio, -1, 0)
    angle = jnp.radians(batch["yaw"])[:, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    rotated = jnp.stack([x * sin + y * cos, z, x * cos - y * sin], -1)
    return jnp.concatenate([w[..., None], jnp.where(mono, 0.0, rotated)], -1)


def reply_loss(
    asa: ASA,
    params: Params,
    prompt: jax.Array,
    reply: jax.Array,
    audio_embeds: jax.Array | None,
    tokenizer: TextTokenizer,
    answer_weight: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy over reply tokens [R, L] after prompts [R, P], and accuracies.

    Two tokens of a reply are weighted by `answer_weight`, all others by 1: the last token of the
    reasoning trace and the first token of the answer (2 of about 30).
    audio_embeds [R, A, D]: at the prompts' audio tokens.
    """
    ids = jnp.concatenate([prompt, reply], 1)[:, :-1]
    x = asa.embed(params, ids, audio_embeds, tokenizer.audio_id)
    hidden, *_ = asa.forward(params, x, ids != tokenizer.pad_id)
    logps, hits = lm.token_logps(hidden[:, prompt.shape[1] - 1 :], asa.unembedding(params), reply)
    mask = (reply != tokenizer.pad_id).astype(jnp.float32)
    is_answer = jnp.pad(reply[:, :-1] == tokenizer.answer_id, ((0, 0), (1, 0)))
    # A trace ends with the answer: it is decided there, and afterwards only copied.
    is_decision = jnp.pad(reply[:, 1:] == tokenizer.end_think_id, ((0, 0), (0, 1)))
    is_decision &= reply != tokenizer.think_id
    weights = mask * jnp.where(is_answer | is_decision, answer_weight, 1.0)
    return -(weights * logps).sum() / weights.sum(), {
        "token_accuracy": (hits * mask).sum() / mask.sum(),
        "answer_accuracy": (hits & is_decision).sum() / jnp.maximum(is_decision.sum(), 1),
    }


def merge_leading_dims(x):
    """[B, Q, ...] -> [B x Q, ...]."""
    return x.reshape(-1, *x.shape[2:])


def training_batches(
    context: Context[Any],
    make: Callable,
    purpose: str,
    extra_datasets: Sequence[pipeline.MixtureComponent] = (),
) -> pipeline.Batches:
    """Endless batches of `make(element, rng, progress)` of the training scenes.

    purpose: keys the random numbers. extra_datasets: further components of the mixture.
    """
    stage = context.stage
    return pipeline.Batches(
        context.train,
        make,
        context.seed,
        purpose,
        stage.batch_size,
        total_examples=stage.steps * stage.batch_size,
        mixture=extra_datasets,
        max_damaged=stage.max_damaged_records,
    )


def training_step(context: Context[Any], loss: Callable) -> Callable:
    """The training loop's step of `loss` (train/update.py)."""
    return update.make_step(context.stage, context.mesh, loss, context.tokenizer.pad_id)


def num_eval_scenes(mesh: Mesh, at_least: int = EVAL_SCENES) -> int:
    """Scenes of an evaluation: `at_least`, rounded up to a multiple of the batch shards."""
    shards = sharding.num_batch_shards(mesh)
    return -(-at_least // shards) * shards


def eval_batch(
    context: Context[Any],
    source: Sequence,
    make: Callable,
    purpose: str,
    at_least: int = EVAL_SCENES,
) -> dict[str, np.ndarray]:
    """The fixed evaluation batch: this process's shard of the first examples of `source`.

    All processes together have `num_eval_scenes` rows, or as many as `source` has and the mesh
    divides. Raises ConfigError if that is none.
    """
    shards = sharding.num_batch_shards(context.mesh)
    count = num_eval_scenes(context.mesh, at_least)
    batch = pipeline.eval_batch(source, make, context.seed, purpose, count)
    rows = len(next(iter(batch.values())))
    count = rows - rows % shards
    expected = f"scenes to evaluate on for each of data x fsdp = {shards}"
    config.check(count > 0, "Scenes.dev", rows, expected)
    own = count // jax.process_count()
    first = jax.process_index() * own
    return {name: value[first : first + own] for name, value in batch.items()}


def evaluation(
    context: Context[Any], loss: Callable, batch: Mapping[str, np.ndarray]
) -> Callable[[Params], dict[str, float]]:
    """evaluate(params) -> "loss" and metrics of `loss` on this process's rows of one batch."""
    sharded = sharding.shard_batch(batch, context.mesh)

    @jax.jit
    def measure(params, batch):
        value, metrics = loss(params, batch, None)
        return {"loss": value} | metrics

    def evaluate(params: Params) -> dict[str, float]:
        return {name: float(value) for name, value in measure(params, sharded).items()}

    return evaluate
