"""What the stages share: their context, hearing on the device, the gradient step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxasa import config
from jaxasa.acoustics.scenes import Clip
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE
from jaxasa.data import pipeline, questions
from jaxasa.data.dynamic_mixing import Mixed
from jaxasa.data.records import Records
from jaxasa.data.tokens import Text
from jaxasa.models import lm
from jaxasa.models.asa import ASA, Params
from jaxasa.parallel import sharding
from jaxasa.train import optim
from jaxasa.train.state import State

EVAL_SCENES = 64


ANSWER_WEIGHT = 4.0  # of a token of the answer, where those of the thought have 1


def eval_scenes(mesh: Mesh, at_least: int = EVAL_SCENES) -> int:
    """Scenes of an evaluation: the least multiple of the mesh's row shares from `at_least` on."""
    shares = sharding.shares(mesh)
    return -(-at_least // shares) * shares


@dataclass(frozen=True)
class Context:
    """What a stage builds its task from. train, dev: None in stage 0.

    asking: what draws the questions of stages 3 and 4; None in others.
    """

    run: config.Run
    stage: Any
    asa: ASA
    mesh: Mesh
    text: Text
    classes: Sequence[str]
    clips: Sequence[Clip]
    train: Records | Mixed | None
    dev: pipeline.Readable | None
    asking: questions.Asking | None = None

    @property
    def turns(self) -> bool:
        """Whether scenes may be turned as they are read: FOA turns exactly, two ears do not."""
        return self.run.model.spatial.format == "foa"

    @property
    def audio_tokens(self) -> int:
        return self.asa.audio_tokens(round(self.run.scenes.seconds * SAMPLE_RATE))


def held_out(
    context: Context, source: Sequence, make: Callable, purpose: str, at_least: int = EVAL_SCENES
) -> dict[str, np.ndarray]:
    """This process's rows of the one batch of first examples of `source` for evaluation.

    Of all processes it has `eval_scenes` rows, or as many as there are and divide over the mesh.
    Raises ConfigError where none do.
    """
    shares, seed = sharding.shares(context.mesh), context.run.seed
    batch = pipeline.fixed(source, make, seed, purpose, eval_scenes(context.mesh, at_least))
    found = len(next(iter(batch.values())))
    count = found - found % shares
    expected = f"scenes to evaluate on for each of data x fsdp = {shares}"
    config.check(count > 0, "Scenes.dev", found, expected)
    own = count // jax.process_count()
    first = jax.process_index() * own
    return {name: rows[first : first + own] for name, rows in batch.items()}


@dataclass
class Task:
    """What the loop asks of a stage (see train/loop.py)."""

    name: str
    batches: Any
    step: Callable[[State, Any, jax.Array], tuple[State, Mapping[str, Any]]]
    evaluate: Callable[[Params], Mapping[str, float] | None]


def batches(
    context: Context, make: Callable, purpose: str, guests: Sequence[pipeline.Guest] = ()
) -> pipeline.Batches:
    """The training batches of a stage that reads rendered scenes."""
    stage = context.stage
    return pipeline.Batches(
        context.train,
        make,
        context.run.seed,
        purpose,
        stage.batch_size,
        total=stage.steps * stage.batch_size,
        guests=guests,
        damaged=stage.max_damaged_records,
    )


def hear(batch: Mapping[str, jax.Array]) -> jax.Array:
    """int16 audio [B, N, C] as float, the field turned by `yaw` (degrees), only W where `mono`.

    Turning by psi maps X to X cos psi - Y sin psi and Y to X sin psi + Y cos psi: exact in FOA.
    Two ears are not turned, and hear their mean where `mono`.
    """
    if batch["audio"].shape[-1] == 2:
        ears = batch["audio"].astype(jnp.float32) * (1 / FULL_SCALE)
        return jnp.where(batch["mono"][:, None, None], ears.mean(-1, keepdims=True), ears)
    w, y, z, x = jnp.moveaxis(batch["audio"].astype(jnp.float32) * (1 / FULL_SCALE), -1, 0)
    angle = jnp.radians(batch["yaw"])[:, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    turned = jnp.stack([x * sin + y * cos, z, x * cos - y * sin], -1)
    turned = jnp.where(batch["mono"][:, None, None], 0.0, turned)
    return jnp.concatenate([w[..., None], turned], -1)


def reply_loss(
    asa: ASA, params: Params, prompt, reply, tokens, text: Text, adapted: bool, answer_weight=1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean negative log-likelihood of reply tokens [R, C] after prompts [R, P], and hit rates.

    tokens [R, A, D]: audio, or None. The word that ends the thought and the one that answers,
    two of some thirty, weigh `answer_weight`.
    """
    ids = jnp.concatenate([prompt, reply], 1)[:, :-1]
    x = asa.embed(params, ids, tokens, text.audio)
    hidden, *_ = asa.hidden(params, x, ids != text.pad, adapted)
    logps, hits = lm.token_logps(hidden[:, prompt.shape[1] - 1 :], asa.table(params), reply)
    counted = (reply != text.pad).astype(jnp.float32)
    answers = jnp.pad(reply[:, :-1] == text.answer, ((0, 0), (1, 0)))
    # The thought ends with the answer: there it is found, and then only copied.
    decides = jnp.pad(reply[:, 1:] == text.end_think, ((0, 0), (0, 1))) & (reply != text.think)
    weights = counted * jnp.where(answers | decides, answer_weight, 1.0)
    decided = jnp.maximum(decides.sum(), 1)
    return -(weights * logps).sum() / weights.sum(), {
        "token_accuracy": (hits * counted).sum() / counted.sum(),
        "answer_accuracy": (hits & decides).sum() / decided,
    }


def gradient_update(context: Context, loss: Callable) -> Any:
    """loss(params, batch, key) -> (scalar, metrics); returns update(state, batch, key), jitted.

    Gradients are taken with respect to what the stage trains, and nothing else; a batch is taken
    in `stage.grad_accum_steps` parts.

    Raises ConfigError for parts that do not divide among the devices.
    """
    optimizer = optim.make(context.stage)
    parts = context.stage.grad_accum_steps
    share = sharding.shares(context.mesh)
    if context.stage.batch_size // parts % share:
        name = type(context.stage).__name__
        raise ConfigError(
            f"{name}.grad_accum_steps is {parts}, expected parts of the batch of {context.stage.batch_size} "
            f"that divide by data x fsdp = {share}"
        )

    def update(state: State, batch, key) -> tuple[State, dict]:
        trainable, frozen = trees.split(state.params, context.stage.trainable)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def gradient(trainable, batch, key):
            return loss(trees.merge(trainable, frozen), batch, key)

        if parts == 1:
            found = gradient(trainable, batch, key)
        else:
            found = _over_parts(functools.partial(gradient, trainable), batch, key, parts)
        (value, metrics), grads = found
        changes, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, changes)
        params = trees.merge(trainable, frozen)
        metrics = {"loss": value, "gradient_norm": optax.global_norm(grads)} | metrics
        return dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state
        ), metrics

    return jax.jit(update, donate_argnums=0)


def gradient_step(context: Context, loss: Callable) -> Callable:
    """The loop's step(state, batch, key) of `loss`: places the batch and updates the state."""
    jitted = gradient_update(context, loss)

    def step(state: State, batch, key) -> tuple[State, Mapping]:
        placed = sharding.place_batch(batch, context.mesh)
        with jax.transfer_guard("disallow"):
            state, metrics = jitted(state, placed, key)
        return state, metrics | _counts(context, batch)

    return step


def _counts(context: Context, batch: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Examples of a batch, of all processes, and the tokens of their prompts and replies."""
    processes = jax.process_count()
    counts = {"examples": len(next(iter(batch.values()))) * processes}
    texts = [batch[name] for name in ("prompt", "reply") if name in batch]
    if texts:
        pad = context.text.pad
        counts["tokens"] = sum(int((x != pad).sum()) for x in texts) * processes
    return counts


def by_parts(function: Callable, batch, parts: int):
    """function(batch), arrays [B, ...] too, made of `parts` of the batch one after another."""
    if parts == 1:
        return function(batch)

    def whole(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(whole, jax.lax.map(function, _parted(batch, parts)))


def _parted(batch, parts: int):
    """Arrays [B, ...] -> [parts, B / parts, ...]."""

    def part(x: jax.Array) -> jax.Array:
        # Every so manieth row, so that each part lies on all devices.
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(part, batch)


def _over_parts(gradient: Callable, batch, key: jax.Array, parts: int):
    """gradient(batch, key), a ((value, metrics), gradients), over `parts` of the batch in turn.

    Means over the parts, and of metrics named "*_max" the largest.
    """

    def add(total, inputs):
        measured, gradients = gradient(*inputs)
        return jax.tree.map(jnp.add, total, gradients), measured

    inputs = _parted(batch, parts), jax.random.split(key, parts)
    first = jax.tree.map(lambda x: x[0], inputs)
    _, like = jax.eval_shape(gradient, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, (values, metrics) = jax.lax.scan(add, zeros, inputs)
    metrics = {n: x.max() if n.endswith("_max") else x.mean() for n, x in metrics.items()}
    return (values.mean(), metrics), jax.tree.map(lambda x: x / parts, total)


def evaluation(context: Context, measure: Callable, batch: Mapping[str, np.ndarray]) -> Callable:
    """measure(params, batch) -> dict of scalars, jitted, on this process's rows of one batch."""
    placed = sharding.place_batch(batch, context.mesh)
    jitted = jax.jit(measure)

    def evaluate(params: Params) -> dict[str, float]:
        return {name: float(value) for name, value in jitted(params, placed).items()}

    return evaluate
