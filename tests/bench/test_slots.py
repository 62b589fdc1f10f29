# SPDX-License-Identifier: Apache-2.0
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
        "b.flac": [source("dog", 0.0), source("dog", 90.0), source("bird", 0.0, doa_trajectory=[])],
        "c.flac": [source("dog", 30.0)],
    }
    slots_of = {
        "audio/a.flac": [source("dog", 170.0), source("cat", 90.0, distance=4.0)],
        "audio/b.flac": [source("dog", 0.0), source("bird", 0.0)],
    }
    items = [
        Item(tmp_path / "audio" / name, {"rt60": 0.5, "sources": sources})
        for name, sources in scenes.items()
    ]
    descriptions = {name: {"sources": sources} for name, sources in slots_of.items()}
    return slots.match_sources(items * 2, descriptions)


def test_sources_are_matched_by_class(columns):
    """Not with the nearest. Moving sources, and classes that occur twice, are left out."""
    np.testing.assert_allclose(columns["azimuth"], [10, 90])
    np.testing.assert_allclose(columns["slot_azimuth"], [170, np.nan])
    np.testing.assert_allclose(columns["error"], [160, np.nan])
    np.testing.assert_allclose(columns["overlap"], [0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(columns["rt60"], 0.5)
    assert np.isnan(columns["snr"]).all()
    summary = slots.error_summary(columns)
    assert summary["has_slot"]["accuracy"] == 0.5 and summary["distance_factor"] == 1.0
    # 170 is 10 with front and back exchanged.
    assert summary["median"] == pytest.approx(160) and summary["frac_front_back"] == 1.0
    assert summary["frac_over_20_deg"] == 1.0


def test_summary_is_none_without_a_match():
    assert slots.error_summary(slots.match_sources([], {})) is None


def test_bins_have_equal_counts_and_keep_ties_together():
    values = np.repeat([0.0, 1.0, 2.0, 3.0], [60, 20, 10, 10])
    bins = slots.error_by_bin(values, 10 * values + 1, "x")
    assert [(value, median) for value, median, *_ in bins] == [(0, 1), (1, 11), (2.5, 26)]
    assert all(low <= median <= high for _, median, low, high in bins)
    assert slots.error_by_bin(np.full(9, np.nan), np.ones(9), "x") == []
    assert len(slots.error_by_bin(np.ones(9), np.ones(9), "x")) == 1


def test_slots_baseline_writes_its_descriptions(small, tmp_path):
    by_audio = {i.audio().tobytes(): i.scene for i in small.items}
    path = tmp_path / "predictions" / slots.FILE
    classes = suite.manifest(small.folder)["classes"]
    describe = lambda audio: [by_audio[a.tobytes()] for a in audio]  # noqa: E731
    answers = baselines.description_baseline(describe, classes, "slots", path)(small.items)
    assert all(answers[i.id] == i.answer for i in small.items)
    descriptions = slots.read_descriptions(path)
    assert descriptions == json.loads(
        json.dumps({suite.name_of(i.file): i.scene for i in small.items})
    )
    columns = slots.match_sources(small.items, descriptions)
    np.testing.assert_allclose(columns["error"], 0, atol=1e-4)
    np.testing.assert_allclose(columns["ratio"], 1)
    assert slots.read_descriptions(tmp_path / "none.jsonl") == {}
    path.write_text('{"scene": {}}\n')
    with pytest.raises(ConfigError, match=r"scenes.jsonl:1 is \['file_name'\]"):
        slots.read_descriptions(path)
