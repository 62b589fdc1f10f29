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

from jaxasa import ask, checkpoint, config, state
from jaxasa.acoustics import render, scenes
from jaxasa.data import tokens
from jaxasa.hf import adapter, export, load

pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTION = "where is the dog ?"
SECONDS = (3, 10, 30)


@pytest.fixture(scope="module")
def trained(tiny, text, tmp_path_factory):
    """A checkpoint whose adapters are not zero."""
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes),
        "seconds": 3.0,
        "model": dataclasses.asdict(dataclasses.replace(tiny.model, reply_tokens=16)),
        "tokenizer": "tokenizer.json",
    }
    with checkpoint.Store(folder) as store:
        store.save(1, state.State(np.int32(1), tiny.params, {}), {}, meta, "")
    text.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


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


def logits(model, audio, adapted=True):
    """Of QUESTION about int16 audio [N, 4], by the checkpoint as it was trained."""
    places = model.asa.audio_tokens(len(audio))
    prompt = tokens.prompt_ids(model.text, places, tokens.question_text(QUESTION, None))

    @jax.jit
    def of(params, ids, audio):
        placed, _ = model.asa.project(params, model.asa.listen(params, audio))
        x = model.asa.embed(params, ids, placed, model.text.audio)
        hidden, *_ = model.asa.hidden(params, x, ids != model.text.pad, adapted)
        return hidden[0] @ model.asa.table(params).T

    return np.asarray(of(model.params, np.array([prompt]), audio[None]))


@pytest.mark.parametrize("seconds", SECONDS)
def test_logits_and_greedy_text_are_those_of_jax(model, clips, found, seconds):
    facts, theirs, _ = found
    clip = clips[str(seconds)]
    ours = logits(model, clip)
    np.testing.assert_allclose(theirs[str(seconds)], ours, atol=1e-4)
    assert np.ptp(ours) > 1
    reply = model.respond(clip[None], [QUESTION], [None])[0]
    assert facts["answers"][str(seconds)]["reply"] == reply and len(reply) > 8


def test_adapters_were_merged(model, clips, found):
    base = logits(model, clips["3"], adapted=False)
    assert np.abs(found[1]["3"] - base).max() > 0.1


def test_slots_and_batches_in_torch(model, clips, found):
    facts, *_ = found
    sources = model.sources(clips["10"], threshold=0.0)
    theirs = facts["answers"]["10"]["sources"]
    assert len(sources) == len(theirs) == 3
    for a, b in zip(sources, theirs, strict=True):
        assert a["class"] == b["class"]
        for name in ("azimuth", "elevation", "distance", "presence"):
            assert abs(a[name] - b[name]) < 0.11
    first, second = facts["answers"]["pair"]
    assert first == facts["answers"]["3"]["reply"] and second == facts["answers"]["alone"]


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
        return np.asarray(found @ model.asa.table(model.params).T)

    def theirs(net):
        with torch.no_grad():
            return net(torch.from_numpy(ids)).logits.numpy()

    np.testing.assert_allclose(theirs(base), ours(False), atol=1e-4)
    adapted = peft.PeftModel.from_pretrained(base, out)
    np.testing.assert_allclose(theirs(adapted), ours(True), atol=1e-4)
    assert np.abs(ours(True) - ours(False)).max() > 0.1
