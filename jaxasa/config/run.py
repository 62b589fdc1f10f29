# SPDX-License-Identifier: Apache-2.0
"""Devices, benchmark, and the root of every gin run file."""

import dataclasses
from dataclasses import dataclass, field

from jaxasa.config.ablation import Ablation
from jaxasa.config.changes import DATA, SPEED
from jaxasa.config.checks import check, check_at_least, check_local_paths
from jaxasa.config.model import PARTS, Model
from jaxasa.config.questions import Questions
from jaxasa.config.scenes import Scenes, Sounds
from jaxasa.config.stages import (
    AlignStage,
    GrpoStage,
    SftStage,
    SpatialStage,
    Stage,
    TextStage,
)


@dataclass(frozen=True)
class Mesh:
    """Number of devices along (data, fsdp, tensor); -1 stands for all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        ok = all(isinstance(s, int) and (s > 0 or s == -1) for s in sizes)
        ok = ok and sum(s == -1 for s in sizes) <= 1
        check(ok, "Mesh", sizes, "positive sizes, at most one of them -1")


@dataclass(frozen=True)
class Bench:
    """The benchmark: its items, and how a model answers them.

    l1, l2, l3: number of items of each level.
    controls: names of controls (bench/controls.py) to run on the trained model, or "all".
    probe_items: items without audio that text-only classifiers are trained on, and as many that
        they are tested on (bench/shortcut_probe.py); 0 for none.
    option_fallback: whether an invalid answer (none of the options) is replaced by the likeliest
        option (inference/); if not, it counts as wrong.
    """

    l1: int = field(default=385, metadata=DATA)
    l2: int = field(default=279, metadata=DATA)
    l3: int = field(default=336, metadata=DATA)
    batch_size: int = field(default=128, metadata=SPEED)
    bootstrap_samples: int = 2000
    controls: tuple[str, ...] = ("all",)
    probe_items: int = field(default=10_000, metadata=DATA)
    option_fallback: bool = True

    def __post_init__(self):
        check_at_least(self, 1, "l1", "l2", "l3", "batch_size", "bootstrap_samples")
        check_at_least(self, 0, "probe_items")
        check(isinstance(self.controls, tuple), "Bench.controls", self.controls, "a tuple of names")
        check(
            isinstance(self.option_fallback, bool),
            "Bench.option_fallback",
            self.option_fallback,
            "True or False",
        )


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights: a folder of safetensors with its config.json, or a name on the Hugging
    Face hub; "" trains the part from scratch.

    semantic: Whisper, or Qwen2-Audio's audio tower. decoder: Qwen2, Qwen2.5, Qwen3 (dense), or
    Qwen2-Audio's text model; its tokenizer.json becomes the run's. Stage text is then not needed.
    """

    semantic: str = ""
    decoder: str = ""

    def __post_init__(self):
        check_local_paths(self, "semantic", "decoder")


@dataclass(frozen=True)
class Run:
    """The root of every gin run file.

    name: a label for people. seed: of data and training.
    stages: the training stages of the run, in order. The first one starts from `init_from` (a
        folder checkpoints/STAGE or an export) if it is set, otherwise from `pretrained` weights or
        from scratch; each other stage starts from the one before it.
    init_parts: parts that are taken from `init_from`, out of PARTS; () for all. With its decoder a
        new work folder takes its tokenizer.
    ablation: what `jaxasa bench ablate` compares.
    """

    name: str = field(metadata=SPEED)
    stages: tuple[str, ...]
    sounds: Sounds
    scenes: Scenes
    model: Model
    mesh: Mesh = field(metadata=SPEED)
    bench: Bench
    text: TextStage
    spatial: SpatialStage
    align: AlignStage
    sft: SftStage
    grpo: GrpoStage
    questions: Questions = field(default_factory=Questions)
    seed: int = field(default=0, metadata=DATA)
    pretrained: Pretrained = field(default_factory=Pretrained)
    init_from: str = ""
    init_parts: tuple[str, ...] = ()
    ablation: Ablation = field(default_factory=Ablation)

    def __post_init__(self):
        ok = all(s in STAGES for s in self.stages) and len(self.stages) > 0
        check(ok, "Run.stages", self.stages, "names out of " + ", ".join(STAGES))
        check_local_paths(self, "init_from")
        parts = self.init_parts
        check(set(parts) <= set(PARTS), "Run.init_parts", parts, "names out of " + ", ".join(PARTS))
        check(self.init_from or not parts, "Run.init_parts", parts, "() without Run.init_from")
        longest = self.model.semantic.max_seconds
        ok = self.scenes.seconds <= longest
        check(ok, "Scenes.seconds", self.scenes.seconds, f"at most {longest} (Semantic)")
        if self.model.spatial.format == "binaural":
            responses, imported = self.scenes.rir_rooms, self.sft.qa_datasets
            check(responses == 0, "Scenes.rir_rooms", responses, "0: binaural scenes are stored")
            check(not imported, "SftStage.qa_datasets", imported, "(): imported recordings are FOA")
            folders = self.spatial.real_recordings
            check(not folders, "SpatialStage.real_recordings", folders, "(): recordings are FOA")
            engine, expected = self.scenes.engine, "'jaxasa', for Spatial.format is 'binaural'"
            check(engine == "jaxasa", "Scenes.engine", engine, expected)


# Names of the training stages, in the order of the curriculum.
STAGES = tuple(
    field.name
    for field in dataclasses.fields(Run)
    if isinstance(field.type, type) and issubclass(field.type, Stage)
)
