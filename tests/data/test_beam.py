# SPDX-License-Identifier: Apache-2.0
import dataclasses
import sys

import pytest

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.data.simulate import simulate

SCENES = config.Scenes(
    train=1, dev=1, benchmark=1, seconds=1.0, rt60=(0.15, 0.2), scenes_per_shard=2, workers=1
)
COUNT = 7


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_without_beam_the_error_names_the_extra(bank, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "jaxasa.data.beam", raising=False)
    with pytest.raises(ConfigError, match=r"jaxasa\[beam\]"):
        simulate(SCENES, bank.folder, "train", tmp_path / "out", 0, 2, runner="DirectRunner")


@pytest.mark.parametrize(
    "format, compared",
    [("records", ("one", "four", "threads", "processes")), ("dcase", ("one", "threads"))],
)
def test_one_process_four_and_beam_write_the_same_bytes(
    bank, tmp_path, monkeypatch, format, compared
):
    """Beam's local runner in this process, and in processes of its own."""
    pytest.importorskip("apache_beam")
    outputs = {}
    own = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    ways = {
        "one": (1, None, ()),
        "four": (4, None, ()),
        "threads": (1, "DirectRunner", ()),
        "processes": (1, "DirectRunner", own),
    }
    for name in compared:
        workers, runner, options = ways[name]
        ranges = dataclasses.replace(SCENES, workers=workers)
        folder = tmp_path / name
        if runner is not None:
            beam = pytest.importorskip("jaxasa.data.beam")
            monkeypatch.setattr(beam, "_GROUP", 3)
        simulate(ranges, bank.folder, "dev", folder, 3, COUNT, format, runner, options)
        outputs[name] = files(folder)
    assert len(outputs["one"]) == (5 if format == "records" else 5 + 2 * COUNT)
    for name in compared:
        assert outputs[name] == outputs["one"], name


def test_beam_adds_missing_shards(bank, tmp_path):
    pytest.importorskip("apache_beam")
    simulate(SCENES, bank.folder, "dev", tmp_path, 3, COUNT)
    whole = files(tmp_path)
    (tmp_path / "manifest.json").unlink()
    first, second, *others = sorted(tmp_path.glob("*.array_record"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    times = [path.stat().st_mtime_ns for path in others]
    simulate(SCENES, bank.folder, "dev", tmp_path, 3, COUNT, runner="DirectRunner")
    assert files(tmp_path) == whole
    assert [path.stat().st_mtime_ns for path in others] == times


def test_unknown_runners_and_options_are_refused(bank, tmp_path):
    pytest.importorskip("apache_beam")
    with pytest.raises(ConfigError, match="NoRunner"):
        simulate(SCENES, bank.folder, "dev", tmp_path / "a", 3, 2, runner="NoRunner")
    for bad in ("--direct_num_wrokers=2", "direct_num_workers=2"):
        with pytest.raises(ConfigError, match="direct_num_w(rokers|orkers=2): Apache Beam has no"):
            simulate(
                SCENES, bank.folder, "dev", tmp_path / "a", 3, 2, "records", "DirectRunner", [bad]
            )
