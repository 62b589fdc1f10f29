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
    model = dataclasses.replace(tiny.model, prompt_tokens=16, reply_tokens=6)
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes),
        "seconds": 0.5,
        "model": dataclasses.asdict(model),
        "tokenizer": "tokenizer.json",
    }
    trained = tmp_path / "sft"
    with checkpoint.Store(trained) as store:
        store.save(1, state.State(np.int32(1), tiny.params, {}), {}, meta, "")
    text.tokenizer.save(str(trained / "tokenizer.json"))
    out = export.export(trained, tmp_path / "out", with_stablehlo=True)
    # Half a second is 2 steps of the map after 3 slots, and 16 places are left to the question.
    facts = json.loads((out / "stablehlo" / "signature.json").read_text())
    assert facts["functions"]["logits"]["result"] == {"shape": ["b", 21, 480], "dtype": "float32"}
    assert facts["ids"]["shape"] == ["b", 21] and facts["audio"]["shape"] == ["b", 8000, 4]

    ours = qa.Model.load(trained)
    rng = np.random.default_rng(0)
    clips = (rng.normal(size=(3, 8000, 4)) * 3000).astype(np.int16)
    questions = ["where is the dog ?", "how many ?", "what ?"]
    rows = [
        tokens.prompt_ids(ours.text, 5, tokens.question_text(question, None))
        for question in questions
    ]
    ids = tokens.pad_left(rows, 21, ours.text.pad)
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
    found = np.load(tmp_path / "found.npz")
    replies = ours.respond(clips, questions, [None] * 3)
    assert [ours.text.decode(row) for row in found["answer"]] == replies
    asa = ours.asa

    @jax.jit
    def logits(params):
        placed, _ = asa.project(params, asa.listen(params, clips))
        x = asa.embed(params, ids, placed, ours.text.audio)
        hidden, *_ = asa.hidden(params, x, ids != ours.text.pad)
        return asa.logits(params, hidden)

    np.testing.assert_allclose(found["logits"], logits(ours.params), atol=1e-4)


def test_what_serialises_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install jaxasa\[stablehlo\]"):
        stablehlo.write(tmp_path / "out", {}, {}, "tokenizer.json")
    assert not (tmp_path / "out").exists()
