# SPDX-License-Identifier: Apache-2.0
"""The RIR bank, and the scenes mixed from it compared with `render`."""

import dataclasses
import doctest
import math
import pickle
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxasa import config
from jaxasa.acoustics import foa, measure, render, scenes
from jaxasa.acoustics.rir import shoebox_rir
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.audio import FULL_SCALE
from jaxasa.core.workdir import WorkFolder
from jaxasa.data import pipeline, procedural, records, rir_bank, sounds, transforms
from jaxasa.data.dynamic_mixing import DynamicMixing
from jaxasa.stages import runner

SCENES = config.Scenes(
    train=1,
    dev=1,
    benchmark=1,
    seconds=1.5,
    rt60=(0.15, 0.3),
    rir_rooms=5,
    rir_positions_per_room=4,
)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rir_bank, "ROOMS_PER_SHARD", 2)
        yield


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        keep = ("alarm", "blast", "drum", "typing")
        patch.setattr(procedural, "CLASSES", {name: procedural.CLASSES[name] for name in keep})
        patch.setattr(procedural, "CLIPS_PER_RECORDING", 1)
        folder = tmp_path_factory.mktemp("run") / "sounds"
        return sounds.build(config.Sounds("procedural"), folder, 0)


@pytest.fixture(scope="module")
def whole(bank, small_shards):
    return rir_bank.build(SCENES, bank.folder.parent / "rirs", 3)


@pytest.fixture(scope="module")
def mixed(bank, whole):
    return DynamicMixing(SCENES, bank.folder, whole.folder, 7)


def test_docstring_example():
    done = doctest.testmod(rir_bank)
    assert done.attempted >= 6 and done.failed == 0


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_a_bank_holds_the_rirs_of_its_rooms(whole):
    assert (len(whole), whole.num_rooms, whole.positions_per_room) == (20, 5, 4)
    whole.verify()
    rooms = []
    for room in range(5):
        layout, rirs = whole.read(room, range(4))
        rooms.append(layout.room)
        for k, (position, measured) in enumerate(zip(layout.positions, rirs, strict=True)):
            rng = keys.rng(3, "bank response", room, k)
            expected = shoebox_rir(layout.shoebox(), position, layout.listener, rng)
            error = np.abs(measured.rir - expected).max()
            assert error <= 0.51 * np.abs(expected).max() / FULL_SCALE
            distance = math.dist(position, layout.listener)
            assert 0.6 <= distance <= 4.0
            assert measured.drr == measure.drr(expected, distance)
            assert measured.rt60 == pytest.approx(measure.rt60(expected), nan_ok=True)
    assert len(set(rooms)) == 5
    some, (one,) = whole.read(3, [2])
    layout, rirs = whole.read(3, range(4))
    assert some.positions == layout.positions[2:3]
    np.testing.assert_array_equal(one.rir, rirs[2].rir)


def test_a_bank_keeps_the_walls_of_its_rooms(bank, whole, tmp_path):
    scenes_config = dataclasses.replace(
        SCENES,
        wall_materials=("curtains", "acoustic_plaster"),
        floor_materials=("carpet",),
        ceiling_materials=("ceiling_tile",),
        scattering=(0.2, 0.9),
        rir_rooms=2,
    )
    walls = rir_bank.build(scenes_config, tmp_path / "rirs", 3)
    assert not whole._records.manifest["scenes"]["floor_materials"]
    assert walls._records.manifest["scenes"]["floor_materials"] == ["carpet"]
    layout, (measured,) = walls.read(1, [2])
    assert np.shape(layout.absorption) == (6, 7) and 0.2 <= layout.scattering <= 0.9
    rng = keys.rng(3, "bank response", 1, 2)
    expected = shoebox_rir(layout.shoebox(), layout.positions[0], layout.listener, rng)
    error = np.abs(measured.rir - expected).max()
    assert error <= 0.51 * np.abs(expected).max() / FULL_SCALE
    spec, _ = DynamicMixing(scenes_config, bank.folder, walls.folder, 7).sample_scene(0)
    assert spec.scattering > 0 and np.shape(spec.absorption) == (6, 7)


def test_a_mixed_scene_is_the_scene_rendered(bank, mixed):
    """Compared with the RIRs before they were rounded to 16 bits."""
    counts = []
    for index in (0, 1, 5, 2**31 - 2):
        spec, rirs = mixed.sample_scene(index)
        spec.validate()
        assert len(rirs) == len(spec.sources)
        audio, scene = mixed[index]
        assert audio.shape == (24_000, 4) and audio.dtype == np.int16
        exact = []
        for source, measured in zip(spec.sources, rirs, strict=True):
            for room in range(5):
                for k in range(4):
                    layout, (stored,) = mixed._rirs.read(room, [k])
                    if layout.positions[0] == source.position:
                        assert layout.listener == spec.listener
                        np.testing.assert_array_equal(stored.rir, measured.rir)
                        rng = keys.rng(3, "bank response", room, k)
                        signal = shoebox_rir(spec.shoebox(), source.position, spec.listener, rng)
                        distance = math.dist(source.position, spec.listener)
                        exact.append(render.measure_rir(signal, distance))
        expected, described = render.render_with_rirs(spec, bank.audio, exact)
        rendered, _ = render.render_with_rirs(spec, bank.audio, rirs)
        assert 10 * np.log10(((rendered - expected) ** 2).sum() / (expected**2).sum()) < -60
        np.testing.assert_array_equal(audio, records.to_int16(rendered))
        for a, b in zip(scene["sources"], described["sources"], strict=True):
            assert a == pytest.approx(b)
        assert scene["rt60"] == pytest.approx(described["rt60"])
        assert scene["id"] == f"train/{index:06d}"
        counts.append(len(spec.sources))
    assert len(set(counts)) > 1


def test_scenes_are_a_function_of_seed_and_index(bank, whole, mixed):
    again = pickle.loads(pickle.dumps(mixed))
    assert len(again) == 2**31 - 1
    for index in (3, 40):
        np.testing.assert_array_equal(mixed[index][0], again[index][0])
        assert mixed[index][1] == again[index][1]
    other = DynamicMixing(SCENES, bank.folder, whole.folder, 8)
    assert other[3][1]["sources"] != mixed[3][1]["sources"]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda i: mixed[i][0], range(24)))
    for i, audio in enumerate(threaded):
        np.testing.assert_array_equal(audio, mixed[i][0])


def test_few_rooms_give_all_azimuths_and_no_scene_twice(mixed):
    specs = [mixed.sample_scene(i)[0] for i in range(400)]
    assert len({s.room for s in specs}) == 5
    sources = [s for spec in specs for s in scenes.describe(spec)["sources"]]
    counts = np.histogram([s["azimuth"] for s in sources], 8, (-180, 180))[0]
    expected = len(sources) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees, 0.1 %
    assert len({tuple(s.onset for s in spec.sources) for spec in specs}) == 400
    for spec in specs[:50]:
        azimuths = [s["azimuth"] for s in scenes.describe(spec)["sources"]]
        pairs = [(a, b) for i, a in enumerate(azimuths) for b in azimuths[:i]]
        separations = [abs(foa.wrap_azimuth(a - b)) for a, b in pairs]
        assert min(separations, default=90) >= SCENES.min_separation - 1e-6


def test_rotating_listeners_are_mixed_and_moving_sources_refused(bank, whole):
    rotating = dataclasses.replace(SCENES, listener_turn_prob=1.0)
    _, scene = DynamicMixing(rotating, bank.folder, whole.folder, 7)[0]
    assert len(scene["yaw"]) == 15 and len(scene["sources"][0]["doa_trajectory"]) == 15
    with pytest.raises(ConfigError, match="Scenes.moving_source_prob is 0.2.*stored rooms"):
        dataclasses.replace(SCENES, moving_source_prob=0.2)
    moving = dataclasses.replace(SCENES, rir_rooms=0, moving_source_prob=0.2)
    with pytest.raises(ConfigError, match="Scenes.moving_source_prob is 0.2.*cannot be mixed"):
        DynamicMixing(moving, bank.folder, whole.folder, 7)
    crowd = dataclasses.replace(SCENES, rir_rooms=0, sources=(1, 5))
    with pytest.raises(ConfigError, match=r"Scenes.sources is \(1, 5\).*4 positions"):
        DynamicMixing(crowd, bank.folder, whole.folder, 7)


def test_each_stage_reads_other_scenes(bank, whole, mixed):
    model = types.SimpleNamespace(spatial=types.SimpleNamespace(format="foa"))
    run = types.SimpleNamespace(scenes=SCENES, seed=7, model=model)
    work = WorkFolder(bank.folder.parent)
    source = runner.training_scenes(run, "spatial", work)
    again, other = (runner.training_scenes(run, stage, work) for stage in ("spatial", "sft"))
    assert source[9][1] == again[9][1] and source[9][1] not in (other[9][1], mixed[9][1])
    make = transforms.SpatialExamples(bank.classes, 3, 0.1, True)
    batches = pipeline.Batches(source, make, 0, "spatial", 4, total_examples=8)
    first, state = next(batches), batches.get_state()
    second = next(batches)
    assert first["audio"].shape == (4, 24_000, 4) and (first["present"].sum(1) >= 1).all()
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches)["audio"], second["audio"])
    stored = types.SimpleNamespace(
        **vars(run) | {"scenes": dataclasses.replace(SCENES, rir_rooms=0)}
    )
    with pytest.raises(ConfigError, match="no complete data set"):
        runner.training_scenes(stored, "sft", work)


class Killed(BaseException):
    """Like a signal: nothing catches it."""


@pytest.mark.parametrize("after", [1, 9, 17, 20])
def test_a_killed_build_resumes_to_the_same_files(whole, tmp_path, monkeypatch, after):
    count = 0

    def killed_rir(*arguments):
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        return shoebox_rir(*arguments)

    def write_manifest(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rir_bank, "shoebox_rir", killed_rir)
        patch.setattr(records, "write_manifest", write_manifest)
        with pytest.raises(Killed):
            rir_bank.build(SCENES, tmp_path, 3)
    with pytest.raises(ConfigError, match="no complete data set"):
        rir_bank.RirBank(tmp_path)
    shards = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.array_record")}
    assert len(shards) == (3 if after == 20 else after // 8)
    rir_bank.build(SCENES, tmp_path, 3)
    assert files(tmp_path) == files(whole.folder)
    assert all(p.stat().st_mtime_ns == time for p, time in shards.items())


def test_damaged_shards_are_built_again_or_reported(whole, tmp_path):
    contents = files(whole.folder)
    names = sorted(name for name in contents if name != records.MANIFEST)
    (tmp_path / names[0]).write_bytes(contents[names[0]][:-3000])
    (tmp_path / f".{names[1]}.99.tmp").write_bytes(b"half")
    rir_bank.build(SCENES, tmp_path, 3)
    assert files(tmp_path) == contents
    damaged = bytearray(contents[names[2]])
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / names[2]).write_bytes(bytes(damaged))
    with pytest.raises(ConfigError, match=f"{names[2]}.*checksum"):
        rir_bank.build(SCENES, tmp_path, 3).verify()
    (tmp_path / names[2]).write_bytes(contents[names[2]][:-10])
    with pytest.raises(ConfigError, match=names[2]):
        rir_bank.build(SCENES, tmp_path, 3)


def test_a_complete_bank_is_opened_and_another_refused(whole, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}
    assert len(rir_bank.build(SCENES, whole.folder, 3)) == 20
    assert {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()} == before
    for changes, seed in (({"rt60": (0.2, 0.3)}, 3), ({"rir_rooms": 6}, 3), ({}, 4)):
        with pytest.raises(ConfigError, match="other settings"):
            rir_bank.build(dataclasses.replace(SCENES, **changes), whole.folder, seed)
    name = sorted(files(whole.folder))[-1]
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="other settings"):
        rir_bank.build(SCENES, tmp_path, 4)
    # Settings that do not affect RIRs may change.
    louder = dataclasses.replace(SCENES, gain=(0.0, 3.0), seconds=3.0, sources=(1, 2))
    assert rir_bank.build(louder, whole.folder, 3).key == whole.key


def test_scenes_are_not_an_rir_bank(tmp_path):
    records.write_manifest(tmp_path, {"split": "train"}, [])
    with pytest.raises(ConfigError, match="kind is None, expected 'rirs'"):
        rir_bank.RirBank(tmp_path)
