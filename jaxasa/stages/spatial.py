"""Stage 1 (`spatial`): the spatial encoder's slots, room and dense map; tags of the semantic one.

Slots are matched to sources once for the whole clip (permutation-invariant: Hungarian
assignment on presence, class and activity-weighted direction), without a gradient through
the assignment. The projector's experts learn their auxiliary targets at token rate.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxasa.data import features, pipeline, recordings
from jaxasa.models.asa import Disguise
from jaxasa.models.projector import Experts
from jaxasa.models.spatial import Heard, Slots, unit
from jaxasa.stages import common

Batch = Mapping[str, jax.Array]
AWAY = 4.0  # of 1 less the cosine between a slot and a source, as a cost
COLOURS = 8  # points of a random filter over the mel bands
# Of the experts' losses.
WEIGHTS = {
    "tags": 8.0,
    "clip_tags": 4.0,
    "class_direction": 8.0,
    "class_distance": 0.5,
    "reverberation": 0.5,
    "active_count": 0.5,
}


def activity(span: jax.Array, frames: int, seconds: float) -> jax.Array:
    """Share of each frame in which a source is heard: span [..., 2] (seconds) -> [..., T]."""
    edges = jnp.linspace(0.0, seconds, frames + 1)
    low = jnp.maximum(edges[:-1], span[..., :1])
    high = jnp.minimum(edges[1:], span[..., 1:])
    return jnp.clip((high - low) * frames / seconds, 0.0, 1.0)


def match(slots: Slots, batch: Batch, active: jax.Array, sure: Mapping) -> jax.Array:
    """Slot of each source, int [B, S]: least cost of presence, class, direction and activity.

    Direction weighs most: it tells slots that begin at different peaks apart for good, so that
    each can learn what it is to be there. sure: masks of `known`.
    """
    heard = batch["present"][:, None, :]
    presence = optax.sigmoid_binary_cross_entropy(slots.presence[..., None], heard)
    label = -jnp.take_along_axis(
        jax.nn.log_softmax(slots.label), batch["label"][:, None, :], axis=-1
    )
    away = 1.0 - jnp.einsum("bic,bjc->bij", unit(slots.direction), batch["direction"])
    logits = slots.activity[:, :, None, :]
    timing = optax.sigmoid_binary_cross_entropy(logits, active[:, None]).mean(-1)
    label = label * sure["label"][:, None, :]
    cost = presence + heard * (
        label + AWAY * away * (1.0 - batch["mono"][:, None, None]) + 2.0 * timing
    )

    def assign(cost):
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(cost.shape[0], rows.dtype).at[columns].set(rows)

    return jax.vmap(assign)(jax.lax.stop_gradient(cost))


def known(batch: Batch) -> tuple[dict, dict]:
    """(masks, batch with 0 for what is not known): what real recordings leave open teaches nothing.

    masks, float: label [B, S], log_distance [B, S], room [B, 4].
    """
    masks = {
        "label": batch["label"] >= 0,
        "log_distance": jnp.isfinite(batch["log_distance"]),
        "room": jnp.isfinite(batch["room"]),
    }
    filled = {name: jnp.where(mask, batch[name], 0) for name, mask in masks.items()}
    return {name: mask.astype(jnp.float32) for name, mask in masks.items()}, {**batch, **filled}


def slot_loss(heard: Heard, batch: Batch, seconds: float) -> tuple[jax.Array, dict]:
    """Losses of the matched slots and of the room; direction counts only where it is heard."""
    sure, batch = known(batch)
    slots = heard.slots
    active = activity(batch["span"], slots.activity.shape[-1], seconds)
    order = match(slots, batch, active, sure)
    pick = lambda x: jnp.take_along_axis(  # noqa: E731
        x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1
    )
    slots = Slots(*(pick(x) for x in slots))
    present = batch["present"]
    spatial = present * (1.0 - batch["mono"][:, None])
    mean = lambda x, w: (x * w).sum() / jnp.maximum(w.sum(), 1.0)  # noqa: E731
    found = unit(jnp.einsum("bstc,bst->bsc", slots.direction_in_time, active))
    cosine = (found * batch["direction"]).sum(-1)
    label = optax.softmax_cross_entropy_with_integer_labels(slots.label, batch["label"])
    timing = optax.sigmoid_binary_cross_entropy(slots.activity, active).mean(-1)
    room = jnp.stack(heard.room, -1)
    losses = {
        "presence": optax.sigmoid_binary_cross_entropy(slots.presence, present).mean(),
        "label": mean(label, present * sure["label"]),
        "activity": mean(timing, present),
        "direction": mean(1.0 - cosine, spatial),
        "distance": mean(
            jnp.abs(slots.log_distance - batch["log_distance"]), present * sure["log_distance"]
        ),
        "room": mean(jnp.abs(room - batch["room"]), sure["room"]),
    }
    # And as the slot finds it by itself, without knowing when the source is heard. Two ears learn
    # from it; of FOA that is a peak's direction, which has nothing to learn, and is only measured.
    alone = (unit(slots.direction) * batch["direction"]).sum(-1)
    losses["direction"] = 0.5 * (losses["direction"] + mean(1.0 - alone, spatial))
    angle = jnp.degrees(jnp.arccos(jnp.clip(alone, -1, 1)))
    measured = losses | {
        "class_accuracy": mean(slots.label.argmax(-1) == batch["label"], present * sure["label"]),
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
    return total, measured


def expert_loss(
    experts: Experts, batch: Batch, seconds: float, classes: int
) -> tuple[jax.Array, dict]:
    """Auxiliary losses of the projector's experts at token rate, targets bound to classes.

    Where sources of one class are heard at once, which only recordings have, the targets are the
    means of their directions and log distances.
    An expert that the projector is built without has no loss. A source of a class without a name
    is in none of them but the count.
    """
    sure, batch = known(batch)
    frames = next((x.shape[1] for x in experts if x is not None), 1)
    active = activity(batch["span"], frames, seconds) * batch["present"][..., None]
    names = jax.nn.one_hot(batch["label"], classes) * sure["label"][..., None]
    count = jnp.einsum("bst,bsc->btc", active, names)
    tags = jnp.minimum(count, 1.0)
    where = jnp.einsum("bst,bsc,bsd->btcd", active, names, batch["direction"])
    where = where / jnp.maximum(count, 1.0)[..., None]
    told = jnp.einsum("bst,bsc,bs->btc", active, names, sure["log_distance"])
    far = jnp.einsum(
        "bst,bsc,bs->btc", active, names, sure["log_distance"] * batch["log_distance"]
    ) / jnp.maximum(told, 1e-6)
    told = jnp.minimum(told, 1.0)
    spatial = (1.0 - batch["mono"])[:, None, None]
    losses, measured = {}, {}
    if experts.tags is not None:
        # Once more for the whole clip, where a class is heard if any moment has it.
        whole = jax.nn.logsumexp(experts.tags, axis=1) - jnp.log(frames)
        heard = (tags.max(1) > 0.2).astype(jnp.float32)
        losses["tags"] = optax.sigmoid_binary_cross_entropy(experts.tags, tags).mean()
        losses["clip_tags"] = optax.sigmoid_binary_cross_entropy(whole, heard).mean()
        rank = (whole[..., None, :] > whole[..., :, None]).sum(-1)
        found = (rank < heard.sum(-1, keepdims=True)) * heard
        measured["tag_recall"] = found.sum() / jnp.maximum(heard.sum(), 1.0)
    if experts.direction is not None:
        # Most of the targets are zero: what is heard weighs more.
        weights = (1.0 + 4.0 * tags) * spatial
        error = jnp.square(experts.direction - where).sum(-1)
        losses["class_direction"] = (error * weights).mean()
    if experts.log_distance is not None:
        away = jnp.abs(experts.log_distance - far) * told
        losses["class_distance"] = away.sum() / jnp.maximum(told.sum(), 1.0)
    if experts.reverberation is not None:
        columns = jnp.array([0, 2])
        away = jnp.abs(experts.reverberation - batch["room"][:, None, columns])
        told = jnp.broadcast_to(sure["room"][:, None, columns], away.shape)
        losses["reverberation"] = (away * told).sum() / jnp.maximum(told.sum(), 1.0)
    if experts.count is not None:
        losses["active_count"] = jnp.abs(experts.count - active.sum(1)).mean()
    total = sum((WEIGHTS[name] * value for name, value in losses.items()), jnp.zeros(()))
    return total, losses | measured


def mel_mask(key: jax.Array, batch: int, frames: int, mels: int) -> jax.Array:
    """SpecAugment (arXiv:1904.08779): one band of frequency and one of time hidden, bool."""
    keys = jax.random.split(key)

    def bands(key, size, widest):
        start_key, width_key = jax.random.split(key)
        start = jax.random.randint(start_key, (batch, 1), 0, size)
        width = jax.random.randint(width_key, (batch, 1), 0, widest + 1)
        place = jnp.arange(size)[None]
        return (place >= start) & (place < start + width)

    rows = bands(keys[0], frames, frames // 8)
    columns = bands(keys[1], mels, mels // 6)
    return rows[:, :, None] | columns[:, None, :]


def colour(key: jax.Array, batch: int, deviation: float) -> jax.Array:
    """Random filters (after FilterAugment, arXiv:2110.03282): [batch, COLOURS], log10 of power.

    deviation: standard deviation in dB of each point.
    """
    return jax.random.normal(key, (batch, COLOURS)) * (deviation / 10)


def _objectives(context: common.Context):
    """(loss(params, batch, key), measure(params, batch)): the latter hears without disguise."""
    run, stage, asa = context.run, context.stage, context.asa
    seconds = run.scenes.seconds

    def heard(params, batch, disguise=None):
        audio = asa.listen(params, common.hear(batch), disguise)
        _, experts = asa.project(params, audio)
        by_slot, measured = slot_loss(audio.heard, batch, seconds)
        by_expert, more = expert_loss(experts, batch, seconds, run.model.spatial.num_classes)
        return by_slot + by_expert, measured | more

    def loss(params, batch, key):
        size, samples = batch["audio"].shape[:2]
        mask_key, colour_key = jax.random.split(key)
        hidden = mel_mask(mask_key, size, samples // features.HOP, run.model.semantic.n_mels)
        return heard(params, batch, Disguise(hidden, colour(colour_key, size, stage.random_eq_db)))

    def measure(params, batch):
        value, measured = heard(params, batch)
        return {"loss": value} | measured

    return loss, measure


def objective(context: common.Context):
    """loss(params, batch, key) of slots, room, tags and experts."""
    return _objectives(context)[0]


def examples(context: common.Context, augment: bool = True) -> pipeline.Targets:
    """The maker of examples; without `augment` they are as they were rendered."""
    mono_share = context.stage.mono_prob if augment else 0.0
    slots = context.run.model.spatial.num_slots
    return pipeline.Targets(context.classes, slots, mono_share, augment and context.turns)


def guests(context: common.Context) -> list[pipeline.Guest]:
    """Real recordings, the folders of `stage.real_recordings` in equal shares, in the second phase."""
    stage, make = context.stage, examples(context)
    share = stage.real_recordings_weight / max(len(stage.real_recordings), 1)
    seconds, classes = context.run.scenes.seconds, context.classes
    return [
        pipeline.Guest(
            recordings.Recordings(folder, seconds, classes),
            make,
            share,
            stage.real_recordings_start,
        )
        for folder in stage.real_recordings
    ]


def task(context: common.Context) -> common.Task:
    """Both encoders and the experts' heads, on scenes turned by random yaws."""
    loss, measure = _objectives(context)
    plain, count = examples(context, False), 2 * common.EVAL_SCENES
    batch = common.held_out(context, context.dev, plain, "spatial/dev", count)
    return common.Task(
        "spatial",
        common.batches(context, examples(context), "spatial", guests(context)),
        common.gradient_step(context, loss),
        common.evaluation(context, measure, batch),
    )
