# SPDX-License-Identifier: Apache-2.0
"""The examples of the modules' docstrings run, and give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import jaxasa.acoustics

FOLDER = Path(jaxasa.acoustics.__file__).parent
# A measured HRTF is a file that not everybody has.
FILES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "sofa"))


@pytest.mark.parametrize("name", FILES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(f"jaxasa.acoustics.{name}"))
    assert found.attempted > 0 and found.failed == 0
