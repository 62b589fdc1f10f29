# SPDX-License-Identifier: Apache-2.0
import pickle
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
import pytest

from jaxasa.config import ConfigError
from jaxasa.data import records
from jaxasa.data.records import Records


def audio(k, samples=200):
    return np.random.default_rng(k).integers(-32767, 32768, (samples, 4)).astype(np.int16)


@pytest.fixture
def folder(tmp_path):
    entries = [
        records.write_shard(
            tmp_path / f"s{shard}.array_record",
            [(audio(k, 200 + k), {"id": k, "name": "é"}) for k in indices],
        )
        for shard, indices in enumerate((range(4), range(4, 7)))
    ]
    records.write_manifest(tmp_path, {"seed": 5}, entries)
    return tmp_path


def test_records_are_read_as_written(folder):
    data = Records(folder)
    assert len(data) == 7 and data.manifest["seed"] == 5 and data.manifest["count"] == 7
    for k in (6, 0, 3, 4, 1):
        samples, meta = data[np.int64(k)]
        np.testing.assert_array_equal(samples, audio(k, 200 + k))
        assert samples.dtype == np.int16 and meta == {"id": k, "name": "é"}
    for k in (-1, 7):
        with pytest.raises(IndexError):
            data[k]
    data.verify()


def test_record_layout_is_as_documented():
    record = records.encode_record(np.array([[1, -2, 3, 256]], np.int16), {"a": 1})
    assert record[:16] == b"JXA1" + bytes([8, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0])
    assert record[16:24] == b'{"a": 1}' and record[24:] == b"\x01\0\xfe\xff\x03\0\0\x01"
    for broken in (b"", b"JXA2" + record[4:], record[:-1], record + b"\0"):
        with pytest.raises(ValueError):
            records.decode_record(broken)


def test_shards_are_uncompressed_in_groups_of_one(folder):
    options = Records(folder)._reader(0).writer_options_string()
    assert "group_size:1" in options and "uncompressed" in options


def test_int16_full_scale_is_32767():
    x = np.array([[0.0, 1.0, -1.0, 0.5]], np.float32)
    steps = records.to_int16(x)
    assert steps.tolist() == [[0, 32767, -32767, 16384]]
    assert np.abs(records.to_float(steps) - x).max() <= 0.5001 / 32767
    for bad in (np.nan, 1.01, np.inf):
        with pytest.raises(ValueError):
            records.to_int16(np.array([[bad]]))


def test_records_pickle_small_and_are_thread_safe(folder):
    data = Records(folder)
    data[0]
    packed = pickle.dumps(data)
    assert len(packed) < 500
    again = pickle.loads(packed)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda k: again[k % 7][1]["id"], range(200)))
    assert got == [k % 7 for k in range(200)]


def test_grain_reads_records(folder):
    source = grain.MapDataset.source(Records(folder)).shuffle(seed=1).map(lambda r: r[1]["id"])
    assert sorted(source) == list(range(7))


def test_without_manifest_a_set_is_not_complete(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="no complete data set"):
        Records(folder)


def test_truncated_missing_and_changed_shards_are_reported(folder):
    path = folder / "s1.array_record"
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    path.write_bytes(altered)
    with pytest.raises(ConfigError, match="s1.array_record.*checksum"):
        Records(folder).verify()
    path.write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match="s1.array_record has .* bytes"):
        Records(folder)
    path.unlink()
    with pytest.raises(ConfigError, match="s1.array_record"):
        Records(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="manifest.json"):
        Records(folder)


def test_read_entry_accepts_complete_shards_only(folder):
    path = folder / "s0.array_record"
    assert records.read_entry(path, 4) == Records(folder).manifest["shards"][0]
    assert records.read_entry(path, 5) is None
    assert records.read_entry(folder / "none", 4) is None
    path.write_bytes(path.read_bytes()[:-1000])
    assert records.read_entry(path, 4) is None


def test_a_shard_appears_only_when_complete(tmp_path):
    def fails():
        yield audio(0), {}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        records.write_shard(tmp_path / "a.array_record", fails())
    assert not (tmp_path / "a.array_record").exists()


def test_audio_of_another_type_is_refused():
    with pytest.raises(ValueError, match="float32"):
        records.encode_record(np.zeros((2, 4), np.float32), {})
