# SPDX-License-Identifier: Apache-2.0
"""The Python face: what `import jaxasa` offers."""

import dataclasses
import doctest
import json
import subprocess
import sys

import numpy as np
import pytest

import jaxasa
from jaxasa import api
from jaxasa.config import ConfigError
from jaxasa.train import checkpoint, state


@pytest.mark.parametrize("module", [jaxasa, api], ids=lambda module: module.__name__)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_every_name_is_there_and_documented():
    for name in jaxasa.__all__:
        assert getattr(jaxasa, name).__doc__ and f"    {name} " in jaxasa.__doc__
    assert {*jaxasa.__all__, "__version__"} <= set(dir(jaxasa))
    assert jaxasa.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute 'listen'"):
        _ = jaxasa.listen


def test_import_is_light():
    code = "import sys, jaxasa; sys.exit(bool({'jax', 'numpy', 'gin'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def model(tiny, text, tmp_path):
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes[:5]),
        "seconds": 0.5,
        "model": dataclasses.asdict(dataclasses.replace(tiny.model, reply_tokens=16)),
        "tokenizer": "tokenizer.json",
    }
    folder = tmp_path / "sft"
    with checkpoint.CheckpointManager(folder) as store:
        store.save(1, state.TrainState(np.int32(1), tiny.params, {}), {}, meta, "")
    text.backend.save(str(folder / "tokenizer.json"))
    return jaxasa.load(folder)


def test_a_model_answers_about_a_file_and_about_samples(model, tmp_path):
    audio = 0.1 * np.random.default_rng(0).standard_normal((8000, 4)).astype(np.float32)
    jaxasa.write_foa(tmp_path / "a.wav", audio)
    options = ("left", "right", "front", "back")
    answers = [
        model.ask(recording, "Where is the dog?", options)
        for recording in (tmp_path / "a.wav", jaxasa.read_foa(tmp_path / "a.wav"))
    ]
    assert answers[0] == answers[1] and answers[0]["answer"] in options
    assert set(answers[0]) == {"question", "answer", "thought", "reply", "sources"}
    with pytest.raises(ConfigError, match="b.wav"):
        model.ask(tmp_path / "b.wav", "Where is the dog?")


def test_write_foa_refuses_what_it_cannot_write(tmp_path):
    audio = np.zeros((10, 4))
    for name, samples, words in (
        ("a.mp3", audio, "expected NAME.wav or NAME.flac"),
        ("a.wav", audio[:, :2], "shape of FOA audio is"),
        ("a.wav", audio + 1.5, "peak of the audio is 1.5"),
    ):
        with pytest.raises(ConfigError, match=words):
            jaxasa.write_foa(tmp_path / name, samples)
    assert not list(tmp_path.iterdir())


def test_scenes_are_keyed_and_plotted(tmp_path):
    sounds = {name: 0.1 * np.ones(16_000) for name in ("rain", "wind", "bell")}
    scenes = [jaxasa.sample_scene(sounds, seed=3, index=i, rt60=(0.2, 0.3)) for i in (0, 0, 1)]
    assert scenes[0] == scenes[1] != scenes[2]
    found = jaxasa.plot(scenes[0], tmp_path / "room.png")
    assert (tmp_path / "room.png").read_bytes().startswith(b"\x89PNG") and found["rt60"] > 0


def test_score(tmp_path):
    item = {"level": "L1", "task": "t", "question": "?", "options": ["a", "b", "c", "d"]}
    item |= {"answer": "B", "direction": True, "scene": {"sources": []}, "file_name": "a.flac"}
    lines = [json.dumps({"id": str(i), **item}) for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    answers = [json.dumps({"id": str(i), "answer": "B" if i else "A"}) for i in range(4)]
    (tmp_path / "answers.jsonl").write_text("\n".join(answers))
    scores = jaxasa.score(tmp_path / "answers.jsonl", tmp_path)
    assert scores["overall"]["accuracy"] == 0.75 and scores["L1"]["items"] == 4
