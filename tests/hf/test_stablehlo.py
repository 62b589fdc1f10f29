# SPDX-License-Identifier: Apache-2.0
"""Serialised functions, called in a process that has jax and safetensors, but not jaxasa."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxasa.config import ConfigError
from jaxasa.data import tokens
from jaxasa.hf import export, stablehlo
from jaxasa.inference import qa
from jaxasa.train import checkpoint, state

READER = """
import json, sys
from pathlib import Path
sys.modules.update({"jaxasa": None, "flax": None})
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file
folder, work = Path(sys.argv[1]), Path(sys.argv[2])
weights, given = load_file(folder / "model.safetensors"), np.load(work / "given.npz")
found = {}
for name in ("logits", "answer"):
    function = export.deserialize((folder / "stablehlo" / f"{name}.bin").read_bytes())
    found[name] = function.call(weights, given["ids"], given["audio"])
np.savez(work / "found.npz", **found)
print(json.dumps([function.platforms, [str(a) for a in function.in_avals[-2:]]]))
"""


@pytest.mark.soak
def test_functions_run_without_jaxasa(tiny, text, tmp_path):
    pytest.importorskip("flatbuffers")
    options = dataclasses.replace(tiny.model, prompt_tokens=16, reply_tokens=6)
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes),
        "seconds": 0.5,
        "model": dataclasses.asdict(options),
        "tokenizer": "tokenizer.json",
    }
    trained = tmp_path / "sft"
    with checkpoint.CheckpointManager(trained) as store:
        store.save(1, state.TrainState(np.int32(1), tiny.params, {}), {}, meta, "")
    text.backend.save(str(trained / "tokenizer.json"))
    out = export.export_checkpoint(trained, tmp_path / "out", with_stablehlo=True)
    # Half a second has 2 tokens of the map after those of 3 slots; 16 are left for the question.
    facts = json.loads((out / "stablehlo" / "signature.json").read_text())
    assert facts["functions"]["logits"]["result"] == {"shape": ["b", 21, 480], "dtype": "float32"}
    assert facts["ids"]["shape"] == ["b", 21] and facts["audio"]["shape"] == ["b", 8000, 4]

    model = qa.QaModel.load(trained)
    rng = np.random.default_rng(0)
    clips = (rng.normal(size=(3, 8000, 4)) * 3000).astype(np.int16)
    questions = ["where is the dog ?", "how many ?", "what ?"]
    rows = [
        tokens.prompt_ids(model.tokenizer, 5, tokens.question_text(question, None))
        for question in questions
    ]
    ids = tokens.pad_left(rows, 21, model.tokenizer.pad_id)
    np.savez(tmp_path / "given.npz", ids=ids, audio=clips.astype(np.float32) / 32767)
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(out), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    platforms, shapes = json.loads(done.stdout)
    assert set(platforms) == {"cpu", "cuda", "tpu"} and shapes[0] == "int32[b,21]"
    results = np.load(tmp_path / "found.npz")
    replies = model.respond(clips, questions, [None] * 3)
    assert [model.tokenizer.decode(row) for row in results["answer"]] == replies
    asa = model.asa

    @jax.jit
    def logits(params):
        audio_embeds, _ = asa.project(params, asa.encode_audio(params, clips))
        x = asa.embed(params, ids, audio_embeds, model.tokenizer.audio_id)
        hidden, *_ = asa.forward(params, x, ids != model.tokenizer.pad_id)
        return asa.logits(params, hidden)

    np.testing.assert_allclose(results["logits"], logits(model.params), atol=1e-4)


def test_missing_flatbuffers_is_a_config_error(monkeypatch, tmp_path):
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install jaxasa\[stablehlo\]"):
        stablehlo.write_stablehlo(tmp_path / "out", {}, {}, "tokenizer.json")
    assert not (tmp_path / "out").exists()
