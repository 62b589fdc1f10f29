# SPDX-License-Identifier: Apache-2.0
"""Stage 1 (`spatial`): slots, room and dense map of the spatial encoder; tags of the semantic one.

Slots are matched to sources once per clip, which makes the loss permutation-invariant (Hungarian
assignment on presence, class, direction and activity, without a gradient, as in DETR). The
projector's experts learn their auxiliary targets at token rate.

Shapes: B scenes, S slots and as many sources (padding has present = 0), T frames or tokens,
K classes, M mel bands.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxasa import config
from jaxasa.data import features, pipeline, real_recordings, transforms
from jaxasa.models.asa import Augmentation
from jaxasa.models.flops import Workload
from jaxasa.models.projector import ExpertOutputs
from jaxasa.models.spatial import Slots, SpatialOutput, unit_vector
from jaxasa.stages import common
from jaxasa.stages.stage import AUDIO_FIELDS, Batch, Context, Loss, TrainingStage
from jaxasa.train import loop

DIRECTION_COST_WEIGHT = 4.0  # of 1 - cosine between a slot and a source, in the matching
EQ_POINTS = 8  # of the random EQ, over the mel bands
EXPERT_WEIGHTS = {
    "tags": 8.0,
    "clip_tags": 4.0,
    "class_direction": 8.0,
    "class_distance": 0.5,
    "reverberation": 0.5,
    "active_count": 0.5,
}


class LabelMasks(NamedTuple):
    """1.0 for labels that are known, 0.0 for others: real recordings leave some open.

    label [B, S], log_distance [B, S], room [B, 4].
    """

    label: jax.Array
    log_distance: jax.Array
    room: jax.Array


def mask_labels(batch: Batch) -> tuple[LabelMasks, Batch]:
    """(masks, batch with 0 for unknown labels), from -1 for classes and NaN for numbers."""
    masks = LabelMasks(
        batch["label"] >= 0, jnp.isfinite(batch["log_distance"]), jnp.isfinite(batch["room"])
    )
    filled = {name: jnp.where(mask, batch[name], 0) for name, mask in masks._asdict().items()}
    return LabelMasks(*(mask.astype(jnp.float32) for mask in masks)), {**batch, **filled}


def frame_activity(span: jax.Array, frames: int, seconds: float) -> jax.Array:
    """Share of each frame in which a source sounds: span [..., 2] (seconds) -> [..., T]."""
    edges = jnp.linspace(0.0, seconds, frames + 1)
    low = jnp.maximum(edges[:-1], span[..., :1])
    high = jnp.minimum(edges[1:], span[..., 1:])
    return jnp.clip((high - low) * frames / seconds, 0.0, 1.0)


def match_slots(slots: Slots, batch: Batch, active: jax.Array, masks: LabelMasks) -> jax.Array:
    """Slot of each source, int [B, S]: minimal cost of presence, class, direction and activity.

    Direction weighs most: it separates slots that begin at different peaks for good, so that each
    specializes. active [B, S, T]: `frame_activity` of the sources.
    """
    present = batch["present"][:, None, :]
    presence = optax.sigmoid_binary_cross_entropy(slots.presence[..., None], present)
    label = -jnp.take_along_axis(
        jax.nn.log_softmax(slots.label), batch["label"][:, None, :], axis=-1
    )
    cosine = jnp.einsum("bic,bjc->bij", unit_vector(slots.direction), batch["direction"])
    direction = 1.0 - cosine
    logits = slots.activity[:, :, None, :]
    timing = optax.sigmoid_binary_cross_entropy(logits, active[:, None]).mean(-1)
    label = label * masks.label[:, None, :]
    cost = presence + present * (
        label
        + DIRECTION_COST_WEIGHT * direction * (1.0 - batch["mono"][:, None, None])
        + 2.0 * timing
    )

    def assign(cost):
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(cost.shape[0], rows.dtype).at[columns].set(rows)

    return jax.vmap(assign)(jax.lax.stop_gradient(cost))


def slot_loss(output: SpatialOutput, batch: Batch, seconds: float) -> tuple[jax.Array, dict]:
    """(loss, metrics) of the matched slots and of the room. Mono scenes have no direction loss."""
    masks, batch = mask_labels(batch)
    slots = output.slots
    active = frame_activity(batch["span"], slots.activity.shape[-1], seconds)
    order = match_slots(slots, batch, active, masks)

    def reorder(x):
        return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)

    def mean(x, weights):
        return (x * weights).sum() / jnp.maximum(weights.sum(), 1.0)

    slots = Slots(*(reorder(x) for x in slots))
    present = batch["present"]
    spatial = present * (1.0 - batch["mono"][:, None])
    mean_direction = unit_vector(jnp.einsum("bstc,bst->bsc", slots.direction_in_time, active))
    cosine = (mean_direction * batch["direction"]).sum(-1)
    label = optax.softmax_cross_entropy_with_integer_labels(slots.label, batch["label"])
    timing = optax.sigmoid_binary_cross_entropy(slots.activity, active).mean(-1)
    room = jnp.stack(output.room, -1)
    distance_error = jnp.abs(slots.log_distance - batch["log_distance"])
    losses = {
        "presence": optax.sigmoid_binary_cross_entropy(slots.presence, present).mean(),
        "label": mean(label, present * masks.label),
        "activity": mean(timing, present),
        "direction": mean(1.0 - cosine, spatial),
        "distance": mean(distance_error, present * masks.log_distance),
        "room": mean(jnp.abs(room - batch["room"]), masks.room),
    }
    # The slot's own direction, which does not depend on the labels' activity. Binaural models
    # learn from it; in FOA it is the direction of a peak, which has no gradient.
    own_cosine = (unit_vector(slots.direction) * batch["direction"]).sum(-1)
    losses["direction"] = 0.5 * (losses["direction"] + mean(1.0 - own_cosine, spatial))
    angle = jnp.degrees(jnp.arccos(jnp.clip(own_cosine, -1, 1)))
    is_correct = slots.label.argmax(-1) == batch["label"]
    metrics = losses | {
        "class_accuracy": mean(is_correct, present * masks.label),
        "doa_median": jnp.nanmedian(jnp.where(spatial > 0, angle, jnp.nan)),
    }
    total = (
        losses["presence"]
        + losses["label"]
        + losses["activity"]
        + 3.0 * losses["direction"]
        + 0.5 * losses["distance"]
        + 0.5 * losses["room"]
    )
    return total, metrics


def expert_loss(
    experts: ExpertOutputs, batch: Batch, seconds: float, num_classes: int
) -> tuple[jax.Array, dict]:
    """(loss, metrics) of the projector's experts at token rate, with one target per class.

    seconds: length of a scene. If several sources of a class are active at once, which only real
    recordings have, the targets are the means of their directions and log distances. An expert
    that the projector was built without has no loss. A source of an unnamed class only counts
    for the number of active sources.
    """
    masks, batch = mask_labels(batch)
    frames = next((x.shape[1] for x in experts if x is not None), 1)
    active = frame_activity(batch["span"], frames, seconds) * batch["present"][..., None]
    one_hot = jax.nn.one_hot(batch["label"], num_classes) * masks.label[..., None]
    count = jnp.einsum("bst,bsc->btc", active, one_hot)
    tags = jnp.minimum(count, 1.0)
    direction = jnp.einsum("bst,bsc,bsd->btcd", active, one_hot, batch["direction"])
    direction = direction / jnp.maximum(count, 1.0)[..., None]
    has_distance = jnp.einsum("bst,bsc,bs->btc", active, one_hot, masks.log_distance)
    log_distance = jnp.einsum(
        "bst,bsc,bs->btc", active, one_hot, masks.log_distance * batch["log_distance"]
    ) / jnp.maximum(has_distance, 1e-6)
    has_distance = jnp.minimum(has_distance, 1.0)
    spatial = (1.0 - batch["mono"])[:, None, None]
    losses, metrics = {}, {}
    if experts.tags is not None:
        # Also for the whole clip, which has a class if any token has it.
        clip_logits = jax.nn.logsumexp(experts.tags, axis=1) - jnp.log(frames)
        clip_tags = (tags.max(1) > 0.2).astype(jnp.float32)
        losses["tags"] = optax.sigmoid_binary_cross_entropy(experts.tags, tags).mean()
        losses["clip_tags"] = optax.sigmoid_binary_cross_entropy(clip_logits, clip_tags).mean()
        rank = (clip_logits[..., None, :] > clip_logits[..., :, None]).sum(-1)
        recalled = (rank < clip_tags.sum(-1, keepdims=True)) * clip_tags
        metrics["tag_recall"] = recalled.sum() / jnp.maximum(clip_tags.sum(), 1.0)
    if experts.direction is not None:
        # Most targets are zero; those of active classes weigh more.
        weights = (1.0 + 4.0 * tags) * spatial
        error = jnp.square(experts.direction - direction).sum(-1)
        losses["class_direction"] = (error * weights).mean()
    if experts.log_distance is not None:
        error = jnp.abs(experts.log_distance - log_distance) * has_distance
        losses["class_distance"] = error.sum() / jnp.maximum(has_distance.sum(), 1.0)
    if experts.reverberation is not None:
        columns = jnp.array([0, 2])  # log RT60 and DRR
        error = jnp.abs(experts.reverberation - batch["room"][:, None, columns])
        is_known = jnp.broadcast_to(masks.room[:, None, columns], error.shape)
        losses["reverberation"] = (error * is_known).sum() / jnp.maximum(is_known.sum(), 1.0)
    if experts.count is not None:
        losses["active_count"] = jnp.abs(experts.count - active.sum(1)).mean()
    total = sum((EXPERT_WEIGHTS[name] * value for name, value in losses.items()), jnp.zeros(()))
    return total, losses | metrics


def spec_mask(key: jax.Array, batch: int, frames: int, mels: int) -> jax.Array:
    """SpecAugment (arXiv:1904.08779): masks a band of time and one of frequency, bool [B, T, M]."""
    keys = jax.random.split(key)

    def bands(key, size, max_width):
        start_key, width_key = jax.random.split(key)
        start = jax.random.randint(start_key, (batch, 1), 0, size)
        width = jax.random.randint(width_key, (batch, 1), 0, max_width + 1)
        index = jnp.arange(size)[None]
        return (index >= start) & (index < start + width)

    rows = bands(keys[0], frames, frames // 8)
    columns = bands(keys[1], mels, mels // 6)
    return rows[:, :, None] | columns[:, None, :]


def random_eq(key: jax.Array, batch: int, std_db: float) -> jax.Array:
    """Random EQ (after FilterAugment, arXiv:2110.03282): log10 of power [B, EQ_POINTS].

    std_db: standard deviation of each point, in dB.
    """
    return jax.random.normal(key, (batch, EQ_POINTS)) * (std_db / 10)


def objective(context: Context[config.SpatialStage]) -> Loss:
    """Loss of slots, room, tags and experts; without a key, there is no augmentation of spectra."""
    asa, stage, seconds = context.asa, context.stage, context.scenes.seconds
    num_classes = context.model.spatial.num_classes

    def augmentation(batch, key) -> Augmentation:
        rows, samples = batch["audio"].shape[:2]
        mask_key, eq_key = jax.random.split(key)
        mask = spec_mask(mask_key, rows, samples // features.HOP, context.model.semantic.n_mels)
        return Augmentation(mask, random_eq(eq_key, rows, stage.random_eq_db))

    def loss(params, batch, key):
        augmented = None if key is None else augmentation(batch, key)
        audio = asa.encode_audio(params, common.augment_audio(batch), augmented)
        _, experts = asa.project(params, audio)
        slots, slot_metrics = slot_loss(audio.spatial, batch, seconds)
        auxiliary, expert_metrics = expert_loss(experts, batch, seconds, num_classes)
        return slots + auxiliary, slot_metrics | expert_metrics

    return loss


def examples(
    context: Context[config.SpatialStage], augment: bool = True
) -> transforms.SpatialExamples:
    """Scenes with slot targets; without `augment`, neither rotated nor mono."""
    mono_prob = context.stage.mono_prob if augment else 0.0
    num_slots = context.model.spatial.num_slots
    return transforms.SpatialExamples(
        context.classes, num_slots, mono_prob, augment and context.can_rotate
    )


def extra_datasets(context: Context[config.SpatialStage]) -> list[pipeline.MixtureComponent]:
    """Real recordings: the folders of `stage.real_recordings`, in equal shares, late in a stage."""
    stage, make = context.stage, examples(context)
    weight = stage.real_recordings_weight / max(len(stage.real_recordings), 1)
    seconds, classes = context.scenes.seconds, context.classes
    return [
        pipeline.MixtureComponent(
            real_recordings.RealRecordings(folder, seconds, classes),
            make,
            weight,
            stage.real_recordings_start,
        )
        for folder in stage.real_recordings
    ]


def task(context: Context[config.SpatialStage]) -> loop.Task:
    """Both encoders and the experts' heads, on randomly rotated scenes."""
    loss = objective(context)
    assert context.dev is not None
    make_eval, count = examples(context, augment=False), 2 * common.EVAL_SCENES
    batch = common.eval_batch(context, context.dev, make_eval, "spatial/dev", count)
    batches = common.training_batches(
        context, examples(context), "spatial", extra_datasets(context)
    )
    return loop.Task(
        "spatial",
        batches,
        common.training_step(context, loss),
        common.evaluation(context, loss, batch),
    )


def workload(stage: config.SpatialStage) -> Workload:
    """Scenes through encoders and projector."""
    return Workload(scenes=stage.batch_size, trainable=stage.trainable)


STAGE = TrainingStage(
    name="spatial",
    title="stage 1: spatial encoder",
    examples=examples,
    objective=objective,
    task=task,
    workload=workload,
    parts=("semantic", "spatial", "decoder", "projector"),
    depends_on=AUDIO_FIELDS,
)
