"""Which takes belong to which split, and which takes are one recording under two names.

>>> shares = (0.6, 0.15, 0.25)
>>> split = assign([f"take {k}" for k in range(8)], shares, "dog", seed=0)
>>> sorted(split.values())
['dev', 'test', 'test', 'train', 'train', 'train', 'train', 'train']
>>> more = assign([f"take {k}" for k in range(99)], shares, "dog", seed=0, known=split)
>>> all(more[take] == split[take] for take in split)
True
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import scipy.fft

SPLITS = ("train", "dev", "test")
SAME = 0.7  # different recordings of one class reach 0.67 (two key strokes), copies 0.71 to 0.99
MOST_COMPARED = 400  # clips of a class; pairs grow with the square


def assign(
    takes: Collection[str],
    shares: Sequence[float],
    purpose: str,
    seed: int,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Gives each take of one class to train, dev or test.

    Takes are ordered by the hash of (seed, purpose, take): the first are test, the next dev,
    the rest train. dev and test get exactly their rounded share, at least one take each.
    Plain hash thresholds would not move a take when others are added, but they leave one
    class in four of eight takes without a dev take. With ranks, a change in one class touches
    no other, more clips of a known take touch nothing, and a new take moves at most one take
    over the edge of test and two over that of dev.

    known: {take: split} of an earlier bank. Its takes stay where they were, so that no test
    recording is trained on because files were added; the new takes make up the shares. A take
    moves only where a split would be empty without it.
    """
    n = len(takes)
    test, dev = (max(1, int(n * share + 0.5)) for share in (shares[2], shares[1]))
    while n - test - dev < 1 and test + dev > 2:
        test, dev = (test - 1, dev) if test >= dev else (test, dev - 1)

    def rank(take: str) -> bytes:
        return hashlib.blake2b(f"{seed}\0{purpose}\0{take}".encode()).digest()

    ordered = sorted(takes, key=rank)
    split = {take: known[take] for take in ordered if known and take in known}
    have = Counter(split.values())
    for take in ordered:
        if take not in split:
            split[take] = "test" if have["test"] < test else "dev" if have["dev"] < dev else "train"
            have[split[take]] += 1
    for name in SPLITS:
        if not have[name] and n >= len(SPLITS):
            largest = max(SPLITS, key=have.__getitem__)
            moved = next(take for take in ordered if split[take] == largest)
            split[moved] = name
            have += Counter({name: 1, largest: -1})
    return split


def merge(
    takes: Sequence[str],
    clips: Sequence[np.ndarray],
    known: Mapping[str, str] | None = None,
    training_only: Collection[str] = (),
) -> list[str]:
    """Joins the takes of one class that hold the same recording; returns one take per clip.

    Takes read from file names lie: a sound filtered, faded or saved under a second name would
    be heard in training and asked about in the test. Two takes are one when the normalised
    cross-correlation of two of their clips peaks above 0.7. clips: `[n]` float32 each. known:
    {take: split} of an earlier bank: joined takes go by the name of one in test, else in dev, else
    in train, if there is one, so that no copy of a test recording brings it into training. For the
    same reason the name of a take of `training_only` comes last, and joins no two others.
    """
    known = known or {}

    def order(take: str) -> tuple[bool, int, str]:
        rank = -SPLITS.index(known[take]) if take in known else len(SPLITS)
        return take in training_only, rank, take

    if len(clips) < 2 or len(clips) > MOST_COMPARED:
        return list(takes)
    parent = {take: take for take in takes}

    def root(take: str) -> str:
        while parent[take] != take:
            take = parent[take]
        return take

    size = scipy.fft.next_fast_len(2 * max(len(clip) for clip in clips), real=True)
    spectra = np.stack([scipy.fft.rfft(c / np.linalg.norm(c), size) for c in clips])
    # No correlation passes the sum of the products of magnitudes (twice it: both half spectra),
    # which rules out most pairs for the price of one matrix product.
    size_of = np.abs(spectra)
    bound = 2 * size_of @ size_of.T / size
    for i in range(len(clips) - 1):
        for j in np.flatnonzero(bound[i] > SAME):
            if j <= i or root(takes[j]) == root(takes[i]):
                continue
            peak = np.abs(scipy.fft.irfft(spectra[j] * spectra[i].conj(), size)).max()
            if peak > SAME:
                first, second = sorted((root(takes[i]), root(takes[j])), key=order)
                # Two takes of their own are not joined for what a third has of both.
                third = takes[i] in training_only or takes[j] in training_only
                if second in training_only or not third:
                    parent[second] = first
    return [root(take) for take in takes]
