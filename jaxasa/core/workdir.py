"""A run's folder: which configuration made it, and a check that the next step uses the same.

Steps build on what earlier steps wrote, so a folder belongs to one model, one set of sounds, one
kind of scene, one choice of questions and one seed. `config.gin` in it says which.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from jaxasa import config
from jaxasa.config import ConfigError, gin_files
from jaxasa.core import files

# What every step depends on; a stage's own options matter once it has a checkpoint.
SHARED = ("seed", "sounds", "scenes", "model", "questions")
# Options that change how fast, in how much memory or how visibly a step works, not what it makes.
HARMLESS = (
    *("unroll", "remat", "buckets", "workers", "batch_size@bench", "save_every", "eval_every"),
    *("log_every", "max_damaged_records"),
)


def claim(folder: str | Path, run: config.Run, text: str, parts: Collection[str] = SHARED) -> Path:
    """Makes `folder` the work folder of `run`, whose resolved gin `text` goes to config.gin.

    Raises ConfigError, naming the fields that differ, where the folder was made with other
    values of `parts` (fields of config.Run).
    """
    folder = Path(folder)
    path = folder / "config.gin"
    if path.is_file():
        before, _ = gin_files.load([str(path)])
        differing = [
            line
            for part in parts
            for line in differences(getattr(before, part), getattr(run, part), part)
        ]
        if differing:
            raise ConfigError(
                f"{folder} was made with another config: {'; '.join(differing)}; "
                "expected the same values, or another --workdir"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        raise ConfigError(f"--workdir {folder}: cannot write there: {error.strerror}") from None
    return folder


def differences(before, now, name: str) -> list[str]:
    """Lines "model.decoder.width was 64, is 128" for each field in which two values differ."""
    old, new = settings(before, name), settings(now, name)
    return [
        f"{field} was {old.get(field)!r}, is {new.get(field)!r}"
        for field in {**old, **new}
        if old.get(field) != new.get(field)
    ]


def settings(value, name: str) -> dict[str, Any]:
    """{"model.decoder.width": 64, ...}: every field of a dataclass that can change a result."""
    if not dataclasses.is_dataclass(value):
        return {name: value}
    found = {}
    for field in dataclasses.fields(value):
        if field.name not in HARMLESS and f"{field.name}@{name}" not in HARMLESS:
            found |= settings(getattr(value, field.name), f"{name}.{field.name}")
    return found


def scenes_of(run: config.Run, folder: Path, split: str) -> Path:
    """Folder of the scenes of a split that the run's model hears.

    Of train it is that of the responses, where scenes are mixed from them.
    """
    if run.model.spatial.format == "binaural":
        return folder / "binaural" / split
    mixed = split == "train" and run.scenes.rir_rooms > 0
    return folder / "responses" if mixed else folder / "scenes" / split
