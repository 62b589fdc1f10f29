# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from jaxasa.config import ConfigError
from jaxasa.core import keys


def test_stream_depends_on_every_part_of_the_key():
    def first(*key):
        return keys.rng(*key).integers(1 << 60)

    assert first(1, "scene", "train", 5) == first(1, "scene", "train", 5)
    variants = [
        (1, "scene", "train", 5),
        (2, "scene", "train", 5),
        (1, "noise", "train", 5),
        (1, "scene", "dev", 5),
        (1, "scene", "train", 6),
    ]
    assert len({first(*key) for key in variants}) == len(variants)


def test_strings_are_hashed_by_crc32():
    expected = np.random.default_rng([3, 0xCBF43926, 1]).integers(1 << 60)
    assert keys.rng(3, "123456789", 1).integers(1 << 60) == expected


def test_negative_seed_raises():
    with pytest.raises(ConfigError, match="seed.*-1"):
        keys.rng(-1, "scene")
