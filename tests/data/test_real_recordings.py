# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
import soundfile

from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data import import_scenes, records, transforms
from jaxasa.data.real_recordings import RealRecordings

CLASSES = ("bell", "speech")
# frame, class, source, azimuth, elevation, distance in cm; class 1 is of no bank of ours
ROWS = "".join(f"{f},0,0,30,10,200\n{f},1,0,-90,0,150\n" for f in range(3, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("starss")
    (root / "foa_dev").mkdir()
    (root / "metadata_dev").mkdir()
    noise = np.random.default_rng(0).normal(size=(16_000, 4)) * 0.05
    soundfile.write(root / "foa_dev" / "a.wav", noise, 16_000)
    (root / "metadata_dev" / "a.csv").write_text(ROWS)
    import_scenes.convert("dcase", root, root / "out", seconds=1.0, classes=["speech", "drill"])
    return root / "out"


def test_missing_labels_are_unknown(folder, capsys):
    data = RealRecordings(folder, 1.5, CLASSES)
    assert "2 events, 1 of classes of the sound bank; of other classes: drill" in (
        capsys.readouterr().err
    )
    audio, scene = data[0]
    assert audio.shape == (24_000, 4) and (audio[16_000:] == 0).all() and len(data) == 1
    make = transforms.SpatialExamples(CLASSES, 3, 0.0, augment=False)
    target = make((audio, scene), keys.rng(0, "t", 0), 1.0)
    order = np.argsort(target["label"][:2])
    assert target["label"][:2][order].tolist() == [-1, 1] and target["present"].tolist() == [
        1,
        1,
        0,
    ]
    np.testing.assert_allclose(target["span"][:2], [[0.3, 0.8]] * 2, atol=1e-6)
    right, left = target["direction"][:2][order]
    np.testing.assert_allclose(right, [0, -1, 0], atol=1e-6)
    up, across = np.sin(np.radians(10)), np.cos(np.radians(10))
    np.testing.assert_allclose(left, [across * 0.75**0.5, across * 0.5, up], atol=1e-6)
    np.testing.assert_allclose(np.exp(target["log_distance"][:2][order]), [1.5, 2.0], rtol=1e-3)
    assert np.isnan(target["room"]).all()


def test_a_damaged_window_is_skipped_until_it_is_read(folder, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (shard,) = again.glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data[data.find(records.Records(folder)[0][0][:300].tobytes()) + 200] ^= 1
    shard.write_bytes(data)
    data = RealRecordings(again, 1.5, CLASSES)
    assert len(data) == 1 and "1 windows, 0 events" in capsys.readouterr().err
    with pytest.raises(records.DamagedRecord, match="record 0 is damaged"):
        data[0]


def test_unsuitable_folders_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"a window of 1 s, expected at most 0.5 s \(`jaxasa"):
        RealRecordings(folder, 0.5, CLASSES)
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"layout": "so", "shards": []}))
    with pytest.raises(
        ConfigError, match="layout 'so', expected a folder of `jaxasa import dcase`"
    ):
        RealRecordings(tmp_path, 2.0, CLASSES)
