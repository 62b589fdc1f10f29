# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxasa.data.dedup import SPLITS, assign_splits, merge_duplicates

SHARES = (0.6, 0.15, 0.25)
names = st.sets(st.text(min_size=1, max_size=6), min_size=3, max_size=60)


def sizes(split):
    return [sum(s == name for s in split.values()) for name in SPLITS]


@given(names, st.integers(0, 5))
def test_each_split_gets_its_share(recordings, seed):
    split = assign_splits(recordings, SHARES, "dog", seed)
    train, dev, test = sizes(split)
    n = len(recordings)
    assert set(split) == recordings and train + dev + test == n
    assert test == max(1, int(0.25 * n + 0.5)) and dev == max(1, int(0.15 * n + 0.5))
    assert train >= 1


@pytest.mark.parametrize("shares", [(0.02, 0.49, 0.49), (0.98, 0.01, 0.01), (0.01, 0.98, 0.01)])
@pytest.mark.parametrize("n", [3, 4, 8, 50])
def test_no_split_is_empty_under_extreme_shares(shares, n):
    assert min(sizes(assign_splits({str(k) for k in range(n)}, shares, "a", 0))) >= 1


@given(names, st.text(min_size=7, max_size=9), st.randoms())
def test_order_does_not_matter_and_a_new_recording_moves_at_most_three(recordings, extra, random):
    before = assign_splits(recordings, SHARES, "dog", 0)
    shuffled = sorted(recordings)
    random.shuffle(shuffled)
    assert assign_splits(shuffled, SHARES, "dog", 0) == before
    after = assign_splits(recordings | {extra}, SHARES, "dog", 0)
    assert sum(after[t] != before[t] for t in recordings) <= 3


@given(names, st.sets(st.text(min_size=7, max_size=9), max_size=40))
def test_previous_recordings_keep_their_split(recordings, others):
    before = assign_splits(recordings, SHARES, "dog", 0)
    after = assign_splits(recordings | others, SHARES, "dog", 0, previous=before)
    assert {name: after[name] for name in recordings} == before and set(
        after
    ) == recordings | others
    expected = sizes(assign_splits(recordings | others, SHARES, "dog", 0))
    assert sum(abs(a - b) for a, b in zip(sizes(after), expected, strict=True)) <= 2


def test_a_split_that_lost_its_recordings_gets_one():
    previous = {str(k): "train" for k in range(9)}
    after = assign_splits(previous, SHARES, "dog", 0, previous=previous)
    assert sizes(after) == [7, 1, 1]


def test_splits_depend_on_seed_and_class():
    recordings = {str(k) for k in range(40)}
    first = assign_splits(recordings, SHARES, "dog", 0)
    assert first != assign_splits(recordings, SHARES, "dog", 1)
    assert first != assign_splits(recordings, SHARES, "cat", 0)


def test_duplicates_under_other_names_are_one_recording():
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) for n in (4000, 6000, 5000, 3000)]
    softer = 0.3 * np.concatenate([np.zeros(700), clips[1]]) + 0.1 * rng.standard_normal(6700)
    upside_down = -clips[0][300:]
    all_clips = [*clips, softer.astype(np.float32), upside_down]
    got = merge_duplicates(["a", "b", "c", "a", "d", "e"], all_clips)
    assert got == ["a", "b", "c", "a", "b", "a"]


def test_a_copy_stays_in_the_split_of_its_original():
    """By names alone the copy, which sorts first, would be new, and the test recording with it."""
    clips = list(np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32))
    ids = ["a", "m", "z", "b"]
    merged = merge_duplicates(ids, [clips[k] for k in (0, 1, 2, 2)], {"z": "test"})
    assert merged[2:] == ["z", "z"]
    previous = {"a": "train", "b": "dev", "z": "test"}
    merged = merge_duplicates(ids, [clips[k] for k in (2, 1, 2, 2)], previous)
    assert merged == ["z", "m", "z", "z"]


def test_a_training_only_recording_yields_and_joins_no_others():
    rng = np.random.default_rng(4)
    one, two, own = rng.standard_normal((3, 4000)).astype(np.float32)
    both = np.concatenate([one, two])  # correlates with each at 0.707
    assert merge_duplicates(["z", "a"], [one, one], training_only={"a"}) == ["z", "z"]
    assert merge_duplicates(["z", "a"], [one, one]) == ["a", "a"]
    three = [np.pad(one, (0, 4000)), np.pad(two, (4000, 0)), both]
    assert merge_duplicates(["p", "q", "a"], three, training_only={"a"}) == ["p", "q", "p"]
    assert merge_duplicates(["p", "q", "a"], three) == ["a", "a", "a"]
    assert merge_duplicates(["b", "a"], [own, own], training_only={"a", "b"}) == ["a", "a"]


def test_sounds_with_the_same_spectrum_are_not_duplicates():
    rng = np.random.default_rng(1)
    shape = np.hanning(4000)
    clips = [(shape * rng.standard_normal(4000)).astype(np.float32) for _ in range(5)]
    assert merge_duplicates(list("abcde"), clips) == list("abcde")
