# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from jaxasa.config import ConfigError
from jaxasa.data import pipeline, records


def equal(a, b):
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def read(batches, count):
    return [next(batches) for _ in range(count)]


def batches_of(source, make_example, seed, **options):
    options = {"total_examples": 160} | options
    return pipeline.Batches(source, make_example, seed, "t", 8, **options)


def test_batches_are_endless_and_shuffled_anew_in_each_epoch(audio_scenes, spatial_examples):
    batches = read(batches_of(audio_scenes, spatial_examples(augment=True), 0), 6)
    first, second = (np.concatenate([b["audio"] for b in batches[i : i + 3]]) for i in (0, 3))
    rows = lambda x: sorted(row.tobytes() for row in x)  # noqa: E731
    assert rows(first) == rows(second) == rows([audio for audio, _ in audio_scenes])
    assert not np.array_equal(first, second)
    yaws = np.concatenate([b["yaw"] for b in batches])
    assert len(np.unique(yaws)) == 48
    again = read(batches_of(audio_scenes, spatial_examples(augment=True), 0), 6)
    assert all(equal(a, b) for a, b in zip(batches, again, strict=True))
    arguments = (audio_scenes, spatial_examples(augment=True), 0, "u", 8)
    other = next(pipeline.Batches(*arguments, total_examples=48))
    assert not np.array_equal(other["yaw"], batches[0]["yaw"])


def test_two_processes_together_read_what_one_reads(audio_scenes, qa_examples, monkeypatch):
    batches = read(batches_of(audio_scenes, qa_examples(), 5), 5)
    monkeypatch.setattr(pipeline.jax, "process_count", lambda: 2)
    parts = []
    for index in range(2):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda index=index: index)
        parts.append(read(batches_of(audio_scenes, qa_examples(), 5), 5))
    for batch, *halves in zip(batches, *parts, strict=True):
        for name in batch:
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(joined, batch[name], err_msg=name)
    with pytest.raises(ConfigError, match="batch_size is 7, expected a multiple of 2"):
        pipeline.Batches(audio_scenes, qa_examples(), 5, "t", 7, total_examples=48)


def test_batches_resume_from_their_state(audio_scenes, qa_examples):
    batches = batches_of(audio_scenes, qa_examples(), 1)
    read(batches, 4)
    state = json.loads(json.dumps(batches.get_state()))
    expected = read(batches, 3)
    resumed = batches_of(audio_scenes, qa_examples(), 1)
    next(resumed)
    resumed.set_state(state)
    assert all(equal(a, b) for a, b in zip(expected, read(resumed, 3), strict=True))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mixture_component_gives_its_weight_of_the_examples(
    audio_scenes, qa_examples, monkeypatch, processes
):
    monkeypatch.setattr(pipeline.jax, "process_count", lambda: processes)
    other = [(audio + 1000, scene) for audio, scene in audio_scenes[:5]]
    from_other = []
    for index in range(processes):
        monkeypatch.setattr(pipeline.jax, "process_index", lambda index=index: index)
        mixture = [pipeline.MixtureComponent(other, qa_examples(2), 0.25)]
        batches = batches_of(audio_scenes, qa_examples(), 5, mixture=mixture)
        with pytest.raises(ValueError):  # arrays of other shapes cannot be mixed
            read(batches, 3)
        mixture = [pipeline.MixtureComponent(other, qa_examples(), 0.25)]
        batches = batches_of(audio_scenes, qa_examples(), 5, mixture=mixture)
        audio = np.concatenate([b["audio"] for b in read(batches, 20)])
        is_other = (audio > 500).all((1, 2))
        assert is_other.mean() == pytest.approx(0.25, abs=0.02)
        from_other += [row.tobytes() for row in audio[is_other]]
        # An empty mixture changes nothing.
        plain = batches_of(audio_scenes, qa_examples(), 5)
        assert equal(next(plain), next(batches_of(audio_scenes, qa_examples(), 5, mixture=[])))
        state = batches.get_state()
        expected = next(batches)
        resumed = batches_of(audio_scenes, qa_examples(), 5, mixture=mixture)
        resumed.set_state(state)
        assert equal(next(resumed), expected)
    assert len(set(from_other)) == 5


@pytest.mark.parametrize("count", [89, 144, 233])
def test_all_of_a_mixture_component_is_read_whatever_its_size(count):
    """Fibonacci numbers times the golden ratio are almost whole numbers."""
    component = pipeline.MixtureComponent(
        range(count), lambda element, rng, progress: {"n": np.int32(element)}, 0.5
    )
    main = lambda element, rng, progress: {"n": np.int32(-1)}  # noqa: E731
    batches = batches_of(range(10), main, 0, mixture=[component])
    elements = np.concatenate([b["n"] for b in read(batches, 3 * count)])
    assert len(set(elements)) == 1 + count


def test_a_mixture_component_is_used_from_its_start_on():
    component = pipeline.MixtureComponent(
        range(3), lambda element, rng, progress: {"n": np.int32(element)}, 0.5, start=0.5
    )
    main = lambda element, rng, progress: {"n": np.int32(-1)}  # noqa: E731
    batches = batches_of(range(10), main, 0, mixture=[component], total_examples=160)
    elements = np.concatenate([b["n"] for b in read(batches, 20)])
    assert (elements[:80] == -1).all()
    assert np.mean(elements[80:] >= 0) == pytest.approx(0.5, abs=0.02)


def test_eval_batch_is_the_first_examples_in_order(audio_scenes, spatial_examples):
    make = spatial_examples(augment=False)
    batch = pipeline.eval_batch(audio_scenes, make, 0, "t", 5)
    np.testing.assert_array_equal(batch["audio"], [audio for audio, _ in audio_scenes[:5]])
    assert (batch["yaw"] == 0).all() and len(batch["mono"]) == 5
    assert len(pipeline.eval_batch(audio_scenes, make, 0, "t", 99)["yaw"]) == 24


def test_elements_without_an_example_are_skipped(audio_scenes, spatial_examples):
    make = spatial_examples(augment=False)

    def of_three_sources(element, rng, progress):
        return make(element, rng, progress) if len(element[1]["sources"]) == 3 else None

    batches = read(batches_of(audio_scenes, of_three_sources, 0), 6)
    expected = {a.tobytes() for a, scene in audio_scenes if len(scene["sources"]) == 3}
    assert {a.tobytes() for batch in batches for a in batch["audio"]} == expected
    resumed = batches_of(audio_scenes, of_three_sources, 0)
    read(resumed, 3)
    state = resumed.get_state()
    resumed = batches_of(audio_scenes, of_three_sources, 0)
    resumed.set_state(state)
    assert all(equal(a, b) for a, b in zip(batches[3:], read(resumed, 3), strict=True))
    batch = pipeline.eval_batch(audio_scenes, of_three_sources, 0, "dev", len(audio_scenes))
    assert len(batch["audio"]) == len(audio_scenes)
    assert {a.tobytes() for a in batch["audio"]} == expected
    with pytest.raises(ConfigError, match=r"Questions\.tasks: .* in a row support no question"):
        next(batches_of(audio_scenes, lambda *_: None, 0))
    with pytest.raises(ConfigError, match=r"Questions\.tasks: 24 scenes"):
        pipeline.eval_batch(audio_scenes, lambda *_: None, 0, "dev", 1)


def numbered(element, rng, progress):
    return {"number": np.int32(element[1]["number"]), "noise": rng.normal()}


@pytest.fixture
def shards(tmp_path):
    """The folder of two shards of eight numbered records."""
    entries = []
    for shard in range(2):
        rows = [(np.full((500, 4), i, np.int16), {"number": 8 * shard + i}) for i in range(8)]
        entries.append(records.write_shard(tmp_path / f"{shard}.array_record", rows))
    records.write_manifest(tmp_path, {}, entries)
    return tmp_path


def damage(shards, position):
    """Flips a bit of the audio of a record of the first shard."""
    path = shards / "0.array_record"
    data = bytearray(path.read_bytes())
    data[data.find(np.full(300, position, "<i2").tobytes()) + 200] ^= 1
    path.write_bytes(data)


def test_damaged_records_are_reported_and_replaced(shards, capfd):
    whole = read(batches_of(records.Records(shards), numbered, 0), 6)
    damage(shards, 3)
    damage(shards, 4)
    batches = read(batches_of(records.Records(shards), numbered, 0, max_damaged=2), 6)
    for before, after in zip(whole, batches, strict=True):
        expected = np.where(np.isin(before["number"], (3, 4)), 5, before["number"])
        assert np.array_equal(after["number"], expected)
        # The random generator of an example does not depend on the record.
        assert np.array_equal(after["noise"], before["noise"])
    errors = capfd.readouterr().err
    assert errors.count("skipped") == 2 and "skipped 2 of at most 2" in errors
    assert all(f"0.array_record: record {i} is damaged" in errors for i in (3, 4))


@pytest.mark.parametrize("limit", [0, 1])
def test_too_many_damaged_records_end_the_run(shards, limit):
    damage(shards, 3)
    damage(shards, 4)
    batches = batches_of(records.Records(shards), numbered, 0, max_damaged=limit)
    expected = (
        rf"0\.array_record: record [34] is damaged .*; {limit + 1} damaged, expected at most "
        rf"{limit}"
    )
    with pytest.raises(ConfigError, match=expected):
        read(batches, 6)


def test_a_missing_shard_ends_the_run(shards):
    data = records.Records(shards)
    (shards / "1.array_record").unlink()
    batches = batches_of(data, numbered, 0, max_damaged=9)
    with pytest.raises(ConfigError, match=r"1\.array_record: no such file, expected a shard"):
        read(batches, 6)
