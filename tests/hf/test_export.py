# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import trees
from jaxasa.data import tokens
from jaxasa.hf import export, keymap, load, weights
from jaxasa.models import asa
from jaxasa.train import checkpoint, state

MODEL = config.Model(
    semantic=config.Semantic(n_mels=16, width=8, heads=2, layers=2),
    spatial=config.Spatial(
        width=8, heads=2, layers=2, stem=((4, 2, 2), (6, 1, 2)), n_mels=16, num_classes=5
    ),
    projector=config.Projector(hidden_width=12, expert_width=6),
    decoder=config.Decoder(
        vocab_size=300, width=16, heads=2, kv_heads=1, head_dim=6, intermediate_size=20, layers=3
    ),
    lora=config.Lora(rank=2, alpha=6.0),
)
META = {
    "stage": "sft",
    "classes": ["bell", "dog"],
    "seconds": 5.0,
    "model": dataclasses.asdict(MODEL),
    "tokenizer": "tokenizer.json",
}


@pytest.fixture(scope="module")
def params():
    """Parameters of MODEL, each array full of different numbers, adapters too."""
    shapes = jax.eval_shape(asa.ASA(MODEL).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def trained(params, tmp_path_factory):
    """A folder such as checkpoints/sft."""
    folder = tmp_path_factory.mktemp("checkpoints") / "sft"
    with checkpoint.CheckpointManager(folder) as store:
        store.save(3, state.TrainState(np.int32(3), params, {}), {}, META, "")
    text = tokens.train_tokenizer(["where is the dog", "front left"], 300)
    text.backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export.export_checkpoint(trained, tmp_path_factory.mktemp("out") / "export")


@pytest.fixture
def copy(exported, tmp_path):
    """An export to damage, and a function that rewrites its tensors."""
    folder = shutil.copytree(exported, tmp_path / "export")

    def change(edit):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return folder, change


def same(a: dict, b: dict) -> bool:
    a, b = load.flatten_params(a), load.flatten_params(b)
    return set(a) == set(b) and all(
        a[p].dtype == b[p].dtype and a[p].shape == b[p].shape and (a[p] == b[p]).all() for p in a
    )


def test_table_covers_the_model_and_is_inverted(params):
    leaves = {p: x for p, x in load.flatten_params(params).items() if not p.startswith("lora/")}
    tensors = keymap.to_hf(leaves)
    assert sum(t.size for t in tensors.values()) == sum(x.size for x in leaves.values())
    assert same(keymap.from_hf(tensors), leaves)
    # No row is left over: each describes some parameter of this model, or of one of other options.
    paths, ears = set(leaves), dataclasses.replace(MODEL.spatial, format="binaural")
    for kind in ("p0", "p1"):
        projector = dataclasses.replace(MODEL.projector, kind=kind)
        other = dataclasses.replace(MODEL, spatial=ears, projector=projector)
        paths |= set(load.expected_shapes(other))
    rows = {keymap._find(keymap._by_jax_path(keymap.TABLE), path)[0] for path in paths}
    unused = {row.jax_path for row in set(keymap.TABLE) - rows}
    assert unused == {"decoder/head", *(f"decoder/layers/{n}_norm/scale" for n in "qk")}
    for side in ("jax_path", "hf_name"):
        names = [getattr(row, side) for row in keymap.TABLE]
        assert len(set(names)) == len(names)


def test_names_and_layouts_are_those_of_the_torch_models(params):
    tensors = keymap.to_hf(
        {p: x for p, x in load.flatten_params(params).items() if "lora" not in p}
    )
    q = params["decoder"]["layers"]["q"]["kernel"]
    assert (tensors["model.layers.2.self_attn.q_proj.weight"] == q[2].T).all()
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 20)
    assert "model.layers.0.self_attn.o_proj.bias" not in tensors
    conv = params["semantic"]["conv2"]["kernel"]
    assert (tensors["audio_tower.conv2.weight"][:, 5, 1] == conv[1, 5]).all()
    stem = params["spatial"]["stem1"]["kernel"]
    assert (tensors["spatial_encoder.stem.1.linear.weight"] == stem.T).all()
    assert all(t.flags.c_contiguous for t in tensors.values())


def test_unknown_names():
    with pytest.raises(ConfigError, match="decoder/layers/w/kernel"):
        keymap.to_hf({"decoder/layers/w/kernel": np.zeros((1, 2, 2))})
    with pytest.raises(ConfigError, match=r"surplus model\.layers\.0\.x"):
        keymap.from_hf({"model.layers.0.x": np.zeros(2)})
    names = {f"model.layers.{n}.input_layernorm.weight": np.zeros(2) for n in (0, 2)}
    with pytest.raises(ConfigError, match=r"missing layers \[1\]"):
        keymap.from_hf(names)


def test_merged_model_equals_the_adapted_one(params):
    """Logits with adapters equal logits of the merged model without them."""
    model = asa.ASA(MODEL)
    merged = load.merge_lora(params, META["model"])
    assert "lora" not in merged
    x = np.random.default_rng(1).normal(size=(1, 4, 16)).astype(np.float32)
    mask = np.ones((1, 4), bool)
    small = jax.tree.map(lambda a: a * 0.1, params)
    forward = jax.jit(model.forward)
    expected, *_ = forward(small, x, mask)
    base, *_ = forward(asa.without_adapters(small), x, mask)
    hidden, *_ = forward(load.merge_lora(small, META["model"]), x, mask)
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    assert np.abs(base - expected).max() > 1e-3
    up, lora = params["decoder"]["layers"]["up"]["kernel"], params["lora"]["layers"]["up"]
    formula = up[1] + 6.0 / 2 * lora["a"][1] @ lora["b"][1]
    np.testing.assert_allclose(merged["decoder"]["layers"]["up"]["kernel"][1], formula, rtol=1e-4)


def test_round_trip(params, trained, exported):
    loaded, meta, tokenizer = load.load_model(exported)
    assert same(loaded, load.merge_lora(params, META["model"]))
    for key in META:
        assert meta[key] == json.loads(json.dumps(META))[key]
    model = config.model_from_dict(meta["model"])
    assert model == MODEL and hash(model) == hash(MODEL)
    assert tokens.TextTokenizer.load(tokenizer).encode("dog") == tokens.TextTokenizer.load(
        trained / "tokenizer.json"
    ).encode("dog")
    again, meta, _ = load.load_model(trained)
    assert same(again, params)
    assert meta["stage"] == "sft"


def test_folder_holds_what_the_hub_expects(exported):
    names = {p.name for p in exported.iterdir()}
    assert names == {
        *("model.safetensors", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "processor_config.json", "README.md"),
        *(f"{n}_jaxasa.py" for n in ("configuration", "processing", "modeling")),
        *(f"{n}_jaxasa.py" for n in ("encoders", "features", "peaks", "slot_features")),
    }
    facts = json.loads((exported / "config.json").read_text())
    assert facts["model_type"] == "jaxasa"
    assert facts["text_config"]["num_key_value_heads"] == 1
    assert facts["audio_config"]["max_source_positions"] == 1500
    text = tokens.TextTokenizer.load(exported / "tokenizer.json")
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation["eos_token_id"] == text.eos_id
    card = (exported / "README.md").read_text()
    assert "bell, dog" in card and "W Y Z X" in card


def test_shards(trained, exported, tmp_path):
    out = export.export_checkpoint(trained, tmp_path / "out", shard_bytes=4000)
    index = json.loads((out / weights.INDEX).read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2 and {f.name for f in files} == set(index["weight_map"].values())
    largest = max(t.nbytes for f in files for t in load_file(f).values())
    for file in files:
        assert sum(t.nbytes for t in load_file(file).values()) <= max(4000, largest)
    assert same(load.load_model(out)[0], load.load_model(exported)[0])
    files[1].unlink()
    with pytest.raises(ConfigError, match=files[1].name):
        load.load_model(out)


def test_export_replaces_an_export_and_nothing_else(trained, tmp_path):
    out = tmp_path / "out"
    export.export_checkpoint(trained, out)
    (out / "old").write_text("")
    export.export_checkpoint(trained, out)
    assert not (out / "old").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="mine"):
        export.export_checkpoint(trained, mine)
    assert (mine / "thesis.txt").exists()


def test_what_is_there_stays_when_an_export_fails(trained, tmp_path, monkeypatch):
    out = export.export_checkpoint(trained, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.card, "model_card", full)
    with pytest.raises(OSError, match="No space"):
        export.export_checkpoint(trained, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    # The last step, too.
    monkeypatch.undo()
    replace = os.replace

    def refuse(a, b):
        return full() if Path(a).name.startswith(".new.") else replace(a, b)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        export.export_checkpoint(trained, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_models_of_others_are_not_replaced(trained, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"model_type": "qwen2"}')
    file = tmp_path / "file"
    file.write_text("")
    for out in (theirs, file, trained):
        with pytest.raises(ConfigError, match=f"{out.name}: holds something else"):
            export.export_checkpoint(trained, out)
    assert [p.name for p in theirs.iterdir()] == ["config.json"] and file.is_file()


def test_half_a_checkpoint(trained, tmp_path):
    half = shutil.copytree(trained, tmp_path / "sft")
    for path in (half / "3" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="sft"):
        export.export_checkpoint(half, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["sft"]


def test_export_of_an_export_is_the_same(exported, tmp_path):
    again = export.export_checkpoint(exported, tmp_path / "again")
    assert same(load.load_model(again)[0], load.load_model(exported)[0])


def test_truncated_file(copy):
    folder, _ = copy
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="model.safetensors: truncated or damaged"):
        load.load_model(folder)


def test_missing_surplus_and_misshaped_tensors_are_all_listed(copy):
    folder, change = copy

    def edit(tensors):
        del tensors["projector.null_embedding"]
        for n in range(3):
            tensors[f"model.layers.{n}.input_layernorm.weight"] = np.zeros(5, np.float32)

    change(edit)
    with pytest.raises(ConfigError) as error:
        load.load_model(folder)
    assert "missing projector/null_embedding" in str(error.value)
    assert "decoder/layers/norm1/scale is [3, 5], expected [3, 16]" in str(error.value)
    change(lambda tensors: tensors.update({"lm_head.weight": np.zeros(3, np.float32)}))
    with pytest.raises(
        ConfigError, match=r"export: missing projector/null_embedding; surplus decoder/head"
    ):
        load.load_model(folder)


def test_weights_that_are_not_finite(copy, trained, params, tmp_path):
    folder, change = copy
    change(lambda tensors: tensors["model.norm.weight"].__setitem__(3, np.nan))
    with pytest.raises(ConfigError, match="decoder/norm/scale has NaN"):
        load.load_model(folder)
    leaves = load.flatten_params(params)
    leaves["projector/null_embedding"] = np.full_like(leaves["projector/null_embedding"], np.inf)
    bad = tmp_path / "bad"
    with checkpoint.CheckpointManager(bad) as store:
        store.save(1, state.TrainState(np.int32(1), trees.merge({}, leaves), {}), {}, META, "")
    shutil.copy(trained / "tokenizer.json", bad)
    with pytest.raises(ConfigError, match="projector/null_embedding"):
        export.export_checkpoint(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="projector/null_embedding has NaN or infinite"):
        load.load_model(bad)


def test_a_word_without_a_row_is_named(copy):
    folder, _ = copy
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    plain = {"special": True, "normalized": False}
    plain |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    tokenizer["added_tokens"] += [
        {"id": i, "content": f"<w{i}>"} | plain for i in range(2000, 3000)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer.json: token .* has id \d+, expected less"):
        load.load_model(folder)


def test_folders_that_hold_no_model(copy, tmp_path):
    with pytest.raises(ConfigError, match="`jaxasa export`, or WORKDIR/checkpoints"):
        load.load_model(tmp_path / "none")
    folder, _ = copy
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer.json: no such file"):
        load.load_model(folder)
    facts = json.loads((folder / "config.json").read_text())
    del facts["classes"]
    (folder / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"config\.json lacks classes"):
        load.load_model(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ConfigError, match="'qwen2'"):
        load.load_model(folder)


def test_model_config_with_wrong_fields():
    with pytest.raises(ConfigError, match="model config: .*depth"):
        config.model_from_dict({**META["model"], "decoder": {"depth": 3}})
    with pytest.raises(ConfigError, match="model config: .*lora"):
        config.model_from_dict({k: v for k, v in META["model"].items() if k != "lora"})
