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
from jaxasa.stages import sft
from jaxasa.train import checkpoint, state

pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTION = "where is the dog ?"
SECONDS = (3, 10, 30)
STEPS = 20
# As in gin/model/full_size.gin, at the width of the tests.
STFT = {"features": "stft", "hop": 320, "stem": ((8, 1, 4), (16, 2, 4)), "slots": 3}
# What full-size models have in place of the tiny one's options, part by part.
OPTIONS = {
    "stft": {"spatial": STFT, "projector": {"token_rate": 12.5}},
    "qwen2_audio": {
        "semantic": {"pool": 2},
        "decoder": {"tied": False, "kv_heads": 4, "norm_eps": 1e-5},
    },
    "qwen3": {
        "decoder": {
            "qkv_bias": False,
            "qk_norm": True,
            "head_width": 16,
            "rope_theta": 1_000_000.0,
        }
    },
    "p0": {"projector": {"kind": "p0"}},
    "p1": {"projector": {"kind": "p1"}},
    "map_alone": {"projector": {"slots": False}},
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
    with checkpoint.Store(folder) as store:
        store.save(1, state.State(np.int32(1), params, {}), {}, meta, "")
    text.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def varied(params):
    """Parameters [flat] of a model whose replies are not one word repeated."""
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
        audio, found = render(scenes.draw(ranges, clips, 0, "test", index), sound)
        return np.rint(audio * 32767).astype(np.int16), found

    return make


@pytest.fixture(scope="module")
def learnt(tiny, context_of, scene):
    """Parameters [flat] before and after STEPS of stage 3, in which adapters begin at nothing."""
    fields = {"steps": STEPS, "batch": 8, "learning_rate": 0.01, "questions": 2, "warmup": 0}
    stage = config.SftStage(trainable=("projector/.*", "lora/.*"), **fields)
    context = context_of(stage, [scene(100 + index) for index in range(16)])
    before = varied(tiny.params)
    for path in before:
        if path.startswith("lora/") and path.endswith("/b"):
            before[path] = 0 * before[path]
    task = sft.task(context)
    now = state.create(trees.merge({}, before), context.stage, context.mesh)
    losses = []
    for step in range(STEPS):
        now, metrics = task.step(now, next(task.batches), jax.random.key(step))
        losses.append(float(metrics["loss"]))
    return before, trees.flatten(jax.device_get(now.params)), losses


@pytest.fixture(scope="module")
def trained(tiny, text, learnt, tmp_path_factory):
    """A checkpoint as stage 3 leaves it."""
    model = dataclasses.replace(tiny.model, reply_tokens=16)
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    return save(folder, model, tiny.classes, text, trees.merge({}, learnt[1]))


@pytest.fixture(scope="module")
def clips(scene):
    """A rendered scene of each length, int16 [N, 4]."""
    return {str(s): scene(index, s)[0] for index, s in enumerate(SECONDS)}


def prepare(work, trained, clips):
    """Writes what the other process reads in `work`."""
    export.export(trained, work / "export")
    np.savez(work / "clips.npz", **{n: c.astype(np.float32) / 32767 for n, c in clips.items()})
    (work / "question.txt").write_text(QUESTION)


def read(*works, options=()):
    """What the other process says of each of `works`, in words and in arrays."""
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
def found(trained, clips, tmp_path_factory):
    """What the other process says of the export, and where it worked."""
    work = tmp_path_factory.mktemp("work")
    prepare(work, trained, clips)
    return *read(work, options=["--whole"])[0], work


@pytest.fixture(scope="module")
def optional(tiny, filled, text, scene, tmp_path_factory):
    """{name of OPTIONS: (checkpoint, clip, what the other process says: words, arrays)}."""
    made = {}
    for name, options in OPTIONS.items():
        work = tmp_path_factory.mktemp(name)
        changed = {
            part: dataclasses.replace(getattr(tiny.model, part), **fields)
            for part, fields in options.items()
        }
        model = dataclasses.replace(tiny.model, reply_tokens=16, **changed)
        ears = model.spatial.format == "binaural"
        audio, _ = scene(0, 3, binaural.render if ears else render.render)
        params = trees.merge({}, varied(filled(model).params))
        folder = save(work / "sft", model, tiny.classes, text, params)
        prepare(work, folder, {"3": audio})
        made[name] = work, folder, audio
    said = read(*[work for work, *_ in made.values()])
    return {
        name: (folder, audio, *told)
        for (name, (_, folder, audio)), told in zip(made.items(), said, strict=True)
    }


@pytest.fixture(scope="module")
def model(trained):
    return qa.Model.load(trained)


def listener(model):
    """`heard(audio, params)`: logits [T, V], reply and slots of the checkpoint as trained."""

    @jax.jit
    def of(params, ids, audio):
        audio = model.asa.listen(params, audio)
        placed, _ = model.asa.project(params, audio)
        x = model.asa.embed(params, ids, placed, model.text.audio)
        hidden, *_ = model.asa.hidden(params, x, ids != model.text.pad)
        marks = {"pad": model.text.pad, "eos": model.text.eos, "audio_id": model.text.audio}
        most, key = model.asa.model.reply_tokens, jax.random.key(0)
        made = sample.generate(model.asa, params, ids, placed, key, max_new=most, **marks)
        return model.asa.logits(params, hidden)[0], made.ids[0, 0], audio.heard.slots

    def run(audio, params=model.params):
        places = model.asa.audio_tokens(len(audio))
        prompt = tokens.prompt_ids(model.text, places, tokens.question_text(QUESTION, None))
        logits, ids, slots = of(params, np.array([prompt]), audio[None])
        return np.asarray(logits), model.text.decode(np.asarray(ids)), slots

    return run


@pytest.fixture(scope="module")
def heard(model):
    return listener(model)


def agree(sources, slots, classes):
    """Asserts that the other process's sources are these slots, likeliest first."""
    order = np.argsort(-np.asarray(slots.presence[0]))
    assert len(sources) == len(order) == 3
    for source, s in zip(sources, order, strict=True):
        assert source["class"] == classes[int(slots.label[0, s].argmax())]
        azimuth, elevation = foa.direction(np.asarray(slots.direction[0, s]))
        assert abs(source["azimuth"] - azimuth) < 0.06
        assert abs(source["elevation"] - elevation) < 0.06
        assert abs(source["distance"] - np.exp(slots.log_distance[0, s])) < 0.006


def test_stage_3_taught_the_adapters(learnt):
    before, after, losses = learnt
    pairs = [path for path in after if path.startswith("lora/") and path.endswith("/b")]
    assert len(pairs) == 7
    for path in pairs:
        assert (before[path] == 0).all() and np.abs(after[path]).max() > 0.01, path
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    moved = {p.partition("/")[0] for p in after if (after[p] != before[p]).any()}
    assert moved == {"lora", "projector"}


@pytest.mark.parametrize("seconds", SECONDS)
def test_logits_text_and_slots_are_those_of_jax(model, heard, clips, found, seconds):
    facts, theirs, _ = found
    logits, reply, slots = heard(clips[str(seconds)])
    np.testing.assert_allclose(theirs[str(seconds)], logits, atol=1e-4)
    assert np.ptp(logits) > 1
    assert facts["answers"][str(seconds)]["reply"] == reply
    said = [model.text.encode(facts["answers"][str(s)]["reply"]) for s in SECONDS]
    assert max(len(set(ids)) for ids in said) > 4

    agree(facts["answers"][str(seconds)]["sources"], slots, model.classes)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_full_size_models(name, optional):
    folder, audio, facts, theirs = optional[name]
    model = qa.Model.load(folder)
    logits, reply, slots = listener(model)(audio)
    np.testing.assert_allclose(theirs["3"], logits, atol=1e-4)
    assert facts["answers"]["3"]["reply"] == reply
    assert np.ptp(logits) > 1 and len(set(model.text.encode(reply))) > 1
    agree(facts["answers"]["3"]["sources"], slots, model.classes)
    assert not facts["report"]


def test_adapters_were_merged(model, heard, clips, found):
    params = trees.flatten(model.params)
    off = {path: 0 * leaf if path.startswith("lora/") else leaf for path, leaf in params.items()}
    base, *_ = heard(clips["3"], trees.merge({}, off))
    assert np.abs(found[1]["3"] - base).max() > 0.1


def test_batches_in_torch(found):
    answers = found[0]["answers"]
    assert answers["pair"] == [answers["3"]["reply"], answers["alone"]]


def test_the_folder_is_whole_for_transformers(model, found):
    facts, theirs, _ = found
    assert not facts["report"] and facts["classes"] == list(model.classes)
    assert facts["ids"] == model.text.encode(" where is the dog ?")
    # Stock layers: two of Whisper's in the semantic encoder and two in the spatial one.
    assert facts["stock"].count("WhisperEncoderLayer") == 4
    assert facts["stock"].count("Qwen2Model") == 1
    assert np.abs(theirs["bfloat16"] - theirs["3"]).mean() < 0.2
    for fault, words in zip(
        facts["faults"], ("(48000, 3)", "48000", "of one length", "at most 30 s"), strict=True
    ):
        assert words in fault


def test_what_transformers_saves_is_read_back(model, found):
    _, _, work = found
    exported, _, _ = load.load(work / "export")
    saved, meta, _ = load.load(work / "saved")
    ours, theirs = load.flat(exported), load.flat(saved)
    assert set(ours) == set(theirs) and meta["stage"] == "sft"
    assert config.model_from_dict(meta["model"]).decoder == model.asa.model.decoder
    # They went through bfloat16 in the other process.
    for path, leaf in ours.items():
        np.testing.assert_allclose(theirs[path], leaf, rtol=0.01, err_msg=path)


def test_adapters_alone_are_those_of_peft(model, trained, tmp_path):
    """peft on transformers' Qwen2, against the checkpoint with adapters on and off."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import Qwen2ForCausalLM

    out = adapter.write(trained, tmp_path / "adapter")
    base = Qwen2ForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    ids = np.arange(12)[None] + 20
    hidden = jax.jit(model.asa.hidden, static_argnames="adapted")

    def ours(adapted):
        x = model.asa.embed(model.params, ids, None, model.text.audio)
        found, *_ = hidden(model.params, x, np.ones_like(ids, bool), adapted=adapted)
        return np.asarray(model.asa.logits(model.params, found))

    def theirs(net):
        with torch.no_grad():
            return net(torch.from_numpy(ids)).logits.numpy()

    np.testing.assert_allclose(theirs(base), ours(False), atol=1e-4)
    adapted = peft.PeftModel.from_pretrained(base, out)
    np.testing.assert_allclose(theirs(adapted), ours(True), atol=1e-4)
    assert np.abs(ours(True) - ours(False)).max() > 0.1
