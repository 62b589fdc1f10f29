import json

import numpy as np
import pytest

from jaxasa.bench import baselines, slots, suite
from jaxasa.config import ConfigError


class Item:
    def __init__(self, file, scene):
        self.file, self.scene = file, scene


def source(name, azimuth, **more):
    made = {"class": name, "azimuth": azimuth, "elevation": 0.0, "distance": 2.0}
    return made | {"onset": 0.0, "offset": 2.0} | more


@pytest.fixture
def columns(tmp_path):
    scenes = {
        "a.flac": [source("dog", 10.0), source("bird", 90.0, onset=1.0, offset=3.0)],
        "b.flac": [source("dog", 0.0), source("dog", 90.0), source("bird", 0.0, trajectory=[])],
        "c.flac": [source("dog", 30.0)],
    }
    said = {
        "audio/a.flac": [source("dog", 170.0), source("cat", 90.0, distance=4.0)],
        "audio/b.flac": [source("dog", 0.0), source("bird", 0.0)],
    }
    items = [
        Item(tmp_path / "audio" / name, {"rt60": 0.5, "sources": found})
        for name, found in scenes.items()
    ]
    return slots.beside(items * 2, {name: {"sources": found} for name, found in said.items()})


def test_a_source_is_compared_with_the_slot_of_its_class(columns):
    """Not with the nearest; neither what moves, nor a class that is there twice, is counted."""
    np.testing.assert_allclose(columns["azimuth"], [10, 90])
    np.testing.assert_allclose(columns["found_azimuth"], [170, np.nan])
    np.testing.assert_allclose(columns["error"], [160, np.nan])
    np.testing.assert_allclose(columns["overlap"], [0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(columns["rt60"], 0.5)
    assert np.isnan(columns["snr"]).all()
    found = slots.summary(columns)
    assert found["named"]["accuracy"] == 0.5 and found["ratio"] == 1.0
    # 170 is 10 mirrored front to back.
    assert found["median"] == pytest.approx(160) and found["front_back"] == 1.0


def test_nothing_named_has_no_summary():
    assert slots.summary(slots.beside([], {})) is None


def test_bins_hold_equally_many_and_ties_stay_together():
    values = np.repeat([0.0, 1.0, 2.0, 3.0], [60, 20, 10, 10])
    found = slots.bins(values, 10 * values + 1, "x")
    assert [(at, middle) for at, middle, *_ in found] == [(0, 1), (1, 11), (2.5, 26)]
    assert all(low <= middle <= high for _, middle, low, high in found)
    assert slots.bins(np.full(9, np.nan), np.ones(9), "x") == []
    assert len(slots.bins(np.ones(9), np.ones(9), "x")) == 1


def test_the_baseline_leaves_its_descriptions(small, tmp_path):
    sounding = {i.audio().tobytes(): i.scene for i in small.items}
    path = tmp_path / slots.FILE
    classes = suite.manifest(small.folder)["classes"]
    describe = lambda audio: [sounding[a.tobytes()] for a in audio]  # noqa: E731
    answers = baselines.reader(describe, classes, "slots", path)(small.items)
    assert all(answers[i.id] == i.answer for i in small.items)
    found = slots.read(path)
    assert found == json.loads(json.dumps({suite.name_of(i.file): i.scene for i in small.items}))
    columns = slots.beside(small.items, found)
    np.testing.assert_allclose(columns["error"], 0, atol=1e-4)
    np.testing.assert_allclose(columns["ratio"], 1)
    assert slots.read(tmp_path / "none.jsonl") == {}
    path.write_text('{"scene": {}}\n')
    with pytest.raises(ConfigError, match=r"scenes.jsonl:1 is \['file_name'\]"):
        slots.read(path)
