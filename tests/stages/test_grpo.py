# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxasa import config
from jaxasa.core import trees
from jaxasa.models import sample
from jaxasa.models.asa import ASA
from jaxasa.stages import common, grpo, sft
from jaxasa.train import state


def reward_by_length(stage, completion, *_):
    """A reward that differs among completions, whatever they say."""
    return {"total": float(len(completion) % 7)}


def constant_reward(*_):
    return {"total": 0.7}


def fake_audio_embeds(context, params, batch):
    """Audio embeddings without the encoders, which take long to compile."""
    shape = context.audio_tokens, context.model.decoder.width
    return jnp.sin(batch["yaw"][:, None, None] + jnp.arange(shape[0] * shape[1]).reshape(shape))


def replay(context, params, batch, *_):
    """Completions that the batch holds already, in place of sampling."""
    return sample.Completions(*(batch[f"replay_{name}"] for name in sample.Completions._fields))


def with_replay(batch, completions):
    return batch | {f"replay_{name}": value for name, value in completions._asdict().items()}


@pytest.fixture(scope="module")
def make(tiny, context_of, noises):
    """`make(asa=tiny.asa, parts={}, trainer=GrpoTrainer, **fields)`: a trainer of the tiny model.

    fields: of GrpoStage. parts: handed to the trainer; audio embeddings are fake if they are not
    among them. Also has `batch`, its first one, and `logps(params, batch, completions)`.
    """
    data = noises(16, 16_000, (2, 3))

    def make(asa=tiny.asa, parts=None, trainer=grpo.GrpoTrainer, **fields):
        defaults = {"steps": 4, "batch_size": 8, "learning_rate": 0.01, "num_generations": 4}
        defaults |= {"warmup_steps": 0, "trainable": ("lora/.*",)}
        context = context_of(config.GrpoStage(**defaults | fields), data, asa)
        parts = {"embed_audio": fake_audio_embeds, "reward": reward_by_length} | (parts or {})
        result = trainer(context, **parts)
        result.batch = next(result.batches)
        result.logps = logps_function(context)
        return result

    return make


def logps_function(context):
    """Jitted (params, batch, completions) -> log-probs shaped as the completions are."""

    @jax.jit
    def logps(params, batch, completions):
        batch = {**batch, "audio_embeds": fake_audio_embeds(context, params, batch)}
        batch |= {"completion_ids": completions.ids, "completion_mask": completions.mask}
        return grpo.completion_logps(context, params, batch).reshape(completions.ids.shape)

    def host_logps(params, batch, completions):
        with jax.set_mesh(context.mesh):
            return np.asarray(logps(params, batch, completions))

    return host_logps


def run(trainer, params, steps=1, batch=None):
    """(state, metrics of the last step) after `steps` steps on one batch."""
    with jax.set_mesh(trainer.context.mesh):
        now = state.create(params, trainer.stage, trainer.context.mesh)
        for i in range(steps):
            now, metrics = trainer.step(now, batch or trainer.batch, jax.random.key(i))
    return now, {name: x if name == "samples" else float(x) for name, x in metrics.items()}


def sample_completions(context, params, batch, seed, temperature=1.0):
    rollout = grpo.rollout_program(context, fake_audio_embeds)
    with jax.set_mesh(context.mesh):
        key = jax.random.key(seed)
        return jax.device_get(rollout(params, batch, key, 4, temperature)[0])


@pytest.fixture(scope="module")
def whole(make):
    """A trainer whose parts are all real except the reward; two questions on each of 8 scenes."""
    return make(parts={"embed_audio": sft.embed_audio}, questions_per_scene=2)


@pytest.fixture(scope="module")
def completions(tiny, whole):
    """Completions of the batch of `whole`, sampled before any update."""
    return sample_completions(whole.context, tiny.params, whole.batch, 5)


REPLAY = {"generate": replay}


def test_first_update_has_ratio_one_and_changes_only_lora(tiny, make):
    calls = []

    def reward(stage, completion, target, options, sources, classes, used):
        assert 0 < used <= 1 and len(options) == 4 and target in options
        calls.append((target, sources))
        return {"total": float(len(completion) % 7)}

    trainer = make(parts={"reward": reward, "embed_audio": sft.embed_audio}, questions_per_scene=2)
    after, metrics = run(trainer, tiny.params)
    assert len(calls) == 8 * 2 * 4 and metrics["reward"] > 0
    # The completions of a prompt are rewarded by its own answer and its own scene.
    for p, (target, sources) in enumerate(calls[::4]):
        scene, question = divmod(p, 2)
        reply = trainer.tokenizer.decode(trainer.batch["reply"][scene, question])
        assert f"<answer> {target}</answer>" in reply
        labels = trainer.batch["source_label"][scene]
        assert [s["class"] for s in sources] == [tiny.classes[k] for k in labels if k >= 0]
        assert sources[0]["azimuth"] == pytest.approx(trainer.batch["source_azimuth"][scene, 0])
    # The learner computes the log-probs that the sampler reported.
    assert abs(metrics["log_ratio"]) < 1e-5
    assert metrics["gradient_norm"] > 1e-3
    changed = jax.tree.map(
        lambda a, b: bool(np.abs(np.asarray(a) - b).max() > 0), after.params, tiny.params
    )
    assert all(jax.tree.leaves(changed.pop("lora"))) and not any(jax.tree.leaves(changed))


def test_audio_is_encoded_once_per_step(tiny, make):
    calls = []

    def embed_audio(context, params, batch):
        calls.append(batch)
        return fake_audio_embeds(context, params, batch)

    run(make(parts={"embed_audio": embed_audio}, num_iterations=2, kl_weight=0.1), tiny.params, 2)
    assert len(calls) == 1  # traced into one program: not for the reference or the updates


def test_evaluate_reports_accuracy_by_level(tiny, make):
    """Completions are correct for L1 and for the first question on each scene."""
    context = make().context
    tokenizer = context.tokenizer
    dev = common.eval_batch(
        context, context.dev, sft.qa_examples(context, 4, augment=False), "grpo/dev"
    )
    replies, levels = dev["reply"].reshape(-1, dev["reply"].shape[-1]), dev["level"].reshape(-1)
    is_correct = (levels == 0) | (np.arange(len(levels)) % 4 == 0)

    def generate(context, params, batch, key, num_generations, temperature):
        assert (num_generations, temperature) == (1, 0.0)
        ids = jnp.where(is_correct[:, None], replies, tokenizer.pad_id)[:, None]
        return sample.Completions(ids, jnp.zeros(ids.shape), ids != tokenizer.pad_id)

    def reward(stage, completion, target, *_):
        return {"answer": float(f"<answer> {target}</answer>" in completion), "total": 0.0}

    trainer = make(parts={"generate": generate, "reward": reward})
    with jax.set_mesh(trainer.context.mesh):
        result = trainer.evaluate(tiny.params)
    expected = {"accuracy": is_correct.mean()}
    expected |= {f"L{k + 1}": is_correct[levels == k].mean() for k in range(3)}
    assert len(set(expected.values())) == 4 and result == pytest.approx(expected)


def test_zero_reward_variance_gives_zero_gradient(tiny, make):
    trainer = make(parts={"reward": constant_reward}, questions_per_scene=2)
    _, metrics = run(trainer, tiny.params)
    assert metrics["gradient_norm"] == 0 and metrics["frac_reward_zero_std"] == 1


def test_learner_and_sampler_logps_agree_per_token_at_any_temperature(tiny, whole):
    """In float32, before any update."""
    stage = dataclasses.replace(whole.stage, temperature=1.3)
    context = dataclasses.replace(whole.context, stage=stage)
    completions = sample_completions(context, tiny.params, whole.batch, 3, 1.3)
    logps = logps_function(context)(tiny.params, whole.batch, completions)
    mask = np.asarray(completions.mask)
    assert mask.sum() > 300
    assert np.abs(np.asarray(logps - completions.logps))[mask].max() < 1e-4
    assert np.asarray(completions.logps)[mask].std() > 0.1


def test_num_iterations_equals_as_many_steps_on_the_same_rollout(tiny, make, whole, completions):
    batch = with_replay(whole.batch, completions)
    one, metrics = run(make(parts=REPLAY, steps=2, num_iterations=2), tiny.params, 1, batch)
    two, expected = run(make(parts=REPLAY, steps=4), tiny.params, 2, batch)
    assert int(one.step) == 1 and int(two.step) == 2
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    # Ratios of the second update are not 1.
    assert abs(metrics["log_ratio"]) > 1e-4 and metrics["log_ratio"] == expected["log_ratio"]


@pytest.mark.parametrize("name", ["gspo", "sapo"])
def test_update_raises_logps_of_completions_with_positive_advantages(
    tiny, make, whole, completions, name
):
    trainer = make(parts=REPLAY, loss=name, num_iterations=2, learning_rate=1e-3)
    after, _ = run(trainer, tiny.params, 2, with_replay(whole.batch, completions))
    gain = trainer.logps(after.params, whole.batch, completions) - completions.logps
    gain = (gain * completions.mask).sum(-1)
    decode = trainer.tokenizer.decode
    rewards = np.array([[len(decode(ids)) % 7 for ids in group] for group in completions.ids])
    advantages = rewards - rewards.mean(1, keepdims=True)
    assert np.corrcoef(gain.ravel(), advantages.ravel())[0, 1] > 0.3


@pytest.mark.parametrize("loss, parts", [("dr_grpo", ("lora",)), ("gspo", ("lora", "decoder"))])
def test_kl_to_the_initial_policy_is_measured_and_pulls_back(
    tiny, make, whole, completions, loss, parts
):
    fields = {"kl_weight": 0.1, "loss": loss, "learning_rate": 1e-3, "steps": 20}
    fields["trainable"] = tuple(f"{part}/.*" for part in parts)
    trainer = make(parts=REPLAY, **fields)
    batch = with_replay(whole.batch, completions)
    first, metrics = run(trainer, tiny.params, 1, batch)
    assert abs(metrics["kl"]) < 1e-6
    initial = trees.flatten({part: tiny.params[part] for part in parts})
    assert first.ref_params.keys() == initial.keys()
    for path, leaf in initial.items():
        np.testing.assert_array_equal(first.ref_params[path], leaf)
    after, _ = run(trainer, tiny.params, 3, batch)
    _, metrics = run(trainer, tiny.params, 4, batch)
    logps, ref_logps = (
        trainer.logps(p, whole.batch, completions) for p in (after.params, tiny.params)
    )
    gap = (ref_logps - logps)[completions.mask]
    assert metrics["kl"] == pytest.approx((np.exp(gap) - gap - 1).mean(), rel=1e-4)
    assert metrics["kl"] > 1e-4
    # Without advantages only the penalty is left.
    pulled = make(parts=REPLAY | {"reward": constant_reward}, **fields)
    now = state.create(after.params, pulled.stage, pulled.context.mesh)
    now = dataclasses.replace(now, ref_params=first.ref_params)
    with jax.set_mesh(pulled.context.mesh):
        for _ in range(4):
            now, last = pulled.step(now, batch, jax.random.key(0))
    assert last["kl"] < 0.7 * metrics["kl"]


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_kl_to_the_base_model_is_measured_and_pulls_back(
    tiny, make, whole, completions, grad_accum_steps
):
    fields = {"kl_weight": 0.1, "ref_policy": "base", "grad_accum_steps": grad_accum_steps}
    trainer = make(parts=REPLAY, **fields)
    batch = with_replay(whole.batch, completions)
    _, metrics = run(trainer, tiny.params, 1, batch)
    base = {**tiny.params, "lora": jax.tree.map(np.zeros_like, tiny.params["lora"])}
    logps, ref_logps = (trainer.logps(p, whole.batch, completions) for p in (tiny.params, base))
    gap = (ref_logps - logps)[completions.mask]
    # Over microbatches it is the mean of their means, which have different numbers of tokens.
    rel = 1e-4 if grad_accum_steps == 1 else 0.1
    assert metrics["kl"] == pytest.approx((np.exp(gap) - gap - 1).mean(), rel=rel)
    # Without advantages only the penalty is left.
    pulled = make(parts=REPLAY | {"reward": constant_reward}, **fields)
    _, first = run(pulled, tiny.params, 1, batch)
    _, last = run(pulled, tiny.params, 4, batch)
    assert first["gradient_norm"] > 0 and last["kl"] < first["kl"]
    _, metrics = run(pulled, base, 1, batch)
    assert abs(metrics["kl"]) < 1e-6 and metrics["loss"] == pytest.approx(0, abs=1e-6)


def test_mask_truncated_completions_leaves_them_out_of_the_loss(tiny, make, whole, completions):
    eos = whole.tokenizer.eos_id
    trainer = make(parts=REPLAY, mask_truncated_completions=True)
    ids, mask = np.array(completions.ids), np.ones_like(completions.mask)
    ids[ids == eos] = eos + 5
    truncated = completions._replace(ids=ids, mask=mask)
    _, metrics = run(trainer, tiny.params, 1, with_replay(whole.batch, truncated))
    assert metrics["completions/clipped_ratio"] == 1
    assert metrics["gradient_norm"] == 0 and metrics["loss"] == 0
    # A completion that ends with its last token was not truncated.
    half = ids.copy()
    half[:, ::2, -1] = eos
    batch = with_replay(whole.batch, truncated._replace(ids=half))
    _, metrics = run(trainer, tiny.params, 1, batch)
    assert metrics["completions/clipped_ratio"] == 0.5 and metrics["gradient_norm"] > 0


class RecordingTrainer(grpo.GrpoTrainer):
    """Keeps the batches of its updates."""

    def __init__(self, *arguments, **parts):
        super().__init__(*arguments, **parts)
        self.train_batches = []

    def update(self, now, train_batch, key):
        self.train_batches.append(train_batch)
        return super().update(now, train_batch, key)


def test_dynamic_sampling_replaces_scenes_until_all_are_informative(tiny, make):
    """All rewards of the first batch are equal, and half of the second; a third fills the rest."""
    calls = []

    def reward(stage, completion, target, *_):
        calls.append(target)
        number, prompt = (len(calls) - 1) // 32, (len(calls) - 1) % 32 // 4
        is_equal = number == 0 or (number == 1 and prompt % 2)
        return {"total": 0.5 if is_equal else float(len(calls) % 4)}

    trainer = make(parts={"reward": reward}, trainer=RecordingTrainer, dynamic_sampling_rounds=4)
    _, metrics = run(trainer, tiny.params)
    assert len(calls) == 3 * 32
    assert metrics["frac_reward_zero_std"] == 1 and metrics["frac_reward_zero_std_resampled"] == 0
    assert metrics["reward"] == 0.5  # of the prompts drawn first, not of the selected ones
    others = make().batches
    second, third, fourth = (next(others) for _ in range(3))
    expected = [*second["prompt"][::2], *third["prompt"][:4]]
    (train_batch,) = trainer.train_batches
    rows = sorted(row.tobytes() for row in train_batch["prompt"])
    assert rows == sorted(row.tobytes() for row in np.array(expected))
    # Their audio embeddings and advantages came along.
    for row, prompt in enumerate(train_batch["prompt"]):
        home = next(b for b in (second, third) if (b["prompt"] == prompt).all((1, 2)).any())
        at = int((home["prompt"] == prompt).all((1, 2)).argmax())
        embeds = fake_audio_embeds(trainer.context, None, {"yaw": home["yaw"][at : at + 1]})
        np.testing.assert_allclose(train_batch["audio_embeds"][row], embeds[0], atol=1e-6)
    assert (np.abs(train_batch["advantages"]).sum(1) > 0).all()
    # The shapes that `jaxasa plan` assumes.
    shapes = grpo.update_batch_shapes(trainer.context, second)
    assert train_batch.keys() == shapes.keys()
    for name, shape in shapes.items():
        value = np.asarray(train_batch[name])
        assert (value.shape, value.dtype) == (shape.shape, shape.dtype), name
    # The saved position is after the batches that were drawn: resuming starts with the fourth.
    np.testing.assert_array_equal(fourth["prompt"], next(trainer.batches)["prompt"])


def test_dynamic_sampling_keeps_scene_with_one_informative_group(tiny, make):
    calls = []

    def reward(stage, completion, *_):
        calls.append(completion)
        number, prompt = divmod((len(calls) - 1) // 4, 16)
        return {"total": 0.5 if number == 0 and prompt != 3 else float(len(calls) % 4)}

    trainer = make(
        parts={"reward": reward},
        trainer=RecordingTrainer,
        questions_per_scene=2,
        dynamic_sampling_rounds=1,
        log_every=1,
    )
    first, second = trainer.batch, None
    others = make(questions_per_scene=2).batches
    second = next(others)
    _, metrics = run(trainer, tiny.params)
    (train_batch,) = trainer.train_batches
    expected = [second["prompt"][0], first["prompt"][1], *second["prompt"][1:7]]
    np.testing.assert_array_equal(train_batch["prompt"], expected)
    assert metrics["frac_reward_zero_std"] == 15 / 16
    assert metrics["frac_reward_zero_std_resampled"] == 1 / 16
    # The informative group is still its own: the fourth prompt is the second of the second scene.
    is_informative = np.abs(train_batch["advantages"][1]).reshape(2, 4).sum(1) > 0
    assert is_informative.tolist() == [False, True]
    # Samples are of the first group of the update.
    texts = [trainer.tokenizer.decode(ids) for ids in train_batch["completion_ids"][0, :4]]
    assert [row["completion"] for row in metrics["samples"]] == texts == calls[64:68]
    assert [row["rewards"]["total"] for row in metrics["samples"]] == [1, 2, 3, 0]


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_multi_question_scene_equals_repeated_scenes(tiny, make, grad_accum_steps):
    """Two questions on each of 8 scenes, and one on each of 16 of which two are the same."""
    multi = make(questions_per_scene=2, grad_accum_steps=grad_accum_steps)
    single = make(batch_size=16)
    rows = {name: np.repeat(x, 2, axis=0) for name, x in multi.batch.items()}
    for name in ("prompt", "reply", "level"):
        rows[name] = multi.batch[name].reshape(16, 1, *multi.batch[name].shape[2:])
    after, metrics = run(multi, tiny.params)
    other, expected = run(single, tiny.params, batch=rows)
    assert metrics["gradient_norm"] > 1e-3
    names = ("gradient_norm", "reward", "frac_reward_zero_std", "level/L3")
    for name in (*names, "completions/mean_length"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name
    lora = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(y.params["lora"])])
        for y in (after, other)
    ]
    assert np.isclose(*lora, atol=1e-4).mean() > 0.99


def test_bf16_importance_sampling_ratios_are_logged_and_weigh(tiny, make, whole):
    asa = ASA(dataclasses.replace(tiny.model, dtype="bfloat16"))
    _, metrics = run(make(asa, num_iterations=2), tiny.params, 1, whole.batch)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.1)
    assert 1 < metrics["sampling/importance_sampling_ratio/max"] < 3
    # Of the second update, against the learner before the first.
    assert 1e-4 < abs(metrics["log_ratio"]) < 0.5 and metrics["gradient_norm"] > 0


def test_prompt_kv_cache_is_shared_across_the_group(tiny):
    """Temporary memory of the compiled rollout of long prompts, by completions per prompt."""
    d, rows, length, new_tokens = tiny.model.decoder, 8, 1000, 4
    prompts = jax.ShapeDtypeStruct((rows, length), np.int32)
    special = sample.SpecialTokenIds(pad=0, eos=1, audio=2, answer=5)

    def memory(num_generations):
        def rollout(params, prompts, key):
            return sample.generate(
                tiny.asa,
                params,
                prompts,
                None,
                key,
                special,
                config.Sampling(temperature=1.0),
                num_generations=num_generations,
                max_new_tokens=new_tokens,
            )

        compiled = jax.jit(rollout).lower(tiny.params, prompts, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Keys and values, in float32.
    cache = 2 * d.layers * rows * length * d.kv_heads * d.head_dim * 4
    few, many = memory(4), memory(16)
    assert few >= cache and many - few < cache
