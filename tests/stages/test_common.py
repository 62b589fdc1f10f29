# SPDX-License-Identifier: Apache-2.0
import functools
import types

import jax
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

augment_audio = jax.jit(common.augment_audio)


@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
@settings(max_examples=30)
def test_augment_audio_rotates_a_source_to_azimuth_plus_yaw(azimuth, elevation, yaw):
    noise = np.random.default_rng(0).integers(-30_000, 30_000, (2, 50, 1))
    audio = np.rint(noise * foa.encode(azimuth, elevation)).astype(np.int16)
    batch = {"audio": audio, "yaw": np.array([yaw, 0], np.float32), "mono": np.zeros(2, bool)}
    rotated = np.asarray(augment_audio(batch))
    assert rotated.dtype == np.float32
    expected = noise / 32767 * foa.encode(np.array([[azimuth + yaw], [azimuth]]), elevation)
    np.testing.assert_allclose(rotated, expected, atol=1e-4)


def test_augment_audio_in_mono_keeps_only_w():
    audio = np.random.default_rng(0).integers(-30_000, 30_000, (2, 50, 4)).astype(np.int16)
    yaw, mono = np.array([30, 30], np.float32), np.array([True, False])
    augmented = np.asarray(augment_audio({"audio": audio, "yaw": yaw, "mono": mono}))
    assert (augmented[0, :, 1:] == 0).all() and (augmented[1, :, 1:] != 0).mean() > 0.9
    np.testing.assert_allclose(augmented[..., 0], audio[..., 0] / 32767, atol=1e-6)


def eval_rows(context_of, monkeypatch, sizes, process, processes, count=25):
    """Rows of this process in an evaluation on `count` examples, which are numbers."""
    sizes = types.SimpleNamespace(shape=dict(zip(mesh.AXES, sizes, strict=True)))
    data = [(np.zeros((8000, 4), np.int16), {})] * count
    context = context_of(config.GrpoStage(1, 4, 0.1, ("lora/.*",)), data, mesh=sizes)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    make = lambda element, rng, progress: {"n": np.int32(element)}  # noqa: E731
    return common.eval_batch(context, range(count), make, "t/dev", 20)["n"].tolist()


def test_eval_batch_is_shared_among_processes(context_of, monkeypatch):
    rows = functools.partial(eval_rows, context_of, monkeypatch, (2, 4, 1))
    assert rows(0, 1) == list(range(24))
    assert [rows(p, 4) for p in range(4)] == [[*range(6 * p, 6 * p + 6)] for p in range(4)]


def test_eval_batch_of_few_scenes_has_as_many_as_the_mesh_divides(context_of, monkeypatch):
    rows = functools.partial(eval_rows, context_of, monkeypatch)
    assert rows((1, 8, 1), 0, 1, count=19) == list(range(16))
    with pytest.raises(ConfigError, match=r"Scenes.dev is 7, expected scenes .* = 8"):
        rows((1, 8, 1), 0, 1, count=7)


def test_num_eval_scenes_is_a_multiple_of_the_batch_shards():
    sizes = [types.SimpleNamespace(shape={"data": 1, "fsdp": n}) for n in (1, 8, 48, 256)]
    assert [common.num_eval_scenes(size) for size in sizes] == [64, 64, 96, 256]
    assert common.num_eval_scenes(sizes[3], 300) == 512


def test_reply_loss_is_the_weighted_mean_over_reply_tokens(tiny, text):
    prompts = [text.encode(" where is the dog ?\n"), text.encode(" bell left ?\nA left\nB front")]
    replies = [
        text.encode("<think> dog left near . so left</think><answer> left</answer><eos>"),
        text.encode("<think></think><answer> front</answer><eos>"),
    ]
    prompt, reply = (
        tokens.pad_left(prompts, 20, text.pad_id),
        tokens.pad_right(replies, 24, text.pad_id),
    )

    @jax.jit
    def loss(prompt, reply):
        return common.reply_loss(tiny.asa, tiny.params, prompt, reply, None, text, 4.0)

    @jax.jit
    def logits(ids):
        x = tiny.asa.embed(tiny.params, ids, None, text.audio_id)
        hidden, *_ = tiny.asa.forward(tiny.params, x, np.ones(ids.shape, bool))
        return hidden @ tiny.asa.unembedding(tiny.params).T

    # A row at a time without any padding, position by position.
    total = weights = 0.0
    hits, decisions = [], []
    for before, after in zip(prompts, replies, strict=True):
        logps = np.asarray(jax.nn.log_softmax(logits(np.array([before + after]))))[0]
        for k, target in enumerate(after):
            predicted = logps[len(before) + k - 1]
            hits.append(predicted.argmax() == target)
            ends_trace = after[k + 1 : k + 2] == [text.end_think_id] and target != text.think_id
            decisions += [hits[-1]] if ends_trace else []
            is_answer = after[k - 1 : k] == [text.answer_id]
            weight = 4.0 if ends_trace or is_answer else 1.0
            total, weights = total - weight * predicted[target], weights + weight
    # Two answers, and one reasoning trace that is not empty.
    assert weights == len(hits) + 3 * 3 and len(decisions) == 1
    value, accuracies = loss(prompt, reply)
    np.testing.assert_allclose(value, total / weights, rtol=1e-4)
    np.testing.assert_allclose(accuracies["token_accuracy"], np.mean(hits), atol=1e-6)
    np.testing.assert_allclose(accuracies["answer_accuracy"], np.mean(decisions), atol=1e-6)


class DamagedThird(list):
    """A source whose third element cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise records.DamagedRecord("record 2 is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("max_damaged", [0, 1])
def test_training_batches_skip_as_many_damaged_records_as_the_stage_allows(
    context_of, noises, capfd, max_damaged
):
    stage = config.AlignStage(4, 8, 0.1, (".*",), max_damaged_records=max_damaged)
    context = context_of(stage, noises(1, 8000), train=DamagedThird(range(8)))

    def number(element, rng, progress):
        return {"number": np.int32(element)}

    batches = common.training_batches(context, number, "test")
    if max_damaged:
        assert sorted(next(batches)["number"]) == [0, 1, 3, 3, 4, 5, 6, 7]
        assert "skipped 1 of at most 1: record 2 is damaged" in capfd.readouterr().err
    else:
        with pytest.raises(ConfigError, match="record 2 is damaged; 1 damaged, expected at most 0"):
            next(batches)
