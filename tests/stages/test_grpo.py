import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasa import config
from jaxasa.core import trees
from jaxasa.models import sample
from jaxasa.models.asa import ASA
from jaxasa.stages import grpo
from jaxasa.train import state


@pytest.fixture(scope="module")
def make(tiny, context_of, noises):
    """`make(asa=tiny.asa, **fields)`: stage 4 of the tiny model on made-up clips.

    Returns the task, its context and a batch.
    """
    data = noises(16, 16_000, (2, 3))

    def made(asa=tiny.asa, **fields):
        usual = {"steps": 4, "batch": 8, "learning_rate": 0.01, "group": 4, "warmup": 0}
        fields = usual | {"trainable": ("lora/.*",)} | fields
        stage = config.GrpoStage(**fields)
        context = context_of(stage, data, asa)
        task = grpo.task(context)
        return types.SimpleNamespace(
            task=task, context=context, batch=next(task.batches), logps=logps_in(context)
        )

    return made


@pytest.fixture(scope="module")
def task(make):
    """Two questions of each of 8 scenes."""
    return make(questions_per_scene=2)


def logps_in(context):
    """(params, batch) -> `grpo.completion_logps` of what is heard, jitted."""

    def logps(params, batch):
        heard = grpo.project(context, params, batch)
        return grpo.completion_logps(context, params, {**batch, "heard": heard})

    return jax.jit(logps)


def tokens_by_yaw(context, params, batch):
    """Made-up audio tokens in place of the encoders', which take long to compile."""
    shape = context.audio_tokens, context.run.model.decoder.width
    return jnp.sin(batch["yaw"][:, None, None] + jnp.arange(shape[0] * shape[1]).reshape(shape))


@pytest.fixture
def quick(monkeypatch):
    """Made-up audio tokens. The task of the module must then make no step, only give its batch."""
    monkeypatch.setattr(grpo, "project", tokens_by_yaw)


@pytest.fixture
def by_length(monkeypatch, quick):
    """A reward that differs among completions, whatever they say."""
    monkeypatch.setattr(
        grpo.rewards, "total", lambda stage, said, *_: {"total": float(len(said) % 7)}
    )


def run(made, params, steps=1, batch=None):
    """(state, metrics of the last step) after `steps` steps on one batch."""
    with jax.set_mesh(made.context.mesh):
        after = state.create(params, made.context.stage, made.context.mesh)
        for i in range(steps):
            after, metrics = made.task.step(after, batch or made.batch, jax.random.key(i))
    return after, {name: float(value) for name, value in metrics.items()}


def logps_of(made, params, batch, said):
    """Log-probabilities of `said`, shaped as they are."""
    batch = {**batch, "ids": said.ids, "mask": np.asarray(said.mask, np.float32)}
    with jax.set_mesh(made.context.mesh):
        return np.asarray(made.logps(params, batch)).reshape(said.ids.shape)


def rollout_of(context, params, batch, key, temperature=1.0):
    def run(params, batch):
        batch = {**batch, "heard": grpo.project(context, params, batch)}
        return grpo.rollout(context, params, batch, jax.random.key(key), 4, temperature)

    with jax.set_mesh(context.mesh):
        return jax.device_get(jax.jit(run)(params, batch))


@pytest.fixture(scope="module")
def first_said(tiny, task):
    """Made by the model before any update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "project", tokens_by_yaw)
        return rollout_of(task.context, tiny.params, task.batch, 5)


@pytest.fixture
def said(task, first_said, monkeypatch, by_length):
    """What the rollouts of the test give, with `batch`, which makes them give it."""

    def rollout(context, params, batch, *_):
        return sample.Completions(*(batch[f"said_{name}"] for name in first_said._fields))

    monkeypatch.setattr(grpo, "rollout", rollout)
    return first_said


def saying(batch, said):
    return batch | {f"said_{name}": value for name, value in said._asdict().items()}


def test_a_step_moves_the_adapters_from_ratios_of_1(tiny, task, monkeypatch):
    seen = []

    def total(stage, said, right, options, sources, classes, used):
        assert 0 < used <= 1 and len(options) == 4 and right in options
        seen.append((right, sources))
        return {"total": float(len(said) % 7)}

    monkeypatch.setattr(grpo.rewards, "total", total)
    with jax.set_mesh(task.context.mesh):
        start = state.create(tiny.params, task.context.stage, task.context.mesh)
        after, metrics = task.task.step(start, task.batch, jax.random.key(0))
    assert len(seen) == 8 * 2 * 4 and metrics["reward/total"] > 0
    # Each prompt is judged by its own answer and its own scene.
    for p, (right, sources) in enumerate(seen[::4]):
        scene, question = divmod(p, 2)
        reply = task.context.text.decode(task.batch["reply"][scene, question])
        assert f"<answer> {right}</answer>" in reply
        labels = task.batch["source_label"][scene]
        assert [s["class"] for s in sources] == [tiny.classes[k] for k in labels if k >= 0]
        assert sources[0]["azimuth"] == pytest.approx(task.batch["source_azimuth"][scene, 0])
    # What sampling said of its tokens is what the update finds, whatever was sampled.
    assert abs(metrics["log_ratio"]) < 1e-5
    assert metrics["gradient_norm"] > 1e-3
    moved = jax.tree.map(
        lambda a, b: bool(np.abs(np.asarray(a) - b).max() > 0), after.params, tiny.params
    )
    assert all(jax.tree.leaves(moved.pop("lora"))) and not any(jax.tree.leaves(moved))


def test_a_scene_is_heard_once_a_step(tiny, make, by_length, monkeypatch):
    heard = []

    def project(context, params, batch):
        heard.append(batch)
        return tokens_by_yaw(context, params, batch)

    monkeypatch.setattr(grpo, "project", project)
    run(make(num_iterations=2, kl_weight=0.1), tiny.params, 2)
    assert len(heard) == 1  # in one program out of rollout, reference and update


def test_dev_answers_are_told_by_level(tiny, make, monkeypatch, quick):
    """What is said there is the answer of every question of L1 and of the first of each scene."""
    made = make()
    text, stage = made.context.text, made.context
    plain = grpo.asked(stage, 4, augment=False)
    with jax.set_mesh(stage.mesh):
        dev = grpo.common.held_out(stage, stage.dev, plain, "grpo/dev")
    replies, levels = dev["reply"].reshape(-1, dev["reply"].shape[-1]), dev["level"].reshape(-1)
    is_right = (levels == 0) | (np.arange(len(levels)) % 4 == 0)

    def rollout(context, params, batch, key, group, temperature):
        assert (group, temperature) == (1, 0.0)
        said = jnp.where(is_right[:, None], replies, text.pad)[:, None]
        return sample.Completions(said, jnp.zeros(said.shape), said != text.pad)

    monkeypatch.setattr(grpo, "rollout", rollout)
    with jax.set_mesh(stage.mesh):
        found = made.task.evaluate(tiny.params)
    expected = {"accuracy": is_right.mean()}
    expected |= {f"L{k + 1}": is_right[levels == k].mean() for k in range(3)}
    assert len(set(expected.values())) == 4 and found == pytest.approx(expected)


def test_success_moves_the_levels_of_the_questions(tiny, make, monkeypatch, quick):
    """All of L1 until two steps of right answers, then a fifth of L3."""
    levels = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    made = make(level_mix=levels, promote=0.5, promote_steps=2)
    monkeypatch.setattr(grpo.rewards, "total", lambda *_: {"total": 0.0, "answer": now[0]})
    seen, batches = [], made.task.batches
    for value in (0.4, 0.7, 0.4, 0.4):
        now = [value]
        batch = next(batches)
        assert batch["prompt"].shape[:2] == (8, 1)
        seen.append(run(made, tiny.params, 1, batch)[1]["promotion"])
    assert seen == pytest.approx([0, 0.2, 0.2, 0.2])


def test_equal_rewards_move_nothing(tiny, task, monkeypatch):
    monkeypatch.setattr(grpo.rewards, "total", lambda *_: {"total": 0.7})
    with jax.set_mesh(task.context.mesh):
        start = state.create(tiny.params, task.context.stage, task.context.mesh)
        _, metrics = task.task.step(start, task.batch, jax.random.key(1))
    assert metrics["gradient_norm"] == 0 and metrics["equal_groups"] == 1


def test_learner_and_sampler_agree_token_by_token(tiny, task, quick):
    """In fp32, before any update, on what was sampled at another temperature than 1."""
    stage = dataclasses.replace(task.context.stage, temperature=1.3)
    context = dataclasses.replace(task.context, stage=stage)
    said = rollout_of(context, tiny.params, task.batch, 3, 1.3)
    made = types.SimpleNamespace(context=context, logps=logps_in(context))
    found = logps_of(made, tiny.params, task.batch, said)
    mask = np.asarray(said.mask)
    assert mask.sum() > 300
    assert np.abs(np.asarray(found - said.logps))[mask].max() < 1e-4
    assert np.asarray(said.logps)[mask].std() > 0.1


def test_epochs_are_updates_on_one_rollout(tiny, make, task, said):
    """One step of two epochs equals two steps whose rollouts are the same, and their schedule."""
    batch = saying(task.batch, said)
    one, last = run(make(steps=2, num_iterations=2), tiny.params, 1, batch)
    two, other = run(make(steps=4), tiny.params, 2, batch)
    assert int(one.step) == 1 and int(two.step) == 2
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    # Ratios of the second update are not 1.
    assert abs(last["log_ratio"]) > 1e-4 and last["log_ratio"] == other["log_ratio"]


@pytest.mark.parametrize("name", ["gspo", "sapo"])
def test_a_loss_moves_towards_what_earned_more(tiny, make, task, said, name):
    made = make(loss=name, num_iterations=2, learning_rate=1e-3)
    after, _ = run(made, tiny.params, 2, saying(task.batch, said))
    gain = logps_of(made, after.params, task.batch, said) - said.logps
    gain = (gain * said.mask).sum(-1)
    told = [[len(made.context.text.decode(c)) % 7 for c in group] for group in said.ids]
    advantages = np.array(told) - np.mean(told, 1, keepdims=True)
    assert np.corrcoef(gain.ravel(), advantages.ravel())[0, 1] > 0.3


@pytest.mark.parametrize("loss, learn", [("dr_grpo", ("lora",)), ("gspo", ("lora", "decoder"))])
def test_kl_is_that_to_the_policy_that_the_stage_began_with(
    tiny, make, task, said, monkeypatch, loss, learn
):
    patterns = tuple(f"{part}/.*" for part in learn)
    made = make(kl_weight=0.1, loss=loss, learning_rate=1e-3, steps=20, trainable=patterns)
    batch = saying(task.batch, said)
    began, metrics = run(made, tiny.params, 1, batch)
    assert abs(metrics["kl"]) < 1e-6
    start = trees.flatten({part: tiny.params[part] for part in learn})
    assert began.reference.keys() == start.keys()
    for path, leaf in start.items():
        np.testing.assert_array_equal(began.reference[path], leaf)
    after, _ = run(made, tiny.params, 3, batch)
    _, metrics = run(made, tiny.params, 4, batch)
    now, before = (logps_of(made, p, task.batch, said) for p in (after.params, tiny.params))
    gap = (before - now)[said.mask]
    assert metrics["kl"] == pytest.approx((np.exp(gap) - gap - 1).mean(), rel=1e-4)
    assert metrics["kl"] > 1e-4
    # Equal rewards: nothing but the penalty is left, and it pulls the policy back to the start.
    monkeypatch.setattr(grpo.rewards, "total", lambda *_: {"total": 0.7})
    far = state.create(after.params, made.context.stage, made.context.mesh)
    far = dataclasses.replace(far, reference=began.reference)
    with jax.set_mesh(made.context.mesh):
        for _ in range(4):
            far, last = made.task.step(far, batch, jax.random.key(0))
    assert last["kl"] < 0.7 * metrics["kl"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_kl_is_that_to_the_model_without_adapters(tiny, make, task, said, monkeypatch, accumulate):
    made = make(kl_weight=0.1, ref_policy="base", grad_accum_steps=accumulate)
    batch = saying(task.batch, said)
    _, metrics = run(made, tiny.params, 1, batch)
    without = {**tiny.params, "lora": jax.tree.map(np.zeros_like, tiny.params["lora"])}
    now, before = (logps_of(made, params, task.batch, said) for params in (tiny.params, without))
    gap = (before - now)[said.mask]
    # Of parts it is the mean of their means, which have not the same numbers of tokens.
    near = 1e-4 if accumulate == 1 else 0.1
    assert metrics["kl"] == pytest.approx((np.exp(gap) - gap - 1).mean(), rel=near)
    # Equal rewards: nothing but the penalty is left, and it pulls the adapters back.
    monkeypatch.setattr(grpo.rewards, "total", lambda *_: {"total": 0.7})
    _, first = run(made, tiny.params, 1, batch)
    _, last = run(made, tiny.params, 4, batch)
    assert first["gradient_norm"] > 0 and last["kl"] < first["kl"]
    _, metrics = run(made, without, 1, batch)
    assert abs(metrics["kl"]) < 1e-6 and metrics["loss"] == pytest.approx(0, abs=1e-6)


def test_what_was_cut_off_can_be_left_out(tiny, make, task, said):
    """Every second completion is cut off: they alone are moved by nothing."""
    eos, made = task.context.text.eos, make(mask_truncated_completions=True)
    ids, mask = np.array(said.ids), np.ones_like(said.mask)
    ids[ids == eos] = eos + 5
    whole = said._replace(ids=ids, mask=mask)
    _, metrics = run(made, tiny.params, 1, saying(task.batch, whole))
    assert metrics["truncated"] == 1 and metrics["gradient_norm"] == 0 and metrics["loss"] == 0
    # One that ends in the last place was not cut off.
    ended = ids.copy()
    ended[:, ::2, -1] = eos
    _, metrics = run(made, tiny.params, 1, saying(task.batch, whole._replace(ids=ended)))
    assert metrics["truncated"] == 0.5 and metrics["gradient_norm"] > 0


def test_prompts_that_earn_alike_are_drawn_again(tiny, make, monkeypatch, quick):
    """The first batch earns alike, of the next a half; a third gives the other half."""
    calls = []

    def total(stage, said, right, options, sources, classes, used):
        calls.append(right)
        number, prompt = (len(calls) - 1) // 32, (len(calls) - 1) % 32 // 4
        alike = number == 0 or (number == 1 and prompt % 2)
        return {"total": 0.5 if alike else float(len(calls) % 4)}

    monkeypatch.setattr(grpo.rewards, "total", total)
    plain, trained = make(), []
    update = grpo.common.gradient_step

    def spied(context, loss):
        step = update(context, loss)
        return lambda state, batch, key: (trained.append(batch), step(state, batch, key))[1]

    monkeypatch.setattr(grpo.common, "gradient_step", spied)
    made = make(dynamic_sampling_rounds=4)
    _, metrics = run(made, tiny.params)
    assert len(calls) == 3 * 32
    assert metrics["equal_groups"] == 1 and metrics["equal_groups_left"] == 0
    assert metrics["reward/total"] == 0.5  # of what was asked, not of what is left of it
    second, third = next(plain.task.batches), next(plain.task.batches)
    expected = [*second["prompt"][::2], *third["prompt"][:4]]
    found = sorted(row.tobytes() for row in trained[0]["prompt"])
    assert found == sorted(row.tobytes() for row in np.array(expected))
    # What was heard of them and their advantages came along.
    for row, prompt in enumerate(trained[0]["prompt"]):
        home = next(b for b in (second, third) if (b["prompt"] == prompt).all((1, 2)).any())
        at = int((home["prompt"] == prompt).all((1, 2)).argmax())
        heard = tokens_by_yaw(made.context, None, {"yaw": home["yaw"][at : at + 1]})
        np.testing.assert_allclose(trained[0]["heard"][row], heard[0], atol=1e-6)
    assert (np.abs(trained[0]["advantages"]).sum(1) > 0).all()
    # What a plan of the update assumes of it.
    shapes = grpo.played_shapes(made.context, second)
    assert trained[0].keys() == shapes.keys()
    for name, shape in shapes.items():
        found = np.asarray(trained[0][name])
        assert (found.shape, found.dtype) == (shape.shape, shape.dtype), name
    # A saved reader stands behind what was drawn: a resumed run goes on with the fourth batch.
    fourth, next_of = next(plain.task.batches), next(made.task.batches)
    np.testing.assert_array_equal(fourth["prompt"], next_of["prompt"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_questions_of_a_scene_are_as_those_of_scenes_alike(tiny, make, by_length, accumulate):
    """Two questions of each of 8 scenes, and one of each of 16 of which two are the same."""
    made, apart = make(questions_per_scene=2, grad_accum_steps=accumulate), make(batch_size=16)
    rows = {name: np.repeat(x, 2, axis=0) for name, x in made.batch.items()}
    for name in ("prompt", "reply", "level"):
        rows[name] = made.batch[name].reshape(16, 1, *made.batch[name].shape[2:])
    after, found = run(made, tiny.params)
    other, expected = run(apart, tiny.params, batch=rows)
    assert found["gradient_norm"] > 1e-3
    for name in ("gradient_norm", "reward/total", "equal_groups", "level/L3", "length"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    moves = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(y.params["lora"])])
        for y in (after, other)
    ]
    assert np.isclose(*moves, atol=1e-4).mean() > 0.99


def test_a_scene_stays_where_one_of_its_questions_teaches(tiny, make, monkeypatch, quick):
    calls = []

    def total(stage, said, *_):
        calls.append(said)
        number, prompt = divmod((len(calls) - 1) // 4, 16)
        return {"total": 0.5 if number == 0 and prompt != 3 else float(len(calls) % 4)}

    monkeypatch.setattr(grpo.rewards, "total", total)
    made, plain = (
        make(questions_per_scene=2, dynamic_sampling_rounds=1, log_every=1),
        make(questions_per_scene=2),
    )
    first, second, taught, samples = made.batch, next(plain.task.batches), [], grpo._samples

    def spied(context, batch, found):
        taught.append(batch)
        return samples(context, batch, found)

    monkeypatch.setattr(grpo, "_samples", spied)
    with jax.set_mesh(made.context.mesh):
        start = state.create(tiny.params, made.context.stage, made.context.mesh)
        _, metrics = made.task.step(start, first, jax.random.key(0))
    expected = [second["prompt"][0], first["prompt"][1], *second["prompt"][1:7]]
    np.testing.assert_array_equal(taught[0]["prompt"], expected)
    assert metrics["equal_groups"] == 15 / 16 and metrics["equal_groups_left"] == 1 / 16
    # The group that teaches is its own: the fourth prompt is the second of the second scene.
    assert (np.abs(taught[0]["advantages"][1]).reshape(2, 4).sum(1) > 0).tolist() == [False, True]
    # What is shown is the first group that was trained on.
    said = [made.context.text.decode(ids) for ids in taught[0]["ids"][0, :4]]
    assert [sample["said"] for sample in metrics["samples"]] == said == calls[64:68]
    assert [sample["rewards"]["total"] for sample in metrics["samples"]] == [1, 2, 3, 0]


def test_bf16_ratios_of_sampler_and_learner_are_logged_and_weigh(tiny, make, task, by_length):
    asa = ASA(dataclasses.replace(tiny.model, dtype="bfloat16"))
    _, metrics = run(make(asa, num_iterations=2), tiny.params, 1, task.batch)
    assert metrics["sampler_ratio"] == pytest.approx(1, abs=0.1)
    assert 1 < metrics["sampler_ratio_max"] < 3
    # Of the second epoch, against the learner before the first.
    assert 1e-4 < abs(metrics["log_ratio"]) < 0.5 and metrics["gradient_norm"] > 0


def test_the_cache_of_a_prompt_is_there_once_whatever_the_group(tiny, task):
    """Temporary memory of the compiled rollout of long prompts, by the completions of each."""
    d, rows, length, new = tiny.model.decoder, 8, 1000, 4
    prompts = jax.ShapeDtypeStruct((rows, length), np.int32)

    def memory(group):
        def run(params, prompts, key):
            return sample.generate(
                tiny.asa,
                params,
                prompts,
                None,
                key,
                group=group,
                max_new=new,
                temperature=1.0,
                pad=0,
                eos=1,
                audio_id=2,
            )

        compiled = jax.jit(run).lower(tiny.params, prompts, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Keys and values, in float32.
    once = 2 * d.layers * rows * length * d.kv_heads * d.head_width * 4
    few, many = memory(4), memory(16)
    assert few >= once and many - few < once
