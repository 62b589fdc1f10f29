# SPDX-License-Identifier: Apache-2.0
import jax
import pytest


@pytest.fixture(autouse=True)
def optimized():
    """Programs are read as XLA makes them for real runs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
