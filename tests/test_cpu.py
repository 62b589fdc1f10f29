import os
import subprocess
import sys

from jaxasa import cpu


def test_fast_math_is_asked_for_unless_flags_speak_of_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    cpu.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=here --xla_cpu_enable_fast_math=true"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    cpu.tune()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"


def test_nan_and_infinity_keep_their_meaning():
    code = (
        "from jaxasa import cpu; cpu.tune()\n"
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
