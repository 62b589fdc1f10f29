# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from jaxasa.config import ConfigError, gin_files
from jaxasa.core import workdir
from jaxasa.core.workdir import WorkFolder

SMOKE = ["gin/run/smoke.gin"]


@pytest.fixture(scope="module")
def smoke():
    return gin_files.load(SMOKE)


def test_paths(tmp_path):
    work = WorkFolder(tmp_path)
    assert work.checkpoint("sft") == tmp_path / "checkpoints" / "sft"
    assert work.scenes("dev", "dcase") == tmp_path / "dcase" / "dev"
    assert WorkFolder.around(work.checkpoint("sft")) == work == WorkFolder(work)
    assert work.evaluation("benchmark") == work
    assert work.evaluation("dev").results == tmp_path / "dev" / "results.json"


@pytest.mark.parametrize(
    ("bindings", "train", "dev"),
    [
        ((), "scenes/train", "scenes/dev"),
        (("Scenes.rir_rooms=2",), "rirs", "scenes/dev"),
        (
            ("Spatial.format='binaural'", "Spatial.features='interaural'"),
            *("binaural/train", "binaural/dev"),
        ),
    ],
)
def test_scenes_of_a_run(bindings, train, dev):
    run, _ = gin_files.load(SMOKE, bindings)
    work = WorkFolder("run")
    assert work.scenes_of(run, "train") == work.path / train
    assert work.scenes_of(run, "dev") == work.path / dev
    assert {work.path / name.partition("/")[0] for name in (train, dev)} <= set(work.data_folders)


def test_claim_writes_the_config_and_compares_it(tmp_path, smoke):
    run, text = smoke
    work = workdir.claim(tmp_path / "new", run, text)
    assert work.config.read_text() == text
    workdir.claim(work, run, text)
    other, other_text = gin_files.load(SMOKE, ["Decoder.layers=7", "Scenes.train=9", "Run.seed=1"])
    with pytest.raises(ConfigError) as error:
        workdir.claim(work, other, other_text)
    for line in ("model.decoder.layers was 3, is 7", "scenes.train was 60, is 9", "seed was 0"):
        assert line in str(error.value)
    assert work.config.read_text() == text


def test_options_of_speed_and_of_other_parts_may_differ(tmp_path, smoke):
    run, text = smoke
    work = workdir.claim(tmp_path, run, text)
    for binding in ("Scenes.workers=1", "Model.unroll=3", "SftStage.steps=77", "Run.name='other'"):
        workdir.claim(work, *gin_files.load(SMOKE, [binding]))
    with pytest.raises(ConfigError, match="sft.steps was 4, is 9"):
        changed = dataclasses.replace(run, sft=dataclasses.replace(run.sft, steps=9))
        workdir.claim(work, run, text)
        workdir.claim(work, changed, text, ("sft",))


def test_claim_where_nothing_can_be_written(tmp_path, smoke):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write there"):
        workdir.claim(tmp_path / "file" / "x", *smoke)
