# SPDX-License-Identifier: Apache-2.0
"""Assigns source recordings to train, dev and test; joins duplicate recordings.

A source recording is the original that clips were cut from. Splits are by recording, so that no
clip of a recording is trained on if another is in the test.

>>> shares = (0.6, 0.15, 0.25)
>>> split = assign_splits([f"recording {k}" for k in range(8)], shares, "dog", seed=0)
>>> sorted(split.values())
['dev', 'test', 'test', 'train', 'train', 'train', 'train', 'train']
>>> names = [f"recording {k}" for k in range(99)]
>>> more = assign_splits(names, shares, "dog", seed=0, previous=split)
>>> all(more[name] == split[name] for name in split)
True
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import scipy.fft

SPLITS = ("train", "dev", "test")
# Peak of the normalised cross-correlation: different recordings of one class reach 0.67 (two key
# strokes), copies 0.71 to 0.99.
DUPLICATE_CORRELATION = 0.7
MAX_COMPARED_CLIPS = 400  # of a class; the number of pairs grows with the square


def assign_splits(
    recordings: Collection[str],
    shares: Sequence[float],
    purpose: str,
    seed: int,
    previous: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assigns each source recording (by id) of one class to train, dev or test.

    Recordings are ordered by the hash of (seed, purpose, id): the first are test, the next dev,
    the rest train. dev and test get exactly their rounded share, at least one recording each.
    Thresholds on the hash would never move a recording when others are added, but they leave one
    class in four with eight recordings without any in dev. With ranks, a change in one class
    touches no other class, more clips of a recording touch nothing, and a new recording moves at
    most one recording over the edge of test and two over that of dev.

    previous: {recording id: split} of an earlier bank. Its recordings keep their split, so that no
    test recording is trained on because files were added; new recordings make up the shares. A
    recording moves only if a split would be empty otherwise.
    """
    n = len(recordings)
    test, dev = (max(1, int(n * share + 0.5)) for share in (shares[2], shares[1]))
    while n - test - dev < 1 and test + dev > 2:
        test, dev = (test - 1, dev) if test >= dev else (test, dev - 1)

    def rank(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{purpose}\0{name}".encode()).digest()

    ordered = sorted(recordings, key=rank)
    split = {name: previous[name] for name in ordered if previous and name in previous}
    sizes = Counter(split.values())
    for name in ordered:
        if name not in split:
            new = "test" if sizes["test"] < test else "dev" if sizes["dev"] < dev else "train"
            split[name] = new
            sizes[new] += 1
    for empty in SPLITS:
        if not sizes[empty] and n >= len(SPLITS):
            largest = max(SPLITS, key=sizes.__getitem__)
            split[next(name for name in ordered if split[name] == largest)] = empty
            sizes += Counter({empty: 1, largest: -1})
    return split


def merge_duplicates(
    recordings: Sequence[str],
    clips: Sequence[np.ndarray],
    previous: Mapping[str, str] | None = None,
    training_only: Collection[str] = (),
) -> list[str]:
    """Joins source recordings of one class that hold the same sound; returns an id for each clip.

    Ids that are read from file names are not reliable: a sound filtered, faded or saved under a
    second name would be in train and test. Two recordings are one if the normalised
    cross-correlation of two of their clips peaks above `DUPLICATE_CORRELATION`.

    recordings: the id of each clip. clips: float32 [N] each. previous: {recording id: split} of an
    earlier bank. Joined recordings take the id of one in test, else dev, else train, else a new
    one, so that no copy moves a test recording into train. For the same reason the id of a
    `training_only` recording is the last choice, and such a recording joins no two others.
    Classes with more than `MAX_COMPARED_CLIPS` clips are returned as they are.
    """
    previous = previous or {}

    def order(name: str) -> tuple[bool, int, str]:
        rank = -SPLITS.index(previous[name]) if name in previous else len(SPLITS)
        return name in training_only, rank, name

    if len(clips) < 2 or len(clips) > MAX_COMPARED_CLIPS:
        return list(recordings)
    parent = {name: name for name in recordings}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    size = scipy.fft.next_fast_len(2 * max(len(clip) for clip in clips), real=True)
    spectra = np.stack([scipy.fft.rfft(c / np.linalg.norm(c), size) for c in clips])
    # No correlation exceeds the sum of the products of magnitudes (twice it: both half spectra),
    # which rules out most pairs for the price of one matrix product.
    magnitudes = np.abs(spectra)
    bound = 2 * magnitudes @ magnitudes.T / size
    for i in range(len(clips) - 1):
        for j in np.flatnonzero(bound[i] > DUPLICATE_CORRELATION):
            if j <= i or root(recordings[j]) == root(recordings[i]):
                continue
            peak = np.abs(scipy.fft.irfft(spectra[j] * spectra[i].conj(), size)).max()
            if peak > DUPLICATE_CORRELATION:
                first, second = sorted((root(recordings[i]), root(recordings[j])), key=order)
                # A training-only copy of parts of two other recordings does not make them one.
                is_training = recordings[i] in training_only or recordings[j] in training_only
                if second in training_only or not is_training:
                    parent[second] = first
    return [root(name) for name in recordings]
