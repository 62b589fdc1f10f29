# SPDX-License-Identifier: Apache-2.0
import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxasa.models.projector import ExpertOutputs
from jaxasa.models.spatial import Room, Slots, SpatialOutput
from jaxasa.stages import spatial

B, S, T, CLASSES, SECONDS = 6, 3, 10, 5, 2.0
LARGE_LOGIT = 25.0


@pytest.fixture(scope="module")
def batch():
    """Clips of one to three sources whose spans begin and end with a frame; the last in mono."""
    rng = np.random.default_rng(0)
    present = (np.arange(S) < np.array([1, 2, 3, 3, 2, 3])[:, None]).astype(np.float32)
    direction = rng.normal(size=(B, S, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    starts = rng.integers(0, 5, (B, S))
    span = np.stack([starts, starts + rng.integers(1, 6, (B, S))], -1) * (SECONDS / T)
    keep = present[..., None]
    return {
        "present": present,
        "label": np.array([rng.permutation(CLASSES)[:S] for _ in range(B)]) * present.astype(int),
        "direction": (direction * keep).astype(np.float32),
        "log_distance": (rng.normal(size=(B, S)) * present).astype(np.float32),
        "span": (span * keep).astype(np.float32),
        "room": rng.normal(size=(B, 4)).astype(np.float32),
        "mono": np.arange(B) == B - 1,
    }


@pytest.fixture(scope="module")
def random_output():
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    slots = Slots(
        presence=draw(B, S),
        label=draw(B, S, CLASSES),
        activity=draw(B, S, T),
        direction_in_time=draw(B, S, T, 3),
        direction=draw(B, S, 3),
        log_distance=draw(B, S),
    )
    return SpatialOutput(draw(B, T, 4), slots, Room(*draw(4, B)))


def activity_of(batch):
    frame = (np.arange(T) + 0.5) * SECONDS / T
    on, off = batch["span"][..., :1], batch["span"][..., 1:]
    return ((frame > on) & (frame < off)).astype(np.float32)


@pytest.fixture(scope="module")
def loss():
    return jax.jit(lambda output, batch: spatial.slot_loss(output, batch, SECONDS))


def shuffled(tree, orders):
    """Every array [B, S, ...] with row b in the order orders[b]."""
    rows = np.arange(B)[:, None]
    return jax.tree.map(lambda x: x[rows, orders] if x.shape[:2] == (B, S) else x, tree)


def test_frame_activity_is_the_share_of_each_frame():
    active = spatial.frame_activity(np.array([[0.25, 1.1], [0.0, 0.0], [1.5, 9.0]]), 4, 2.0)
    expected = [[0.5, 1.0, 0.2, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 1.0]]
    np.testing.assert_allclose(active, expected, atol=1e-6)


def test_slot_loss_is_permutation_invariant(batch, random_output, loss):
    value, metrics = loss(random_output, batch)
    rng = np.random.default_rng(2)
    for _ in range(3):
        orders = [np.array([rng.permutation(S) for _ in range(B)]) for _ in range(2)]
        slots = shuffled(random_output.slots, orders[0])
        other, others = loss(random_output._replace(slots=slots), shuffled(batch, orders[1]))
        np.testing.assert_allclose(other, value, rtol=1e-5)
        for name in metrics:
            np.testing.assert_allclose(others[name], metrics[name], rtol=1e-4, err_msg=name)


def perfect(batch):
    active = activity_of(batch)
    slots = Slots(
        presence=LARGE_LOGIT * (2 * batch["present"] - 1),
        label=LARGE_LOGIT * np.eye(CLASSES, dtype=np.float32)[batch["label"]],
        activity=LARGE_LOGIT * (2 * active - 1),
        direction_in_time=np.repeat(batch["direction"][:, :, None], T, 2),
        direction=batch["direction"],
        log_distance=batch["log_distance"],
    )
    return SpatialOutput(np.zeros((B, T, 4), np.float32), slots, Room(*batch["room"].T))


def test_slot_loss_is_0_for_perfect_predictions_and_grows_with_each_error(batch, loss):
    right = perfect(batch)
    value, metrics = loss(right, batch)
    assert 0 <= value < 1e-3
    assert metrics["class_accuracy"] == 1 and metrics["doa_median"] < 0.1
    errors = {
        "presence": {"presence": right.slots.presence * 0},
        "label": {"label": np.roll(right.slots.label, 1, -1)},
        "activity": {"activity": right.slots.activity * 0},
        "direction": {"direction_in_time": -right.slots.direction_in_time},
        "distance": {"log_distance": right.slots.log_distance + 1},
    }
    for name, change in errors.items():
        wrong, parts = loss(right._replace(slots=right.slots._replace(**change)), batch)
        assert wrong > value + 0.2 and parts[name] > 0.2, name
    wrong, parts = loss(right._replace(room=Room(*(x + 1 for x in right.room))), batch)
    np.testing.assert_allclose([parts["room"], wrong - value], [1.0, 0.5], atol=1e-3)


def test_direction_has_gradients_only_where_sources_are_active(batch, random_output):
    @jax.jit
    def value(vectors):
        slots = random_output.slots._replace(direction_in_time=vectors)
        return spatial.slot_loss(random_output._replace(slots=slots), batch, SECONDS)[0]

    gradient = np.abs(jax.grad(value)(random_output.slots.direction_in_time)).sum(-1)
    assert (gradient[-1] == 0).all()
    active = np.array([activity_of(batch)[b].sum() for b in range(B - 1)])
    np.testing.assert_array_equal((gradient[:-1] > 0).sum((1, 2)), active)


def costs(slots, batch):
    """[B, slots, sources], a pair at a time."""
    active = activity_of(batch)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    bce = lambda x, y: -(y * np.log(sigmoid(x)) + (1 - y) * np.log(sigmoid(-x)))  # noqa: E731
    cost = np.zeros((B, S, S))
    for b, i, j in itertools.product(range(B), range(S), range(S)):
        present = batch["present"][b, j]
        cost[b, i, j] = bce(slots.presence[b, i], present)
        if present:
            logits = slots.label[b, i]
            cost[b, i, j] += np.log(np.exp(logits).sum()) - logits[batch["label"][b, j]]
            towards = slots.direction[b, i]
            cosine = towards @ batch["direction"][b, j] / np.linalg.norm(towards)
            cost[b, i, j] += 4 * (1 - cosine) * (not batch["mono"][b])
            cost[b, i, j] += 2 * bce(slots.activity[b, i], active[b, j]).mean()
    return cost


def test_match_slots_finds_the_permutation_of_minimal_cost(batch, random_output):
    masks, _ = spatial.mask_labels(batch)
    order = jax.jit(spatial.match_slots)(random_output.slots, batch, activity_of(batch), masks)
    order = np.asarray(order)
    orders = list(itertools.permutations(range(S)))
    permutations = set()
    for cost, chosen in zip(costs(random_output.slots, batch), order, strict=True):
        total = lambda slots, c=cost: c[list(slots), range(S)].sum()  # noqa: E731
        assert sorted(chosen) == list(range(S))
        best = min(orders, key=total)
        rows, columns = linear_sum_assignment(cost)
        np.testing.assert_allclose(total(chosen), total(best), rtol=1e-4)
        np.testing.assert_allclose(total(chosen), cost[rows, columns].sum(), rtol=1e-4)
        permutations.add(tuple(chosen))
    assert len(permutations) > 2


def test_expert_loss_targets_are_those_of_active_classes(batch):
    active = activity_of(batch) * batch["present"][..., None]
    names = np.eye(CLASSES, dtype=np.float32)[batch["label"]]
    tags = np.einsum("bst,bsc->btc", active, names)
    far = np.einsum("bsc,bs,bs->bc", names, batch["present"], batch["log_distance"])
    right = ExpertOutputs(
        tags=LARGE_LOGIT * (2 * tags - 1),
        direction=np.einsum("bst,bsc,bsd->btcd", active, names, batch["direction"]),
        log_distance=np.repeat(far[:, None], T, 1),
        reverberation=np.repeat(batch["room"][:, None, [0, 2]], T, 1),
        count=active.sum(1),
    )
    jitted = jax.jit(lambda experts, batch: spatial.expert_loss(experts, batch, SECONDS, CLASSES))
    loss = lambda experts: jitted(experts, batch)  # noqa: E731
    value, metrics = loss(right)
    assert 0 <= value < 1e-3 and metrics["tag_recall"] == 1
    for name, part in zip(
        ExpertOutputs._fields,
        ("tags", "class_direction", "class_distance", "reverberation", "active_count"),
        strict=True,
    ):
        field = getattr(right, name)
        wrong, parts = loss(right._replace(**{name: np.roll(field, 1, 0) + 0.5}))
        assert wrong > value + 0.05, name
        large = {k for k, v in parts.items() if k != "tag_recall" and v > 0.01}
        assert large - {"clip_tags"} == {part} and ("clip_tags" in large) == (name == "tags")
    # Experts that a projector is built without leave the losses of the others.
    some, parts = loss(right._replace(tags=None, direction=None))
    assert set(parts) == {"class_distance", "reverberation", "active_count"} and some < 1e-3
    none, parts = loss(ExpertOutputs(*[None] * 5))
    assert none == 0 and parts == {}
    # In mono there is no direction to learn.
    odd = right.direction.copy()
    odd[-1] += 1
    assert loss(right._replace(direction=odd))[0] == value


def test_expert_targets_of_sources_of_one_class_are_their_means(batch):
    """One after the other, and overlapping: direction and log distance; tags stay a share."""
    one = {name: value[:1].copy() for name, value in batch.items()}
    one["present"][:], one["label"][:] = [[1, 1, 0]], [[2, 2, 0]]
    one["log_distance"][:] = np.log([[2.0, 4.0, 1.0]])
    one["direction"][0, :2] = [[1, 0, 0], [0, 1, 0]]
    one["span"][0, :2] = np.array([[0, 5], [3, 10]]) * SECONDS / T
    far, where = np.zeros((1, T, CLASSES), "f4"), np.zeros((1, T, CLASSES, 3), "f4")
    far[0, :, 2] = np.log([*[2.0] * 3, *[8**0.5] * 2, *[4.0] * 5])
    where[0, :, 2] = [*[[1, 0, 0]] * 3, *[[0.5, 0.5, 0]] * 2, *[[0, 1, 0]] * 5]
    tags = np.full((1, T, CLASSES), -LARGE_LOGIT, "f4")
    tags[..., 2] = LARGE_LOGIT
    right = ExpertOutputs(tags, where, far, None, None)
    loss = jax.jit(lambda experts: spatial.expert_loss(experts, one, SECONDS, CLASSES))
    value, _ = loss(right)
    assert 0 <= value < 1e-5
    for wrong in (dict(tags=-tags), dict(direction=2 * where), dict(log_distance=2 * far)):
        assert loss(right._replace(**wrong))[0] > 0.01
    # The loss has a lower bound, however large the logits are.
    assert loss(right._replace(tags=100 * tags))[0] >= 0


def test_spec_mask_masks_a_band_of_time_and_one_of_frequency():
    mask = jax.jit(spatial.spec_mask, static_argnums=(1, 2, 3))
    masked = np.asarray(mask(jax.random.key(0), 200, 80, 48))
    assert masked.shape == (200, 80, 48)
    rows, columns = masked.all(2), masked.all(1)
    np.testing.assert_array_equal(masked, rows[..., None] | columns[:, None])
    assert rows.sum(1).max() == 80 // 8 and columns.sum(1).max() == 48 // 6
    for bands in (rows, columns):
        starts = np.diff(bands.astype(int), axis=1, prepend=0) == 1
        assert starts.sum(1).max() == 1 and (bands.sum(1) == 0).any()
        assert len({x.tobytes() for x in bands}) > 100


def test_unknown_labels_have_no_gradient(batch, random_output):
    rng = np.random.default_rng(3)
    experts = ExpertOutputs(
        tags=rng.normal(size=(B, T, CLASSES)).astype(np.float32),
        direction=rng.normal(size=(B, T, CLASSES, 3)).astype(np.float32),
        log_distance=rng.normal(size=(B, T, CLASSES)).astype(np.float32),
        reverberation=rng.normal(size=(B, T, 2)).astype(np.float32),
        count=rng.normal(size=(B, T)).astype(np.float32),
    )

    @jax.jit
    @jax.grad
    def gradient(outputs, batch):
        output, experts = outputs
        return (
            spatial.slot_loss(output, batch, SECONDS)[0]
            + spatial.expert_loss(experts, batch, SECONDS, CLASSES)[0]
        )

    unknown = batch | {
        "label": np.full_like(batch["label"], -1),
        "log_distance": np.full_like(batch["log_distance"], np.nan),
        "room": np.full_like(batch["room"], np.nan),
    }
    output, of_experts = gradient((random_output, experts), unknown)
    leaves = jax.tree.leaves((output, of_experts))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    zero = output.slots.label, output.slots.log_distance, *output.room, of_experts.log_distance
    assert all((np.asarray(x) == 0).all() for x in (*zero, of_experts.reverberation))
    # Known labels still have one.
    assert (np.abs(output.slots.presence) > 0).all()
    assert np.abs(output.slots.direction_in_time).sum() > 0
    labelled, _ = gradient((random_output, experts), batch)
    assert np.abs(labelled.slots.label).sum() > 0 and np.abs(labelled.room.log_rt60).sum() > 0
