# SPDX-License-Identifier: Apache-2.0
"""Folders of adapters, refused or replaced; tests/hf/test_torch.py reads one with peft."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxasa.config import ConfigError
from jaxasa.hf import adapter
from jaxasa.train import checkpoint, state


def save(folder, tiny, text, params):
    meta = {
        "stage": "sft",
        "classes": list(tiny.classes),
        "seconds": 3.0,
        "model": dataclasses.asdict(tiny.model),
        "tokenizer": "tokenizer.json",
    }
    with checkpoint.CheckpointManager(folder) as store:
        store.save(1, state.TrainState(np.int32(1), params, {}), {}, meta, "")
    text.backend.save(str(folder / "tokenizer.json"))
    return folder


def test_adapters_in_the_names_of_peft(tiny, text, tmp_path):
    trained = save(tmp_path / "sft", tiny, text, tiny.params)
    out = adapter.write_adapter(trained, tmp_path / "adapter")
    tensors = load_file(out / "adapter_model.safetensors")
    b = tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    np.testing.assert_array_equal(b, tiny.params["lora"]["layers"]["q"]["b"][1].T)
    facts = json.loads((out / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"]) == (2, 6.0) and len(facts["target_modules"]) == 7
    assert len(tensors) == 2 * 7 * tiny.model.decoder.layers
    assert not any("lora" in name for name in load_file(out / "base" / "model.safetensors"))

    # Written again over itself, but over nothing else.
    adapter.write_adapter(trained, out)
    (out / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="holds something else"):
        adapter.write_adapter(trained, out)
    assert (out / "notes.txt").is_file()


def test_models_without_sound_adapters(tiny, text, tmp_path):
    bare = {name: part for name, part in tiny.params.items() if name != "lora"}
    trained = save(tmp_path / "bare", tiny, text, bare)
    with pytest.raises(ConfigError, match="bare: has no adapters"):
        adapter.write_adapter(trained, tmp_path / "out")
    layers = tiny.params["lora"]["layers"]
    broken = layers | {"q": layers["q"] | {"b": layers["q"]["b"] * np.nan}}
    trained = save(tmp_path / "nan", tiny, text, tiny.params | {"lora": {"layers": broken}})
    with pytest.raises(ConfigError, match="lora/layers/q/b has NaN or infinite"):
        adapter.write_adapter(trained, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "nan"]
