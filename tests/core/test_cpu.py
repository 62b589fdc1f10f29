# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

from jaxasa.core import cpu


def test_fast_math_is_asked_for_unless_flags_speak_of_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    cpu.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=here --xla_cpu_enable_fast_math=true"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    cpu.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"


def test_nan_and_infinity_keep_their_meaning():
    code = (
        "from jaxasa.core import cpu; cpu.tune()\n"
        "import jax, jax.numpy as jnp\n"
        "x = jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf])\n"
        "f = jax.jit(lambda x: (jnp.isnan(x), jnp.isinf(x), jnp.exp(x), jnp.isfinite(x.sum())))\n"
        "nan, inf, exp, finite = f(x)\n"
        "assert nan.tolist() == [False, True, False, False]\n"
        "assert inf.tolist() == [False, False, True, True]\n"
        "assert exp.tolist()[2:] == [float('inf'), 0.0] and not finite\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_threads_free_stays_with_the_process():
    """What a second round of the same blocks takes is there already, mapped: few page faults."""
    code = (
        "from jaxasa.core import cpu; cpu.tune()\n"
        "import resource, threading\n"
        "def fill():\n"
        "    blocks = [b'x' * (size << 20) for size in (3, 80, 20)]\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(2):\n"
        "        thread = threading.Thread(target=fill)\n"
        "        thread.start(); thread.join()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(), faults())\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(int, said.stdout.split())
    assert first > 10_000 and second < 1_000, (first, second)
