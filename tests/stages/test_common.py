import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.acoustics import foa
from jaxasa.config import ConfigError
from jaxasa.data import records, tokens
from jaxasa.parallel import mesh
from jaxasa.stages import common
from jaxasa.train import state

hear = jax.jit(common.hear)


@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
@settings(max_examples=30)
def test_turned_audio_is_a_source_at_azimuth_plus_yaw(azimuth, elevation, yaw):
    noise = np.random.default_rng(0).integers(-30_000, 30_000, (2, 50, 1))
    audio = np.rint(noise * foa.encode(azimuth, elevation)).astype(np.int16)
    yaws = np.array([yaw, 0], np.float32)
    found = np.asarray(hear({"audio": audio, "yaw": yaws, "mono": np.array([False, False])}))
    assert found.dtype == np.float32
    expected = noise / 32767 * foa.encode(np.array([[azimuth + yaw], [azimuth]]), elevation)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_mono_keeps_w_alone():
    audio = np.random.default_rng(0).integers(-30_000, 30_000, (2, 50, 4)).astype(np.int16)
    yaw, mono = np.array([30, 30], np.float32), np.array([True, False])
    found = np.asarray(hear({"audio": audio, "yaw": yaw, "mono": mono}))
    assert (found[0, :, 1:] == 0).all() and (found[1, :, 1:] != 0).mean() > 0.9
    np.testing.assert_allclose(found[..., 0], audio[..., 0] / 32767, atol=1e-6)


def evaluated_on(context_of, monkeypatch, sizes, process, processes, count=25):
    """Of `count` examples that are numbers, those that this process evaluates on."""
    over = types.SimpleNamespace(shape=dict(zip(mesh.AXES, sizes, strict=True)))
    data = [(np.zeros((100, 4), np.int16), {})] * count
    context = context_of(config.GrpoStage(1, 4, 0.1, ("lora/.*",)), data, mesh=over)
    monkeypatch.setattr(common.jax, "process_count", lambda: processes)
    monkeypatch.setattr(common.jax, "process_index", lambda: process)
    make = lambda element, rng, done: {"n": np.int32(element)}  # noqa: E731
    return common.held_out(context, range(count), make, "t/dev", 20)["n"].tolist()


def test_processes_share_an_evaluation(context_of, monkeypatch):
    rows = functools.partial(evaluated_on, context_of, monkeypatch, (2, 4, 1))
    assert rows(0, 1) == list(range(24))
    assert [rows(p, 4) for p in range(4)] == [[*range(6 * p, 6 * p + 6)] for p in range(4)]


def test_fewer_scenes_than_an_evaluation_takes(context_of, monkeypatch):
    rows = functools.partial(evaluated_on, context_of, monkeypatch)
    assert rows((1, 8, 1), 0, 1, count=19) == list(range(16))
    with pytest.raises(ConfigError, match="Scenes.dev is 7, expected scenes .* = 8"):
        rows((1, 8, 1), 0, 1, count=7)


def test_what_is_made_by_parts_is_what_is_made_whole():
    batch = {"a": jnp.arange(24.0).reshape(8, 3), "b": jnp.arange(8)}
    make = lambda rows: {"c": rows["a"] * rows["b"][:, None], "d": -rows["b"]}  # noqa: E731
    for name, value in make(batch).items():
        for parts in (1, 2, 4):
            np.testing.assert_array_equal(common.by_parts(make, batch, parts)[name], value)


def test_reply_loss_is_the_weighted_mean_over_reply_tokens(tiny, text):
    prompts = [text.encode(" where is the dog ?\n"), text.encode(" bell left ?\nA left\nB front")]
    replies = [
        text.encode("<think> dog left near . so left</think><answer> left</answer><eos>"),
        text.encode("<think></think><answer> front</answer><eos>"),
    ]
    prompt, reply = tokens.pad_left(prompts, 20, text.pad), tokens.pad_right(replies, 24, text.pad)

    @jax.jit
    def found(prompt, reply):
        return common.reply_loss(tiny.asa, tiny.params, prompt, reply, None, text, True, 4.0)

    @jax.jit
    def logits(ids):
        x = tiny.asa.embed(tiny.params, ids, None, text.audio)
        hidden, *_ = tiny.asa.hidden(tiny.params, x, np.ones(ids.shape, bool))
        return hidden @ tiny.asa.table(tiny.params).T

    # A row at a time without any padding, position by position.
    total = weights = 0.0
    hits, decided = [], []
    for before, after in zip(prompts, replies, strict=True):
        logps = np.asarray(jax.nn.log_softmax(logits(np.array([before + after]))))[0]
        for k, target in enumerate(after):
            said = logps[len(before) + k - 1]
            hits.append(said.argmax() == target)
            ends = after[k + 1 : k + 2] == [text.end_think] and target != text.think
            decided += [hits[-1]] if ends else []
            weight = 4.0 if ends or after[k - 1 : k] == [text.answer] else 1.0
            total, weights = total - weight * said[target], weights + weight
    # Two answers, and one thought that has an end.
    assert weights == len(hits) + 3 * 3 and len(decided) == 1
    value, measured = found(prompt, reply)
    np.testing.assert_allclose(value, total / weights, rtol=1e-4)
    np.testing.assert_allclose(measured["token_accuracy"], np.mean(hits), atol=1e-6)
    np.testing.assert_allclose(measured["answer_accuracy"], np.mean(decided), atol=1e-6)


def test_a_batch_in_parts_teaches_what_it_teaches_whole():
    rng = np.random.default_rng(0)
    params = {"lora": {"layers": {"q": {"a": rng.normal(size=(3, 2)).astype(np.float32)}}}}
    batch = {"x": rng.normal(size=(8, 3)).astype(np.float32), "y": rng.normal(size=(8, 2))}
    batch["y"] = batch["y"].astype(np.float32)
    lies = mesh.make(config.Mesh(), jax.devices()[:2])

    def loss(params, batch, key):
        error = batch["x"] @ params["lora"]["layers"]["q"]["a"] - batch["y"]
        far = {"far": jnp.abs(error).mean(), "far_max": jnp.abs(error).max()}
        return (error**2).mean(), far | {"rows": jnp.float32(len(error))}

    def trained(parts):
        options = {"steps": 9, "batch": 8, "learning_rate": 0.1, "trainable": ("lora/.*",)}
        stage = config.Stage(**options, grad_accum_steps=parts)
        step = common.gradient_step(types.SimpleNamespace(stage=stage, mesh=lies), loss)
        now, metrics = state.create(params, stage, lies), {}
        with jax.set_mesh(lies):
            for i in range(3):
                now, metrics = step(
                    now, batch, jax.device_put(jax.random.key(i), now.step.sharding)
                )
        return np.asarray(now.params["lora"]["layers"]["q"]["a"]), jax.device_get(metrics)

    whole, found = trained(1)
    parted, parts = trained(4)
    np.testing.assert_allclose(parted, whole, atol=1e-6)
    assert (found["rows"], parts["rows"]) == (8, 2)
    for name in ("loss", "gradient_norm", "far", "far_max"):
        np.testing.assert_allclose(parts[name], found[name], rtol=1e-5)
    with pytest.raises(ConfigError, match="accumulate is 8, expected parts of the batch of 8"):
        trained(8)  # a row each, on two devices


class Scratched(list):
    """Elements of which the third cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise records.Damaged("record 2 is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_stage_says_how_many_records_may_be_damaged(capfd, damaged):
    stage = config.AlignStage(4, 8, 0.1, (".*",), max_damaged_records=damaged)
    run = types.SimpleNamespace(seed=0)
    context = types.SimpleNamespace(stage=stage, run=run, train=Scratched(range(8)))

    def number(element, rng, done):
        return {"number": np.int32(element)}

    batches = common.batches(context, number, "test")
    if damaged:
        assert sorted(next(batches)["number"]) == [0, 1, 3, 3, 4, 5, 6, 7]
        assert "skipped 1 of at most 1: record 2 is damaged" in capfd.readouterr().err
    else:
        with pytest.raises(ConfigError, match="record 2 is damaged; 1 damaged, expected at most 0"):
            next(batches)
