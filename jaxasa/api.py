# SPDX-License-Identifier: Apache-2.0
"""The functions that `import jaxasa` offers (jaxasa/__init__.py); they import what they need."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxasa.acoustics.scenes import SceneSpec
    from jaxasa.config import Run
    from jaxasa.inference.qa import QaModel

PathLike = str | os.PathLike


def load(path: PathLike) -> "QaModel":
    """Loads a trained model: an export folder, or checkpoints/STAGE of a run.

    Its `ask(audio, question, options=None)` answers a question about a recording (a file, or
    samples [N, C] at 16 kHz). Raises ConfigError if `path` is neither.
    """
    from jaxasa.inference.qa import QaModel

    return QaModel.load(Path(path))


def load_config(*files: PathLike, bindings: tuple[str, ...] = ()) -> "Run":
    """Builds a run's config from gin files, e.g. "run/demo.gin", and bindings over them.

    >>> load_config("run/demo.gin", bindings=("Scenes.train=500",)).scenes.train
    500

    Raises ConfigError for a file that is missing or wrong.
    """
    from jaxasa.config import gin_files

    return gin_files.load([str(path) for path in files], bindings)[0]


def read_foa(path: PathLike, convention: str | None = None) -> np.ndarray:
    """Reads an FOA recording: float32 [N, 4] at 16 kHz, channels W, Y, Z, X (ACN) in SN3D.

    convention: of the file, "ambix", "n3d" or "fuma"; None: "fuma" if its header states B-format,
    else "ambix". Raises ConfigError if the file is missing or has not four channels.
    """
    from jaxasa.data import foa_file

    return foa_file.read_foa(Path(path), convention)


def write_foa(path: PathLike, audio: np.ndarray) -> None:
    """Writes FOA audio [N, 4] in [-1, 1] at 16 kHz as AmbiX: a WAV or FLAC file of 16 bits.

    Raises ConfigError for another shape, for samples beyond [-1, 1], and for another file type.
    """
    from jaxasa.data import foa_file

    foa_file.write_foa(Path(path), audio)


def sample_scene(
    sounds: Mapping[str, np.ndarray], seed: int = 0, index: int = 0, **ranges
) -> "SceneSpec":
    """Samples a scene with sources out of `sounds`; the same arguments give the same scene.

    sounds: class name -> mono audio [N] at 16 kHz. ranges: fields of config.Scenes, e.g.
    sources=(2, 2), rt60=(0.3, 0.5), seconds=4.0. Raises ConfigError for ranges that leave no room
    for the sources.
    """
    from jaxasa.acoustics import scenes
    from jaxasa.config import Scenes
    from jaxasa.core.audio import SAMPLE_RATE

    clips = [
        scenes.Clip(name, name, name, len(audio) / SAMPLE_RATE) for name, audio in sounds.items()
    ]
    ranges = {"train": 1, "dev": 1, "benchmark": 1} | ranges
    return scenes.sample_scene(Scenes(**ranges), clips, seed, "train", index)


def render_scene(scene: "SceneSpec", sounds: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict]:
    """Renders a scene to FOA: float32 [N, 4] at 16 kHz, and a description of its sources and room.

    sounds: those that `sample_scene` was given.
    """
    from jaxasa.acoustics import render

    return render.render(scene, lambda name: np.asarray(sounds[name], np.float32))


def plot(scene: "SceneSpec", path: PathLike, source_index: int = 0) -> dict:
    """Plots a scene's room as a PNG: floor plan, RIR of a source, decays, energy by direction.

    Returns {"rt60", "drr", "bands"} of that RIR.
    """
    from jaxasa.viz import plot_room

    return plot_room.plot_room(plot_room.view_of_scene(scene), source_index, Path(path))


def score(predictions: PathLike, benchmark: PathLike) -> dict:
    """Scores answers to a suite, as `jaxasa bench score` does.

    predictions: a JSONL file with {"id", "answer"} in each line. benchmark: the suite's folder.
    Returns {"overall": A, "L1": A, ...}, A = {"accuracy", "low", "high", "items"}, with 95 %
    intervals.
    """
    from jaxasa.bench import score as scoring

    return scoring.score_file(Path(predictions), Path(benchmark))
