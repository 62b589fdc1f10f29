# SPDX-License-Identifier: Apache-2.0
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import pyroom_engine, render, scenes
from jaxasa.config import ConfigError
from jaxasa.data import records, shard_plan
from jaxasa.data import simulate as simulate_module
from jaxasa.data.simulate import estimate, simulate

ONE_WORKER = config.Scenes(
    train=1, dev=1, benchmark=1, seconds=1.5, rt60=(0.15, 0.2), scenes_per_shard=3, workers=1
)
SCENES = dataclasses.replace(ONE_WORKER, workers=4)
COUNT = 26


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    return simulate(SCENES, bank.folder, "train", tmp_path_factory.mktemp("whole"), 7, COUNT)


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_records_are_the_sampled_scenes_rendered(bank, whole):
    assert len(whole) == COUNT and [s["count"] for s in whole.manifest["shards"]] == [3] * 8 + [2]
    assert whole.manifest["bank"] == "procedural"
    for index in (0, COUNT - 1):
        spec = scenes.sample_scene(SCENES, bank.clips("train"), 7, "train", index)
        audio, scene = render.render(spec, bank.audio)
        got, meta = whole[index]
        assert meta == scene and meta["id"] == f"train/{index:06d}"
        assert np.abs(records.to_float(got) - audio).max() < 2e-4 and got.shape == (24_000, 4)


def test_a_complete_set_is_opened_and_another_is_refused(bank, whole):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}
    assert len(simulate(SCENES, bank.folder, "train", whole.folder, 7, COUNT)) == COUNT
    assert {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()} == before
    for split, seed, count in (("dev", 7, COUNT), ("train", 8, COUNT), ("train", 7, 9)):
        with pytest.raises(ConfigError, match=r"other settings \((split|seed|count)\)"):
            simulate(SCENES, bank.folder, split, whole.folder, seed, count)
    with pytest.raises(ConfigError, match="format"):
        simulate(SCENES, bank.folder, "train", whole.folder, 7, COUNT, "dcase")
    (whole.folder / "manifest.json").rename(whole.folder / "kept")
    with pytest.raises(ConfigError, match="other settings"):
        simulate(SCENES, bank.folder, "train", whole.folder, 8, COUNT)
    (whole.folder / "kept").rename(whole.folder / "manifest.json")


def test_one_worker_renders_missing_and_damaged_shards_the_same(bank, whole, tmp_path):
    contents = files(whole.folder)
    shards = sorted(name for name in contents if name != "manifest.json")
    (tmp_path / shards[0]).write_bytes(contents[shards[0]])
    (tmp_path / shards[1]).write_bytes(contents[shards[1]][:-5000])
    (tmp_path / f".{shards[2]}.99.tmp").write_bytes(b"half")
    untouched = (tmp_path / shards[0]).stat().st_mtime_ns
    simulate(ONE_WORKER, bank.folder, "train", tmp_path, 7, COUNT)
    assert files(tmp_path) == contents
    assert (tmp_path / shards[0]).stat().st_mtime_ns == untouched


# Dies as by `kill -9` or a lost machine when the first shard is reported.
SCRIPT = """
import contextlib, os, signal, sys
from jaxasa import config
from jaxasa.data import simulate

@contextlib.contextmanager
def progress(*_):
    yield lambda count: os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    simulate.progress = progress
    scenes = config.Scenes(
        train=1, dev=1, benchmark=1, seconds=1.5, rt60=(0.15, 0.2), scenes_per_shard=3
    )
    simulate.simulate(scenes, sys.argv[1], "train", sys.argv[2], 7, int(sys.argv[3]))
"""


def test_a_killed_run_leaves_no_workers_and_resumes_to_the_same_files(bank, whole, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    folder = tmp_path / "killed"
    command = [sys.executable, script, bank.folder, folder, str(COUNT)]
    run = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    assert run.wait(120) == -signal.SIGKILL
    end = time.monotonic() + 30
    while _group_lives(run.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _group_lives(run.pid)
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.array_record")}
    assert times and not (folder / "manifest.json").exists()
    simulate(ONE_WORKER, bank.folder, "train", folder, 7, COUNT)
    assert files(folder) == files(whole.folder)
    assert all((folder / name).stat().st_mtime_ns == times[name] for name in times)


def _group_lives(group):
    """Whether a process of the group runs (a zombie that nobody reaps does not)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            return True
    return False


def test_the_benchmark_holds_test_recordings_only(bank, whole, tmp_path):
    data = simulate(ONE_WORKER, bank.folder, "benchmark", tmp_path, 7, 6)
    recordings = {s["recording_id"] for k in range(6) for s in data[k][1]["sources"]}
    assert recordings <= {c.recording_id for c in bank.clips("test")}
    trained = {s["recording_id"] for k in range(COUNT) for s in whole[k][1]["sources"]}
    assert trained <= {c.recording_id for c in bank.clips("train")}


def test_manifest_names_the_renderer(whole):
    backend = whole.manifest["backend"]
    assert backend["renderer"] == "numba on cpu"
    assert backend["numpy"] == np.__version__
    assert whole.manifest["engine"] == "jaxasa"
    assert "workers" not in whole.manifest["scenes"] and "train" not in whole.manifest["scenes"]


def test_scenes_of_another_engine_are_another_set(bank, tmp_path):
    pra = pytest.importorskip("pyroomacoustics")
    ranges = dataclasses.replace(ONE_WORKER, engine="pyroomacoustics", sources=(1, 1))
    data = simulate(ranges, bank.folder, "train", tmp_path, 7, 2)
    assert data.manifest["engine"] == data.manifest["scenes"]["engine"] == "pyroomacoustics"
    backend = data.manifest["backend"]
    assert backend["renderer"] == "pyroomacoustics and numba on cpu"
    assert backend["pyroomacoustics"] == pra.__version__
    spec = scenes.sample_scene(ranges, bank.clips("train"), 7, "train", 1)
    audio, scene = pyroom_engine.render_scene(spec, bank.audio)
    assert data[1][1] == scene
    assert np.abs(records.to_float(data[1][0]) - audio).max() < 2e-4
    with pytest.raises(ConfigError, match=r"other settings \(scenes\)"):
        simulate(dataclasses.replace(ranges, engine="jaxasa"), bank.folder, "train", tmp_path, 7, 2)


def test_shards_of_another_backend_are_refused(bank, whole, tmp_path, monkeypatch):
    shard = next(whole.folder.glob("*.array_record"))
    (tmp_path / shard.name).write_bytes(shard.read_bytes())
    monkeypatch.setattr(shard_plan, "_backend", lambda engine: {"numba": "0"})
    with pytest.raises(ConfigError, match="other settings"):
        simulate(ONE_WORKER, bank.folder, "train", tmp_path, 7, COUNT)
    # A complete one is opened: an upgrade does not cost a data set.
    assert len(simulate(ONE_WORKER, bank.folder, "train", whole.folder, 7, COUNT)) == COUNT


def test_estimate_is_near_the_real_cost(bank, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = estimate(SCENES, bank.folder, "train", 7, COUNT)
    size = sum(shard["bytes"] for shard in whole.manifest["shards"])
    assert result["scenes"] == COUNT and result["shards"] == 9 and result["sample"] == COUNT
    assert result["hours"] == pytest.approx(COUNT * 1.5 / 3600)
    # Each shard costs a little by itself.
    assert result["bytes"] == pytest.approx(size, rel=0.03)
    assert 0 < result["core_hours"] < COUNT * 2 / 3600 and not list(tmp_path.iterdir())
    more = estimate(SCENES, bank.folder, "train", 7, 3_600_000_000)
    assert more["hours"] == 1.5e6 and more["shards"] == 1.2e9 and more["sample"] <= 40
    assert more["bytes"] == pytest.approx(size / COUNT * 3.6e9, rel=0.03)


def test_estimate_measures_cpu_time(bank, monkeypatch):
    """0.5 s for each look at the clock: one before, and one after each scene and the shard."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(simulate_module.time, "process_time", lambda: 0.5 * next(ticks))
    result = estimate(SCENES, bank.folder, "train", 7, 3600)
    assert result["sample"] == 9  # until 4 s are passed
    assert result["core_hours"] == pytest.approx(0.5 + 0.5 / 3, rel=1e-6)
    assert result["core_hours_95"] == 0


def test_bad_arguments_are_refused(bank, tmp_path):
    with pytest.raises(ConfigError, match="'test'"):
        simulate(SCENES, bank.folder, "test", tmp_path, 0, 3)
    with pytest.raises(ConfigError, match="sound bank"):
        simulate(SCENES, tmp_path, "train", tmp_path / "out", 0, 3)
    with pytest.raises(ConfigError, match="'wav'.*records"):
        simulate(SCENES, bank.folder, "train", tmp_path / "out", 0, 3, "wav")
