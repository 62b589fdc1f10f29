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

from jaxasa import ask, checkpoint, config, optim, state
from jaxasa.acoustics import foa, render, scenes
from jaxasa.data import tokens
from jaxasa.hf import adapter, export, load
from jaxasa.models import sample

pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTION = "where is the dog ?"
SECONDS = (3, 10, 30)


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


@pytest.fixture(scope="module")
def trained(tiny, text, tmp_path_factory):
    """A checkpoint whose adapters are not zero, and whose replies are not one word repeated."""
    params = optim.flatten(tiny.params)
    params["decoder/layers/down/kernel"] = 4 * params["decoder/layers/down/kernel"]
    params["decoder/layers/o/kernel"] = 0.5 * params["decoder/layers/o/kernel"]
    model = dataclasses.replace(tiny.model, reply_tokens=16)
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    return save(folder, model, tiny.classes, text, optim.merge({}, params))


@pytest.fixture(scope="module")
def clips(described):
    """A rendered scene of each length, int16 [N, 4]."""

    def sound(name):
        rng = np.random.default_rng(sum(name.encode()))
        return (0.2 * rng.normal(size=16_000) * np.hanning(16_000)).astype(np.float32)

    made = {}
    for index, seconds in enumerate(SECONDS):
        ranges = config.Scenes(train=1, dev=1, benchmark=1, seconds=float(seconds))
        spec = scenes.draw(ranges, described.clips, 0, "test", index)
        audio, _ = render.render(spec, sound)
        made[str(seconds)] = np.rint(audio * 32767).astype(np.int16)
    return made


@pytest.fixture(scope="module")
def found(trained, clips, tmp_path_factory):
    """What the other process says of the export, and where it worked."""
    work = tmp_path_factory.mktemp("work")
    out = export.export(trained, work / "export")
    np.savez(work / "clips.npz", **{n: c.astype(np.float32) / 32767 for n, c in clips.items()})
    (work / "question.txt").write_text(QUESTION)
    reader = Path(__file__).with_name("torch_reader.py")
    done = subprocess.run(
        [sys.executable, "-I", str(reader), str(out), str(work)],
        cwd=work,
        env={**os.environ, "HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((work / "found.json").read_text())
    return facts, dict(np.load(work / "found.npz")), work


@pytest.fixture(scope="module")
def model(trained):
    return ask.Model.load(trained)


@pytest.fixture(scope="module")
def heard(model):
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


@pytest.mark.parametrize("seconds", SECONDS)
def test_logits_text_and_slots_are_those_of_jax(model, heard, clips, found, seconds):
    facts, theirs, _ = found
    logits, reply, slots = heard(clips[str(seconds)])
    np.testing.assert_allclose(theirs[str(seconds)], logits, atol=1e-4)
    assert np.ptp(logits) > 1
    assert facts["answers"][str(seconds)]["reply"] == reply
    said = [model.text.encode(facts["answers"][str(s)]["reply"]) for s in SECONDS]
    assert max(len(set(ids)) for ids in said) > 4

    sources = facts["answers"][str(seconds)]["sources"]
    order = np.argsort(-np.asarray(slots.presence[0]))
    assert len(sources) == len(order) == 3
    for source, s in zip(sources, order, strict=True):
        assert source["class"] == model.classes[int(slots.label[0, s].argmax())]
        azimuth, elevation = foa.direction(np.asarray(slots.direction[0, s]))
        assert abs(source["azimuth"] - azimuth) < 0.06
        assert abs(source["elevation"] - elevation) < 0.06
        assert abs(source["distance"] - np.exp(slots.log_distance[0, s])) < 0.006


def test_adapters_were_merged(model, heard, clips, found):
    params = optim.flatten(model.params)
    off = {path: 0 * leaf if path.startswith("lora/") else leaf for path, leaf in params.items()}
    base, *_ = heard(clips["3"], optim.merge({}, off))
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
