"""Eight emulated CPU devices for every test, set before anything starts a backend."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("jaxasa", deadline=None)
hypothesis.settings.load_profile("jaxasa")
