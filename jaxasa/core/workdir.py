# SPDX-License-Identifier: Apache-2.0
"""A run's folder: its layout, and a check that each step uses the same config.

    DIR/
      config.gin                 the resolved config
      sounds/                    the sound bank
      scenes/SPLIT/              rendered scenes of train, dev and benchmark
      FORMAT/SPLIT/              the same scenes in another format (dcase, binaural)
      rirs/                      RIRs, if scenes of train are mixed (Scenes.rir_rooms)
      tokenizer.json
      checkpoints/STAGE/         states of a trained stage, with its own config.gin
      logs/STAGE/                its metrics
      benchmark/                 the suite: audio and questions
      predictions/SYSTEM.jsonl   answers to it
      results.json               their scores
      report/index.html
      dev/                       the last four once more, for the development suite
      export/                    a Hugging Face folder
      steps.json                 time of each step of `jaxasa demo`
      ablation/, ablation.json   jobs and result of `jaxasa bench ablate`

Steps build on what earlier steps wrote, so a folder belongs to one model, one set of sounds, one
kind of scene, one choice of questions and one seed. `config.gin` in it says which.
"""

import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from jaxasa.config import SPLITS, STAGES, ConfigError, Run, differences, gin_files
from jaxasa.core import files

# Parts of a run that every step depends on; a stage's own options matter once it has a checkpoint.
SHARED = ("seed", "sounds", "scenes", "model", "questions")


@dataclass(frozen=True)
class WorkFolder:
    """Paths within a run's folder. Makes and reads nothing.

    >>> WorkFolder("runs/demo").checkpoint("sft").as_posix()
    'runs/demo/checkpoints/sft'
    """

    path: Path

    def __init__(self, path: str | os.PathLike):
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def around(cls, place: Path) -> "WorkFolder":
        """The run's folder of DIR/scenes/SPLIT or DIR/checkpoints/STAGE."""
        return cls(place.parent.parent)

    @property
    def config(self) -> Path:
        return self.path / "config.gin"

    @property
    def sounds(self) -> Path:
        return self.path / "sounds"

    def scenes(self, split: str, format: str = "records") -> Path:
        """Rendered scenes of a split in a format of data/formats.py."""
        return self._format_folder(format) / split

    def _format_folder(self, format: str) -> Path:
        return self.path / ("scenes" if format == "records" else format)

    @property
    def rirs(self) -> Path:
        return self.path / "rirs"

    def scenes_of(self, run: Run, split: str) -> Path:
        """What the run's model is given of a split; `rirs` for train if scenes are mixed."""
        if run.model.spatial.format == "binaural":
            return self.scenes(split, "binaural")
        return self.rirs if split == "train" and run.scenes.rir_rooms else self.scenes(split)

    @property
    def data_folders(self) -> tuple[Path, ...]:
        """The folders of all data that training reads; not all of them need be there."""
        scenes = map(self._format_folder, ("records", "binaural"))
        return (self.sounds, *scenes, self.rirs)

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, stage: str) -> Path:
        return self.checkpoints / stage

    def logs(self, stage: str) -> Path:
        return self.path / "logs" / stage

    def evaluation(self, split: str) -> "WorkFolder":
        """Where `benchmark`, `predictions`, `results` and `report` of a suite lie."""
        return WorkFolder(self.path / "dev") if split == "dev" else self

    @property
    def benchmark(self) -> Path:
        return self.path / "benchmark"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def steps(self) -> Path:
        return self.path / "steps.json"

    @property
    def ablation(self) -> Path:
        return self.path / "ablation"

    @property
    def ablation_result(self) -> Path:
        return self.path / "ablation.json"


def output_of(path: str | os.PathLike, otherwise: str) -> str:
    """What an error says is expected at `path`: the output of the command that writes it.

    The command is known by the layout of a run's folder; for other places it is `otherwise`.

    >>> output_of("runs/demo/scenes/dev", "a data set")
    'the output of `jaxasa simulate --workdir runs/demo --split dev`'
    >>> output_of("scenes/kitchen.wav", "a WAV file")
    'a WAV file'
    """
    place = Path(path)
    name, outer, split = place.name, place.parent, ""
    if outer.name in ("scenes", "binaural") and name in SPLITS:
        command, outer, split = "simulate", outer.parent, f" --split {name}"
    elif outer.name == "checkpoints" and name in STAGES:
        command, outer = f"train {name}", outer.parent
    elif name == "sounds":
        command = "sounds"
    elif name == "rirs":
        command, split = "simulate", " --split train"
    elif name in ("benchmark", "results.json"):
        command = "bench build" if name == "benchmark" else "bench run"
        if outer.name == "dev":
            outer, split = outer.parent, " --split dev"
    else:
        return otherwise
    return f"the output of `jaxasa {command} --workdir {shlex.quote(str(outer))}{split}`"


def claim(
    folder: str | os.PathLike, run: Run, text: str, parts: Collection[str] = SHARED
) -> WorkFolder:
    """Makes `folder` the work folder of `run`, whose resolved gin `text` goes to config.gin.

    Raises ConfigError, naming the options that differ, if the folder was made with other values
    of `parts` (fields of Run).
    """
    work = WorkFolder(folder)
    if work.config.is_file():
        before, _ = gin_files.load([str(work.config)])
        changes = [
            line
            for part in parts
            for line in differences(getattr(before, part), getattr(run, part), part)
        ]
        if changes:
            raise ConfigError(
                f"{work} was made with another config: {'; '.join(changes)}; "
                "expected the same values, or another --workdir"
            )
    try:
        work.path.mkdir(parents=True, exist_ok=True)
        files.atomic_write_text(work.config, text)
    except OSError as error:
        raise ConfigError(f"--workdir {work}: cannot write there: {error.strerror}") from None
    return work
