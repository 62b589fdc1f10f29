# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from jaxasa import config
from jaxasa.config import ConfigError, gin_files

GIN = Path(__file__).resolve().parents[2] / "gin"
HEADER = "from __gin__ import dynamic_registration\nfrom jaxasa import config\n"
EARS = ("Spatial.format='binaural'", "Spatial.features='interaural'")
STAGES = ("Text", "Spatial", "Align", "Sft", "Grpo")
FULL = (
    HEADER
    + """
include 'mesh/single.gin'
WIDTH = 32
config.Run:
  name = "test"
  stages = ("sft",)
  sounds = @config.Sounds()
  scenes = @config.Scenes()
  model = @config.Model()
  mesh = @config.Mesh()
  bench = @config.Bench()
  text = @config.TextStage()
  spatial = @config.SpatialStage()
  align = @config.AlignStage()
  sft = @config.SftStage()
  grpo = @config.GrpoStage()
config.Model:
  semantic = @config.Semantic()
  spatial = @config.Spatial()
  projector = @config.Projector()
  decoder = @config.Decoder()
  lora = @config.Lora()
config.Semantic:
  n_mels = 80
  width = %WIDTH
  heads = 2
  layers = 1
config.Spatial:
  width = 32
  heads = 2
  layers = 1
  stem = ((8, 2, 4), (16, 1, 2))
config.Projector:
  hidden_width = 16
  expert_width = 8
config.Decoder:
  vocab_size = 300
  width = %WIDTH
  heads = 2
  kv_heads = 1
  head_dim = 16
  intermediate_size = 64
  layers = 2
config.Sounds:
  bank = "debian"
  classes = {"dog": ("Bark", "Howl"), "bell": ("Bell",)}
config.Scenes:
  train = 10
  dev = 5
  benchmark = 5
"""
    + "".join(
        f"config.{name}Stage:\n  steps = 10\n  batch_size = 2\n  learning_rate = 1e-3\n"
        "  trainable = ('lora/.*', 'decoder/layers/(q|k)/.*')\n"
        for name in STAGES
    )
)


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "full.gin"
    path.write_text(FULL)
    return str(path)


def write(folder: Path, text: str, name: str = "extra.gin") -> str:
    path = folder / name
    path.write_text(HEADER + text)
    return str(path)


def test_builds_plain_dataclasses_with_the_bound_values(full):
    run, _ = gin_files.load([full])
    assert type(run) is config.Run and type(run.model.decoder) is config.Decoder
    assert run.model.decoder.width == 32 and run.mesh == config.Mesh(-1, 1, 1)
    assert run.sounds.classes == {"dog": ("Bark", "Howl"), "bell": ("Bell",)}


def test_command_line_overrides_with_and_without_module_name(full):
    bindings = [
        "Decoder.layers=5",
        "config.Decoder.intermediate_size=128",
        "WIDTH=64",
        "Run.name='mine'",
    ]
    run, _ = gin_files.load([full], bindings)
    assert (run.model.decoder.layers, run.model.decoder.intermediate_size) == (5, 128)
    assert run.model.decoder.width == run.model.semantic.width == 64 and run.name == "mine"


def test_no_state_stays_from_the_call_before(full):
    changed, _ = gin_files.load([full], ["Decoder.layers=5", "Lora.rank=4"])
    run, _ = gin_files.load([full])
    assert changed.model.lora.rank == 4
    assert run.model.decoder.layers == 2 and run.model.lora.rank == config.Lora().rank


def test_resolved_text_builds_an_equal_run(full, tmp_path):
    run, text = gin_files.load([full], ["Decoder.layers=5"])
    path = tmp_path / "resolved.gin"
    path.write_text(text)
    again, text_again = gin_files.load([str(path)])
    assert again == run and text_again == text and "config.Decoder.layers = 5" in text


def test_includer_and_later_files_override(full, tmp_path):
    first = write(tmp_path, f"include '{full}'\nconfig.Decoder.layers = 3\nconfig.Lora.rank = 2\n")
    second = write(tmp_path, "config.Lora.rank = 16\n", "second.gin")
    run, _ = gin_files.load([first, second])
    assert run.model.decoder.layers == 3 and run.model.lora.rank == 16


@pytest.mark.parametrize("name", ["mesh/fsdp.gin", "gin/mesh/fsdp.gin"])
def test_files_are_found_from_any_folder(full, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    run, _ = gin_files.load([full, name])
    assert run.mesh == config.Mesh(1, -1, 1)


@pytest.mark.parametrize(
    "binding, words",
    [
        ("Decodr.width=3", ["unknown class", "Decoder"]),
        ("Decoder.widht=3", ["no field widht", "near: width"]),
        ("Decoder.width=3.5", ["Decoder.width is 3.5", "int"]),
        ("Decoder.width=True", ["Decoder.width is True", "int"]),
        ("Run.name=foo", ["wrong syntax", "quotes"]),
        ("Run.model=@config.Decoder()", ["Run.model", "@config.Model()"]),
        ("Run.mesh=@config.Mesh", ["@config.Mesh needs ()"]),
        ("Run.mesh=@config.Mash()", ["unknown class config.Mash", "config.Mesh"]),
        ("Decoder.width=%WITH", ["%WITH is bound nowhere", "WIDTH"]),
        ("Scenes.rt60=(1,)", ["Scenes.rt60 is (1,)", "tuple[float, float]"]),
        ("Scenes.rt60=(2.0, 1.0)", ["Scenes.rt60 is (2.0, 1.0)", "low <= high"]),
        ("Semantic.heads=3", ["Semantic.width is 32", "multiple of heads"]),
        ("seed=3", ["--gin.seed=3", "CLASS.FIELD"]),
        ("Decoder.width", ["NAME=VALUE"]),
    ],
)
def test_wrong_binding_is_one_line_that_names_it(full, binding, words):
    with pytest.raises(ConfigError) as error:
        gin_files.load([full], [binding])
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (
            ("SpatialStage.real_recordings=('a',)", *EARS),
            "SpatialStage.real_recordings is ('a',), expected ()",
        ),
        (("SftStage.qa_datasets=('a',)", *EARS), "SftStage.qa_datasets is ('a',), expected ()"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_at_once(bindings, words):
    with pytest.raises(ConfigError) as error:
        gin_files.load(["gin/run/smoke.gin"], bindings)
    assert words in str(error.value)
    gin_files.load(["gin/run/smoke.gin"], bindings[:1])
    gin_files.load(["gin/run/smoke.gin"], bindings[1:])


@pytest.mark.parametrize(
    "text, words",
    [
        ("config.Lora.rank = 2\nconfig.Lora.rank = 4\n", ["extra.gin:4", "extra.gin:3"]),
        ("config.Lora:\n  rank = 2\nconfig.Lora.rank = 4\n", ["extra.gin:5", "bound already"]),
        ("config.Lora.rank = = 2\n", ["extra.gin:3", "wrong syntax"]),
        ("config.Lora.rank = (2\n", ["extra.gin", "wrong syntax"]),
        ("config.Lora.rnak = 2\n", ["extra.gin:3", "no field rnak"]),
        ("include 'mesh/singel.gin'\n", ["extra.gin:3", "mesh/single.gin"]),
        ("include 'extra.gin'\n", ["includes itself"]),
        ("import os\n", ["extra.gin:3", "import of os"]),
        ("train/config.Lora.rank = 2\n", ["extra.gin:3", "scope"]),
    ],
)
def test_wrong_file_is_one_line_with_its_place(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        gin_files.read([path])
    assert "\n" not in str(error.value) and all(w in str(error.value) for w in words), error.value


def test_every_missing_field_is_named(full, tmp_path):
    text = FULL.replace("  vocab_size = 300\n", "").replace('  bank = "debian"\n', "")
    path = tmp_path / "part.gin"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"not bound: Decoder\.vocab_size, Sounds\.bank$"):
        gin_files.load([str(path)])
    with pytest.raises(ConfigError, match=r"Run\.name"):
        gin_files.load([])


def test_missing_file_names_near_ones():
    with pytest.raises(ConfigError, match=r"no file 'mesh/singel.gin'; near: mesh/single.gin"):
        gin_files.load(["mesh/singel.gin"])


def test_an_include_is_looked_for_beside_the_file_then_in_jaxasas_folder(full, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write(folder, "config.Lora.rank = 3\n", "beside.gin")
    first = write(folder, f"include '{full}'\ninclude 'beside.gin'\ninclude 'mesh/fsdp.gin'\n")
    run, _ = gin_files.load([first])
    assert run.model.lora.rank == 3 and run.mesh == config.Mesh(1, -1, 1)
    (folder / "mesh").mkdir()
    write(folder / "mesh", "config.Mesh.data = 2\nconfig.Mesh.fsdp = 3\n", "fsdp.gin")
    run, _ = gin_files.load([first])
    assert run.mesh == config.Mesh(2, 3, 1)


def test_the_callers_folder_changes_no_include(tmp_path, monkeypatch):
    expected, _ = gin_files.load(["run/demo.gin"])
    for name in ("model/tiny.gin", "run/tiny.gin", "gin/parts.gin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not gin")
    monkeypatch.chdir(tmp_path)
    for name in ("run/demo.gin", "gin/run/demo.gin"):
        assert gin_files.load([name])[0] == expected


def test_the_gin_folder_is_not_that_of_another_package(tmp_path):
    """site-packages/gin is the package gin-config; jaxasa's files are in jaxasa/gin there."""
    (tmp_path / "gin" / "run").mkdir(parents=True)
    (tmp_path / "gin" / "run" / "demo.gin").write_text("")
    assert gin_files.find_gin_folder(tmp_path / "jaxasa") == tmp_path / "jaxasa" / "gin"
    (tmp_path / "pyproject.toml").write_text("")
    assert gin_files.find_gin_folder(tmp_path / "jaxasa") == tmp_path / "gin"
    assert gin_files.GIN_FOLDER == GIN


@pytest.mark.parametrize("path", sorted(GIN.rglob("*.gin")), ids=lambda p: str(p.relative_to(GIN)))
def test_files_of_the_repository(path):
    if path.parent.name == "run":
        run, _ = gin_files.load([str(path)])
        assert isinstance(run, config.Run)
    else:
        assert gin_files.read([str(path)])
