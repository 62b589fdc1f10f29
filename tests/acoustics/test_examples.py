# SPDX-License-Identifier: Apache-2.0
"""Doctests of all modules."""

import doctest
import importlib
from pathlib import Path

import pytest

import jaxasa.acoustics

FOLDER = Path(jaxasa.acoustics.__file__).parent
# The example of sofa.py needs a file of a measured HRTF.
FILES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "sofa"))


@pytest.mark.parametrize("name", FILES)
def test_examples_run(name):
    actual = doctest.testmod(importlib.import_module(f"jaxasa.acoustics.{name}"))
    assert actual.attempted > 0 and actual.failed == 0
