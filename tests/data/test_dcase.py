# SPDX-License-Identifier: Apache-2.0
import csv
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from jaxasa import config
from jaxasa.acoustics import foa, scenes
from jaxasa.config import ConfigError
from jaxasa.data import dcase, dcase_csv, records
from jaxasa.data.dcase_csv import Event
from jaxasa.data.simulate import simulate

SCENES = config.Scenes(
    train=1, dev=1, benchmark=1, seconds=2.0, rt60=(0.15, 0.2), scenes_per_shard=3, workers=1
)
CLASSES = ("bell", "dog", "rain")

angle = st.integers(-179, 180), st.integers(-90, 90)
cell = st.integers(0, 600), st.integers(0, 2), st.integers(0, 3), *angle
with_distance = st.builds(Event, *cell, st.integers(1, 2000).map(lambda cm: cm / 100))
without_distance = st.builds(Event, *cell, st.none())


def lists(max_size):
    """Events of one file: all of them have a distance, or none has."""
    return st.lists(with_distance, max_size=max_size) | st.lists(
        without_distance, max_size=max_size
    )


@pytest.fixture(scope="module")
def both(bank, tmp_path_factory):
    """The same scenes as records, and in the DCASE layout."""
    sets = {}
    for name in ("records", "dcase"):
        folder = tmp_path_factory.mktemp(name)
        sets[name] = simulate(SCENES, bank.folder, "dev", folder, 5, 7, name)
    return sets["records"], sets["dcase"]


def test_layout_follows_dcase(both):
    folder = both[0].folder, both[1][0].audio.parents[1]
    names = sorted(p.relative_to(folder[1]).as_posix() for p in folder[1].rglob("*.wav"))
    assert names == [f"foa/fold4_room{k:06d}_mix001.wav" for k in range(7)]
    for recording in both[1]:
        info = soundfile.info(recording.audio)
        assert (info.samplerate, info.channels, info.frames) == (24_000, 4, 48_000)
        assert info.subtype == "PCM_16"
        with open(recording.metadata, newline="") as lines:
            read = [[int(cell) for cell in line] for line in csv.reader(lines)]
        assert all(len(line) == 6 and 0 <= line[0] < 20 for line in read)
        assert all(-180 < line[3] <= 180 and -90 <= line[4] <= 90 for line in read)


def test_sounds_and_labels_are_those_of_the_records(both):
    data, recordings = both
    for (audio, scene), recording in zip(data, recordings, strict=True):
        wave, _ = soundfile.read(recording.audio)
        spectra = [np.fft.rfft(x, axis=0) for x in (wave, records.to_float(audio))]
        # 2 s are 0.5 Hz a bin at both rates; 16 kHz has less in it.
        low = slice(0, 14_000)
        scaled = spectra[0][low] * 32_000 / 48_000
        error = np.linalg.norm(scaled - spectra[1][low]) / np.linalg.norm(spectra[1][low])
        assert error < 0.02
        rows = dcase_csv.read(recording.metadata, "cm")
        for number, source in enumerate(scene["sources"]):
            mine = [r for r in rows if r.source == number]
            assert {data.manifest["classes"][r.label] for r in mine} == {source["class"]}
            assert abs(mine[0].frame * 0.1 - source["onset"]) <= 0.0501
            assert abs((mine[-1].frame + 1) * 0.1 - source["offset"]) <= 0.0501
            assert [r.frame for r in mine] == list(range(mine[0].frame, mine[-1].frame + 1))
            assert abs(foa.wrap_azimuth(mine[0].azimuth - source["azimuth"])) <= 0.5
            assert abs(mine[0].elevation - source["elevation"]) <= 0.5
            assert abs(mine[0].distance - source["distance"]) <= 0.005001


def test_interrupted_sets_are_completed_to_the_same_files(bank, both, tmp_path):
    folder = both[1][0].audio.parents[1]
    whole = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name, content in whole.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "manifest.json").unlink()
    shards = sorted(tmp_path.glob("*.shard.json"))
    shards[0].unlink()
    (tmp_path / "foa/fold4_room000004_mix001.wav").write_bytes(b"half")
    (tmp_path / "metadata/fold4_room000006_mix001.csv").unlink()
    (tmp_path / "foa/.fold4_room000001_mix001.wav.1.tmp").write_bytes(b"half")
    with pytest.raises(ConfigError, match="no complete data set"):
        dcase.open_complete(tmp_path)
    simulate(SCENES, bank.folder, "dev", tmp_path, 5, 7, "dcase")
    contents = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert contents == whole
    next(tmp_path.rglob("*.csv")).unlink()
    with pytest.raises(ConfigError, match="expected 7 recordings"):
        dcase.open_complete(tmp_path)


def test_shards_list_the_hashes_of_files(both):
    folder = both[1][0].audio.parents[1]
    manifest = records.read_manifest(folder)
    sizes = 0
    for shard in manifest["shards"]:
        listed = json.loads((folder / shard["file"]).read_text())
        sizes += shard["bytes"]
        assert listed["count"] == shard["count"] == len(listed["files"]) / 2
    files = [*folder.rglob("*.wav"), *folder.rglob("*.csv")]
    assert sum(p.stat().st_size for p in files) == sizes and len(files) == 14


def test_moving_sources_have_a_position_in_each_frame():
    path = [[float(170 + 4 * k), 10.0 - k, 1.0 + 0.1 * k] for k in range(20)]
    source = {
        "class": "dog", "azimuth": 170.0, "elevation": 10.0, "distance": 1.0,
        "onset": 0.52, "offset": 1.38, "doa_trajectory": path,
    }  # fmt: skip
    rows = dcase.events_of_scene({"seconds": 2.0, "sources": [source]}, CLASSES)
    assert [r.frame for r in rows] == list(range(5, 14)) and {r.label for r in rows} == {1}
    assert [r.azimuth for r in rows[:3]] == [-170, -166, -162]
    assert rows[0][3:] == (-170, 5, 1.5)
    (event,) = dcase.sources_of_events(rows, CLASSES, 2.0)
    assert event["doa_trajectory"][5:14] == [list(r[3:]) for r in rows]
    assert event["doa_trajectory"][:5] == [event["doa_trajectory"][5]] * 5
    assert (
        len(event["doa_trajectory"]) == 20
        and event["doa_trajectory"][-1] == event["doa_trajectory"][13]
    )
    turned = scenes.rotate_scene({"sources": [event]}, 30)["sources"][0]
    assert turned["azimuth"] == foa.wrap_azimuth(event["azimuth"] + 30)


def test_a_very_short_source_has_one_frame():
    source = {
        "class": "bell", "azimuth": 0, "elevation": 0, "distance": 1,
        "onset": 1.98, "offset": 2.0,
    }  # fmt: skip
    assert [
        r.frame for r in dcase.events_of_scene({"seconds": 2.0, "sources": [source]}, CLASSES)
    ] == [19]


@given(lists(40))
def test_events_cover_exactly_the_frames_of_the_rows(rows):
    events = dcase.sources_of_events(sorted(rows, key=lambda r: r[:5]), CLASSES, 61.0)
    covered = [
        (e["class"], f)
        for e in events
        for f in range(round(e["onset"] * 10), round(e["offset"] * 10))
    ]
    assert set(covered) == {(CLASSES[r.label], r.frame) for r in rows}
    assert [e["onset"] for e in events] == sorted(e["onset"] for e in events)


def test_headers_and_older_columns_are_read_and_bad_lines_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("frame,class,source,azimuth,elevation\n3,1,0,-90,12\n4,1,0,-90,12\n")
    (event,) = dcase.sources_of_events(dcase_csv.read(path, "cm"), CLASSES, 1.0)
    assert event == {
        "class": "dog", "azimuth": -90.0, "elevation": 12.0, "distance": None,
        "onset": 0.3, "offset": 0.5,
    }  # fmt: skip
    for bad in ("1,2,3\n", "1,0,0,x,0\n", "-1,0,0,0,0\n", "1,0,0,0,95\n", "1,0,0,0,0,9\n"):
        path.write_text("0,0,0,0,0\n" + bad)
        with pytest.raises(ConfigError, match="a.csv:2"):
            dcase_csv.read(path, "cm")
    with pytest.raises(ConfigError, match="class is 3"):
        dcase.sources_of_events([Event(0, 3, 0, 0, 0, 1)], CLASSES, 1.0)
    with pytest.raises(ConfigError, match="distance in frame 7 is 0.0, expected more than 0"):
        dcase.sources_of_events([Event(7, 0, 0, 0, 0, 0.0)], CLASSES, 1.0)
    with pytest.raises(ConfigError, match="none.csv"):
        dcase_csv.read(tmp_path / "none.csv")


def test_published_folders_are_listed_with_their_metadata(tmp_path):
    for part in ("dev-train-sony/fold3_room1_mix001", "dev-test-tau/fold4_room2_mix001"):
        for kind, end in (("foa", "wav"), ("metadata", "csv")):
            path = tmp_path / f"{kind}_dev" / f"{part}.{end}"
            path.parent.mkdir(parents=True)
            path.write_text("0,0,0,0,0\n")
    (tmp_path / "foa_dev/dev-test-tau/extra.wav").write_text("")
    recordings = dcase.list_recordings(tmp_path)
    assert [r.name for r in recordings] == [
        "dev-test-tau/extra",
        "dev-test-tau/fold4_room2_mix001",
        "dev-train-sony/fold3_room1_mix001",
    ]
    assert recordings[0].metadata is None
    assert recordings[2].metadata == tmp_path / "metadata_dev/dev-train-sony/fold3_room1_mix001.csv"
    with pytest.raises(ConfigError, match="foa_dev"):
        dcase.list_recordings(tmp_path / "foa_dev")
    assert dcase.class_names(tmp_path) == dcase.STARSS23 and len(dcase.STARSS23) == 13
