# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings of core and config run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["core.keys", "core.trees", "core.workdir", "config.changes"])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"jaxasa.{name}"))
    assert result.attempted > 0 and result.failed == 0
