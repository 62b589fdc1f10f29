# SPDX-License-Identifier: Apache-2.0
import doctest
import importlib

import pytest

MODULES = ("dcase", "decode", "formats", "records", "so_dataset", "dedup")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(f"jaxasa.data.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
