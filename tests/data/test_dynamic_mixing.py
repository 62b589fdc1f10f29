"""The response bank as a writer, and the scenes mixed from it against `render`."""

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
from jaxasa.acoustics import foa, render, rir, scenes
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.audio import FULL_SCALE
from jaxasa.data import pipeline, procedural, records, rir_bank, sounds
from jaxasa.data.dynamic_mixing import Mixed
from jaxasa.stages import runner

RANGES = config.Scenes(
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
        patch.setattr(rir_bank, "ROOMS", 2)
        yield


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        keep = ("alarm", "blast", "drum", "typing")
        patch.setattr(procedural, "CLASSES", {name: procedural.CLASSES[name] for name in keep})
        patch.setattr(procedural, "CLIPS", 1)
        folder = tmp_path_factory.mktemp("run") / "sounds"
        return sounds.build(config.Sounds("procedural"), folder, 0)


@pytest.fixture(scope="module")
def whole(bank, small_shards):
    return rir_bank.build(RANGES, bank.folder.parent / "responses", 3)


@pytest.fixture(scope="module")
def mixed(bank, whole):
    return Mixed(RANGES, bank.folder, whole.folder, 7)


def test_the_example_of_the_docstring_runs():
    done = doctest.testmod(rir_bank)
    assert done.attempted >= 6 and done.failed == 0


def files(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_a_bank_holds_the_responses_of_its_rooms(whole):
    assert (len(whole), whole.rooms, whole.places) == (20, 5, 4)
    whole.verify()
    rooms = []
    for room in range(5):
        layout, heard = whole.read(room, range(4))
        rooms.append(layout.room)
        for place, (position, response) in enumerate(zip(layout.positions, heard, strict=True)):
            rng = keys.rng(3, "bank response", room, place)
            where = (layout.room, layout.absorption, position, layout.listener)
            expected = rir.shoebox_rir(*where, rng)
            off = np.abs(response.signal - expected).max()
            assert off <= 0.51 * np.abs(expected).max() / FULL_SCALE
            distance = math.dist(position, layout.listener)
            assert 0.6 <= distance <= 4.0
            assert response.drr == rir.drr(expected, distance)
            assert response.rt60 == pytest.approx(rir.rt60(expected), nan_ok=True)
    assert len(set(rooms)) == 5
    some, (one,) = whole.read(3, [2])
    layout, heard = whole.read(3, range(4))
    assert some.positions == layout.positions[2:3]
    np.testing.assert_array_equal(one.signal, heard[2].signal)


def test_a_bank_keeps_the_walls_of_its_rooms(bank, whole, tmp_path):
    made = dataclasses.replace(
        RANGES,
        sides=("curtains", "acoustic_plaster"),
        floor=("carpet",),
        ceiling=("ceiling_tile",),
        scattering=(0.2, 0.9),
        responses=2,
    )
    found = rir_bank.build(made, tmp_path / "responses", 3)
    assert "floor" not in whole._records.manifest["scenes"]
    assert found._records.manifest["scenes"]["floor"] == ["carpet"]
    layout, heard = found.read(1, [2])
    assert np.shape(layout.absorption) == (6, 7) and 0.2 <= layout.scattering <= 0.9
    where = (layout.room, layout.absorption, layout.positions[0], layout.listener)
    rng = keys.rng(3, "bank response", 1, 2)
    expected = rir.shoebox_rir(*where, rng, scattering=layout.scattering)
    off = np.abs(heard[0].signal - expected).max()
    assert off <= 0.51 * np.abs(expected).max() / FULL_SCALE
    spec, _ = Mixed(made, bank.folder, found.folder, 7).draw(0)
    assert spec.scattering > 0 and np.shape(spec.absorption) == (6, 7)


def test_a_mixed_scene_is_the_scene_rendered(bank, mixed):
    """Against the responses before they were rounded to 16 bits."""
    counts = []
    for index in (0, 1, 5, 2**31 - 2):
        spec, heard = mixed.draw(index)
        scenes.validate(spec)
        assert len(heard) == len(spec.sources)
        audio, scene = mixed[index]
        assert audio.shape == (24_000, 4) and audio.dtype == np.int16
        exact = []
        for source, response in zip(spec.sources, heard, strict=True):
            for room in range(5):
                for place in range(4):
                    where, (stored,) = mixed._responses.read(room, [place])
                    if where.positions[0] == source.position:
                        assert where.listener == spec.listener
                        np.testing.assert_array_equal(stored.signal, response.signal)
                        rng = keys.rng(3, "bank response", room, place)
                        at = (spec.room, spec.absorption, source.position, spec.listener)
                        signal = rir.shoebox_rir(*at, rng)
                        distance = math.dist(source.position, spec.listener)
                        exact.append(render.measure(signal, distance))
        expected, described = render.mix(spec, bank.audio, exact)
        found, _ = render.mix(spec, bank.audio, heard)
        assert 10 * np.log10(((found - expected) ** 2).sum() / (expected**2).sum()) < -60
        np.testing.assert_array_equal(audio, records.to_int16(found))
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
    other = Mixed(RANGES, bank.folder, whole.folder, 8)
    assert other[3][1]["sources"] != mixed[3][1]["sources"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: mixed[i][0], range(24)))
    for i, audio in enumerate(found):
        np.testing.assert_array_equal(audio, mixed[i][0])


def test_few_rooms_give_all_bearings_and_no_scene_twice(mixed):
    specs = [mixed.draw(i)[0] for i in range(400)]
    assert len({s.room for s in specs}) == 5
    found = [s for spec in specs for s in scenes.describe(spec)["sources"]]
    counts = np.histogram([s["azimuth"] for s in found], 8, (-180, 180))[0]
    expected = len(found) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees, 0.1 %
    assert len({tuple(s.onset for s in spec.sources) for spec in specs}) == 400
    for spec in specs[:50]:
        azimuths = [s["azimuth"] for s in scenes.describe(spec)["sources"]]
        apart = [abs(foa.wrap(a - b)) for i, a in enumerate(azimuths) for b in azimuths[:i]]
        assert min(apart, default=90) >= RANGES.min_separation - 1e-6


def test_turning_listeners_are_mixed_and_moving_sources_refused(bank, whole):
    turning = Mixed(
        dataclasses.replace(RANGES, listener_turn_prob=1.0), bank.folder, whole.folder, 7
    )
    _, scene = turning[0]
    assert len(scene["yaw"]) == 15 and len(scene["sources"][0]["trajectory"]) == 15
    with pytest.raises(ConfigError, match="Scenes.moving_source_prob is 0.2.*stored responses"):
        dataclasses.replace(RANGES, moving_source_prob=0.2)
    moving = dataclasses.replace(RANGES, rir_rooms=0, moving_source_prob=0.2)
    with pytest.raises(ConfigError, match="Scenes.moving_source_prob is 0.2.*cannot be mixed"):
        Mixed(moving, bank.folder, whole.folder, 7)
    crowd = dataclasses.replace(RANGES, rir_rooms=0, sources=(1, 5))
    with pytest.raises(ConfigError, match=r"Scenes.sources is \(1, 5\).*4 places"):
        Mixed(crowd, bank.folder, whole.folder, 7)


def test_each_stage_reads_mixed_scenes_of_its_own(bank, whole, mixed):
    model = types.SimpleNamespace(spatial=types.SimpleNamespace(format="foa"))
    run = types.SimpleNamespace(scenes=RANGES, seed=7, model=model)
    source = runner._train_scenes(run, bank.folder.parent, "spatial")
    again, other = (runner._train_scenes(run, bank.folder.parent, s) for s in ("spatial", "sft"))
    assert source[9][1] == again[9][1] and source[9][1] not in (other[9][1], mixed[9][1])
    make = pipeline.Targets(bank.classes, 3, 0.1, True)
    batches = pipeline.Batches(source, make, 0, "spatial", 4, total=8)
    first, state = next(batches), batches.get_state()
    second = next(batches)
    assert first["audio"].shape == (4, 24_000, 4) and (first["present"].sum(1) >= 1).all()
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches)["audio"], second["audio"])
    stored = types.SimpleNamespace(
        **vars(run) | {"scenes": dataclasses.replace(RANGES, rir_rooms=0)}
    )
    with pytest.raises(ConfigError, match="no complete data set"):
        runner._train_scenes(stored, bank.folder.parent, "sft")


class Killed(BaseException):
    """As by a signal: nothing catches it."""


@pytest.mark.parametrize("after", [1, 9, 17, 20])
def test_a_killed_bank_goes_on_to_the_same_files(whole, tmp_path, monkeypatch, after):
    made = 0

    def response(*where, render=rir.shoebox_rir, **options):
        nonlocal made
        made += 1
        if made > after:
            raise Killed
        return render(*where, **options)

    def manifest(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rir, "response", response)
        patch.setattr(records, "write_manifest", manifest)
        with pytest.raises(Killed):
            rir_bank.build(RANGES, tmp_path, 3)
    with pytest.raises(ConfigError, match="no complete data set"):
        rir_bank.Responses(tmp_path)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.array_record")}
    assert len(kept) == (3 if after == 20 else after // 8)
    rir_bank.build(RANGES, tmp_path, 3)
    assert files(tmp_path) == files(whole.folder)
    assert all(p.stat().st_mtime_ns == time for p, time in kept.items())


def test_damaged_shards_are_made_again_and_named_when_complete(whole, tmp_path):
    contents = files(whole.folder)
    names = sorted(name for name in contents if name != records.MANIFEST)
    (tmp_path / names[0]).write_bytes(contents[names[0]][:-3000])
    (tmp_path / f".{names[1]}.99.tmp").write_bytes(b"half")
    rir_bank.build(RANGES, tmp_path, 3)
    assert files(tmp_path) == contents
    damaged = bytearray(contents[names[2]])
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / names[2]).write_bytes(bytes(damaged))
    with pytest.raises(ConfigError, match=f"{names[2]}.*checksum"):
        rir_bank.build(RANGES, tmp_path, 3).verify()
    (tmp_path / names[2]).write_bytes(contents[names[2]][:-10])
    with pytest.raises(ConfigError, match=names[2]):
        rir_bank.build(RANGES, tmp_path, 3)


def test_a_complete_bank_is_opened_and_another_refused(whole, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}
    assert len(rir_bank.build(RANGES, whole.folder, 3)) == 20
    assert {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()} == before
    for changes, seed in (({"rt60": (0.2, 0.3)}, 3), ({"responses": 6}, 3), ({}, 4)):
        with pytest.raises(ConfigError, match="other settings"):
            rir_bank.build(dataclasses.replace(RANGES, **changes), whole.folder, seed)
    name = sorted(files(whole.folder))[-1]
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="other settings"):
        rir_bank.build(RANGES, tmp_path, 4)
    # What has no part in a response may change.
    louder = dataclasses.replace(RANGES, gain=(0.0, 3.0), seconds=3.0, sources=(1, 2))
    assert rir_bank.build(louder, whole.folder, 3).key == whole.key


def test_scenes_are_no_response_bank(tmp_path):
    records.write_manifest(tmp_path, {"split": "train"}, [])
    with pytest.raises(ConfigError, match="kind is None, expected 'responses'"):
        rir_bank.Responses(tmp_path)
