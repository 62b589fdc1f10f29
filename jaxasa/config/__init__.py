# SPDX-License-Identifier: Apache-2.0
"""Every option of jaxasa, as frozen dataclasses that gin files build.

run        Run, the root of a config; Bench, Mesh, Pretrained
scenes     Sounds, Scenes
materials  absorption of wall materials
questions  Questions
model      Model and its parts; Sampling
stages     options of each training stage
ablation   variants that `jaxasa bench ablate` compares
checks     ConfigError and the checks of values
changes    which option changes data, a result, or only speed
gin_files  gin files and command-line bindings to one checked Run

Each command reads one `Run` and takes the parts that it needs. Fields without a default must be
bound in a gin file. gin checks no types, so `__post_init__` does: a bad value is a one-line
`ConfigError` with the field, the value and the expectation.

Units: metres, seconds, hertz, degrees, dB.
"""

from jaxasa.config.ablation import SUITES, Ablation
from jaxasa.config.changes import differences, settings, speed_options
from jaxasa.config.checks import ConfigError, check, check_local_path
from jaxasa.config.model import (
    EXPERTS,
    PARTS,
    Decoder,
    Lora,
    Model,
    Projector,
    Sampling,
    Semantic,
    Spatial,
    model_from_dict,
    tuples,
)
from jaxasa.config.questions import Questions
from jaxasa.config.run import STAGES, Bench, Mesh, Pretrained, Run
from jaxasa.config.scenes import SPLITS, WALL_OPTIONS, Scenes, Sounds
from jaxasa.config.stages import (
    LEVELS,
    POLICY_LOSSES,
    AlignStage,
    GrpoStage,
    SftStage,
    SpatialStage,
    Stage,
    TextStage,
)

__all__ = [
    "EXPERTS",
    "LEVELS",
    "PARTS",
    "POLICY_LOSSES",
    "SPLITS",
    "STAGES",
    "SUITES",
    "WALL_OPTIONS",
    "Ablation",
    "AlignStage",
    "Bench",
    "ConfigError",
    "Decoder",
    "GrpoStage",
    "Lora",
    "Mesh",
    "Model",
    "Pretrained",
    "Projector",
    "Questions",
    "Run",
    "Sampling",
    "Scenes",
    "Semantic",
    "SftStage",
    "Sounds",
    "Spatial",
    "SpatialStage",
    "Stage",
    "TextStage",
    "check",
    "check_local_path",
    "differences",
    "model_from_dict",
    "settings",
    "speed_options",
    "tuples",
]
