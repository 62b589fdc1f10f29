# SPDX-License-Identifier: Apache-2.0
"""Spatial audio scene analysis for audio language models, in JAX.

    load          a trained model, which answers questions about recordings
    read_foa      a first-order ambisonics recording from a file
    write_foa     one to a file
    sample_scene  a random scene, from sounds of yours
    render_scene  its first-order ambisonics audio and description
    plot          its room as a picture
    score         accuracies of a file of answers to the benchmark
    load_config   a run's config from gin files

A scene from two sounds, rendered and written:

>>> import numpy as np
>>> import jaxasa
>>> rng = np.random.default_rng(0)
>>> sounds = {name: 0.1 * rng.standard_normal(16_000) for name in ("rain", "wind")}
>>> scene = jaxasa.sample_scene(sounds, seed=1, sources=(2, 2), seconds=4.0)
>>> audio, description = jaxasa.render_scene(scene, sounds)
>>> audio.shape, sorted(source["class"] for source in description["sources"])
((64000, 4), ['rain', 'wind'])
>>> jaxasa.write_foa("scene.flac", audio)
>>> float(abs(jaxasa.read_foa("scene.flac") - audio).max()) < 1e-4
True

A question about it, to a trained model:

    model = jaxasa.load("runs/demo/export")
    answer = model.ask("scene.flac", "Where is the rain?", ("left", "right", "front", "back"))
    print(answer["answer"], answer["sources"])

Training, evaluation and export are commands: `jaxasa --help`. Packages (jaxasa/README.md has more):

    config     options, and gin files that set them
    core       helpers of all packages
    acoustics  rooms, scenes, ambisonics, rendering
    data       sounds, records, simulation, questions, text, input pipelines
    models     encoders, projector, decoder, sampling
    parallel   meshes, sharding, several processes
    train      the training loop, checkpoints, optimizers
    stages     the training stages
    hf         Hugging Face weights in and out
    inference  answers of a trained model
    bench      the benchmark
    plan       a training step compiled for TPUs that need not be there
    viz        plots, binaural rendering
    speed      speed compared with PyTorch
    pipeline   all steps from sounds to report
    cli        the command line
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxasa.api import (
        load,
        load_config,
        plot,
        read_foa,
        render_scene,
        sample_scene,
        score,
        write_foa,
    )

__all__ = [
    "load",
    "load_config",
    "plot",
    "read_foa",
    "render_scene",
    "sample_scene",
    "score",
    "write_foa",
]


def __getattr__(name: str):
    """Imports a function when it is first used (PEP 562), so that `import jaxasa` stays fast."""
    if name == "__version__":
        from jaxasa.core import provenance

        return provenance.version()
    if name in __all__:
        from jaxasa import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
