# SPDX-License-Identifier: Apache-2.0
"""An exported folder in torch: a process that cannot import jaxasa gives the same numbers."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import binaural, foa, render, scenes
from jaxasa.core import trees
from jaxasa.data import procedural, tokens
from jaxasa.hf import adapter, export, load
from jaxasa.inference import qa
from jaxasa.models import sample
from jaxasa.models.asa import without_adapters
from jaxasa.stages import sft
from jaxasa.train import checkpoint, state

pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTION = "where is the dog ?"
SECONDS = (3, 10, 30)
STEPS = 20
# As in gin/model/full_size.gin, at the width of the tests.
STFT = {"features": "stft", "hop_length": 320, "stem": ((8, 1, 4), (16, 2, 4)), "num_slots": 3}
# Options of full-size models that differ from those of the tiny one, by part.
OPTIONS = {
    "stft": {"spatial": STFT, "projector": {"token_rate": 12.5}},
    "qwen2_audio": {
        "semantic": {"pool": 2},
        "decoder": {"tie_word_embeddings": False, "kv_heads": 4, "norm_eps": 1e-5},
    },
    "qwen3": {
        "decoder": {
            "qkv_bias": False,
            "qk_norm": True,
            "head_dim": 16,
            "rope_theta": 1_000_000.0,
        }
    },
    "p0": {"projector": {"kind": "p0"}},
    "p1": {"projector": {"kind": "p1"}},
    "map_alone": {"projector": {"slot_tokens": False}},
    "binaural": {"spatial": {"format": "binaural", "features": "interaural"}},
    "binaural_stft": {
        "spatial": STFT | {"format": "binaural"},
        "projector": {"token_rate": 12.5},
    },
}


def save(folder, model, classes, text, params):
    """Writes `folder` as a trained checkpoint."""
    meta = {
        "stage": "sft",
        "classes": list(classes),
        "seconds": 3.0,
        "model": dataclasses.asdict(model),
        "tokenizer": "tokenizer.json",
    }
    with checkpoint.CheckpointManager(folder) as store:
        store.save(1, state.TrainState(np.int32(1), params, {}), {}, meta, "")
    text.backend.save(str(folder / "tokenizer.json"))
    return folder


def varied(params):
    """Flat parameters with which replies are not one token repeated."""
    params = trees.flatten(params)
    params["decoder/layers/down/kernel"] = 4 * params["decoder/layers/down/kernel"]
    params["decoder/layers/o/kernel"] = 0.5 * params["decoder/layers/o/kernel"]
    return params


@pytest.fixture(scope="module")
def scene(tiny):
    """`scene(index, seconds, render)`: int16 audio [N, C] of procedural sounds, a description."""
    clips = [
        scenes.Clip(f"{label}/{recording}/0", label, f"{label}/{recording}", 2.0)
        for label in tiny.classes
        if label in procedural.CLASSES
        for recording in range(4)
    ]

    def sound(name):
        label, recording, clip = name.split("/")
        return procedural.synthesise(label, int(recording), int(clip), 0)

    def make(index, seconds=3, render=render.render):
        ranges = config.Scenes(train=1, dev=1, benchmark=1, seconds=float(seconds))
        audio, description = render(scenes.sample_scene(ranges, clips, 0, "test", index), sound)
        return np.rint(audio * 32767).astype(np.int16), description

    return make


@pytest.fixture(scope="module")
def learning(tiny, context_of, scene):
    """Flat parameters before and after STEPS of stage sft from zero adapters, and the losses."""
    stage = config.SftStage(
        steps=STEPS,
        batch_size=8,
        learning_rate=0.01,
        warmup_steps=0,
        questions_per_scene=2,
        trainable=("projector/.*", "lora/.*"),
    )
    context = context_of(stage, [scene(100 + index) for index in range(16)])
    before = varied(tiny.params)
    for path in before:
        if path.startswith("lora/") and path.endswith("/b"):
            before[path] = 0 * before[path]
    task = sft.task(context)
    current = state.create(trees.merge({}, before), context.stage, context.mesh)
    losses = []
    for step in range(STEPS):
        current, metrics = task.step(current, next(task.batches), jax.random.key(step))
        losses.append(float(metrics["loss"]))
    return before, trees.flatten(jax.device_get(current.params)), losses


@pytest.fixture(scope="module")
def trained(tiny, text, learning, tmp_path_factory):
    """The checkpoint after stage sft."""
    model = dataclasses.replace(tiny.model, reply_tokens=16)
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    return save(folder, model, tiny.classes, text, trees.merge({}, learning[1]))


@pytest.fixture(scope="module")
def clips(scene):
    """A rendered scene of each length, int16 [N, 4]."""
    return {str(s): scene(index, s)[0] for index, s in enumerate(SECONDS)}


def prepare(work, trained, clips):
    """Writes the inputs of torch_reader.py to `work`."""
    export.export_checkpoint(trained, work / "export")
    np.savez(work / "clips.npz", **{n: c.astype(np.float32) / 32767 for n, c in clips.items()})
    (work / "question.txt").write_text(QUESTION)


def read(*works, options=()):
    """For each of `works`, the facts and the logits by torch_reader.py, in another process."""
    reader = Path(__file__).with_name("torch_reader.py")
    done = subprocess.run(
        [sys.executable, "-I", str(reader), *map(str, works), *options],
        cwd=works[0],
        env={**os.environ, "HF_HOME": str(works[0] / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [
        (json.loads((work / "found.json").read_text()), dict(np.load(work / "found.npz")))
        for work in works
    ]


@pytest.fixture(scope="module")
def torch_results(trained, clips, tmp_path_factory):
    """Facts and logits of the export by torch, and the folder of its files."""
    work = tmp_path_factory.mktemp("work")
    prepare(work, trained, clips)
    return *read(work, options=["--whole"])[0], work


@pytest.fixture(scope="module")
def torch_results_of_options(tiny, filled, text, scene, tmp_path_factory):
    """{name of OPTIONS: (checkpoint, clip, facts by torch, logits by torch)}."""
    prepared = {}
    for name, options in OPTIONS.items():
        work = tmp_path_factory.mktemp(name)
        changed = {
            part: dataclasses.replace(getattr(tiny.model, part), **fields)
            for part, fields in options.items()
        }
        model = dataclasses.replace(tiny.model, reply_tokens=16, **changed)
        is_binaural = model.spatial.format == "binaural"
        audio, _ = scene(0, 3, binaural.render if is_binaural else render.render)
        params = trees.merge({}, varied(filled(model).params))
        folder = save(work / "sft", model, tiny.classes, text, params)
        prepare(work, folder, {"3": audio})
        prepared[name] = work, folder, audio
    results = read(*[work for work, *_ in prepared.values()])
    return {
        name: (folder, audio, *result)
        for (name, (_, folder, audio)), result in zip(prepared.items(), results, strict=True)
    }


@pytest.fixture(scope="module")
def model(trained):
    return qa.QaModel.load(trained)


def jax_forward(model):
    """`run(audio, params)`: logits [T, V], reply and slots of a checkpoint, in jax."""
    asa, tokenizer = model.asa, model.tokenizer

    @jax.jit
    def forward(params, ids, audio):
        encoded = asa.encode_audio(params, audio)
        audio_embeds, _ = asa.project(params, encoded)
        x = asa.embed(params, ids, audio_embeds, tokenizer.audio_id)
        hidden, *_ = asa.forward(params, x, ids != tokenizer.pad_id)
        special_tokens, key = model.special_tokens, jax.random.key(0)
        completions = sample.generate(asa, params, ids, audio_embeds, key, special_tokens)
        return asa.logits(params, hidden)[0], completions.ids[0, 0], encoded.spatial.slots

    def run(audio, params=model.params):
        count = asa.num_audio_tokens(len(audio))
        prompt = tokens.prompt_ids(tokenizer, count, tokens.question_text(QUESTION, None))
        logits, ids, slots = forward(params, np.array([prompt]), audio[None])
        return np.asarray(logits), tokenizer.decode(np.asarray(ids)), slots

    return run


@pytest.fixture(scope="module")
def run_jax(model):
    return jax_forward(model)


def check_sources(sources, slots, classes):
    """Asserts that the sources by torch are these slots, likeliest first."""
    order = np.argsort(-np.asarray(slots.presence[0]))
    assert len(sources) == len(order) == 3
    for source, s in zip(sources, order, strict=True):
        assert source["class"] == classes[int(slots.label[0, s].argmax())]
        azimuth, elevation = foa.cartesian_to_azel(np.asarray(slots.direction[0, s]))
        assert abs(source["azimuth"] - azimuth) < 0.06
        assert abs(source["elevation"] - elevation) < 0.06
        assert abs(source["distance"] - np.exp(slots.log_distance[0, s])) < 0.006


def test_sft_trains_adapters_and_projector(learning):
    before, after, losses = learning
    pairs = [path for path in after if path.startswith("lora/") and path.endswith("/b")]
    assert len(pairs) == 7
    for path in pairs:
        assert (before[path] == 0).all() and np.abs(after[path]).max() > 0.01, path
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    changed = {p.partition("/")[0] for p in after if (after[p] != before[p]).any()}
    assert changed == {"lora", "projector"}


@pytest.mark.parametrize("seconds", SECONDS)
def test_logits_text_and_slots_equal_those_of_jax(model, run_jax, clips, torch_results, seconds):
    facts, torch_logits, _ = torch_results
    logits, reply, slots = run_jax(clips[str(seconds)])
    np.testing.assert_allclose(torch_logits[str(seconds)], logits, atol=1e-4)
    assert np.ptp(logits) > 1
    assert facts["answers"][str(seconds)]["reply"] == reply
    replies = [model.tokenizer.encode(facts["answers"][str(s)]["reply"]) for s in SECONDS]
    assert max(len(set(ids)) for ids in replies) > 4
    check_sources(facts["answers"][str(seconds)]["sources"], slots, model.classes)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_full_size_models(name, torch_results_of_options):
    folder, audio, facts, torch_logits = torch_results_of_options[name]
    model = qa.QaModel.load(folder)
    logits, reply, slots = jax_forward(model)(audio)
    np.testing.assert_allclose(torch_logits["3"], logits, atol=1e-4)
    assert facts["answers"]["3"]["reply"] == reply
    assert np.ptp(logits) > 1 and len(set(model.tokenizer.encode(reply))) > 1
    check_sources(facts["answers"]["3"]["sources"], slots, model.classes)
    assert not facts["report"]


def test_adapters_are_merged(model, run_jax, clips, torch_results):
    base, *_ = run_jax(clips["3"], without_adapters(model.params))
    assert np.abs(torch_results[1]["3"] - base).max() > 0.1


def test_batches_in_torch(torch_results):
    answers = torch_results[0]["answers"]
    assert answers["pair"] == [answers["3"]["reply"], answers["single"]]


def test_transformers_loads_the_folder_without_faults(model, torch_results):
    facts, torch_logits, _ = torch_results
    assert not facts["report"] and facts["classes"] == list(model.classes)
    assert facts["ids"] == model.tokenizer.encode(" where is the dog ?")
    # Stock layers: two of Whisper's in the semantic encoder and two in the spatial one.
    assert facts["stock"].count("WhisperEncoderLayer") == 4
    assert facts["stock"].count("Qwen2Model") == 1
    assert np.abs(torch_logits["bfloat16"] - torch_logits["3"]).mean() < 0.2
    for fault, words in zip(
        facts["faults"], ("(48000, 3)", "48000", "of one length", "at most 30 s"), strict=True
    ):
        assert words in fault


def test_folders_that_transformers_saves_are_loaded(model, torch_results):
    _, _, work = torch_results
    exported, _, _ = load.load_model(work / "export")
    saved, meta, _ = load.load_model(work / "saved")
    exported, saved = load.flatten_params(exported), load.flatten_params(saved)
    assert set(exported) == set(saved) and meta["stage"] == "sft"
    assert config.model_from_dict(meta["model"]).decoder == model.asa.model.decoder
    # They were rounded to bfloat16 in the other process.
    for path, leaf in exported.items():
        np.testing.assert_allclose(saved[path], leaf, rtol=0.01, err_msg=path)


def test_exported_adapters_equal_in_peft(model, trained, tmp_path):
    """peft on transformers' Qwen2, compared with the checkpoint with and without adapters."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import Qwen2ForCausalLM

    out = adapter.write_adapter(trained, tmp_path / "adapter")
    base = Qwen2ForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    ids = np.arange(12)[None] + 20
    forward = jax.jit(model.asa.forward)

    def jax_logits(params):
        x = model.asa.embed(params, ids, None, model.tokenizer.audio_id)
        hidden, *_ = forward(params, x, np.ones_like(ids, bool))
        return np.asarray(model.asa.logits(params, hidden))

    def torch_logits(net):
        with torch.no_grad():
            return net(torch.from_numpy(ids)).logits.numpy()

    base_logits = jax_logits(without_adapters(model.params))
    np.testing.assert_allclose(torch_logits(base), base_logits, atol=1e-4)
    adapted = peft.PeftModel.from_pretrained(base, out)
    logits = jax_logits(model.params)
    np.testing.assert_allclose(torch_logits(adapted), logits, atol=1e-4)
    assert np.abs(logits - base_logits).max() > 0.1
