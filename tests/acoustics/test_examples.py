"""The examples of the modules' docstrings run, and give what they say."""

import doctest
import importlib

import pytest

FILES = (
    "bands",
    "batch",
    "benchmark",
    "convolve",
    "foa",
    "image_source",
    "materials",
    "measure",
    "noise",
    "rir",
    "rooms",
    "tail",
)


@pytest.mark.parametrize("name", FILES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(f"jaxasa.acoustics.{name}"))
    assert found.attempted > 0 and found.failed == 0
