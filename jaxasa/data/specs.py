# SPDX-License-Identifier: Apache-2.0
"""Loads scenes as data (SceneSpec): from a JSON file, or from a record of a data set.

A data set stores audio and descriptions. The SceneSpec of a record is sampled again from the
settings in the manifest, and is valid only if it gives the description that is stored.
"""

import dataclasses
from pathlib import Path

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import ConfigError, check
from jaxasa.core import text_files
from jaxasa.core.workdir import WorkFolder, output_of
from jaxasa.data.records import Records
from jaxasa.data.shard_plan import CLIP_SPLITS
from jaxasa.data.sounds import Bank


def refuse_options(source: Path, kind: str, options: dict) -> None:
    """Raises ConfigError for the first of {option: value} that is not None."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {value}: {source} is {kind}, expected none with it")


def load_scene(path: Path, index: int | None, sounds: Path | None) -> SceneSpec:
    """Returns the scene of a JSON file, or scene `index` (default 0) of a folder of records.

    sounds: the sound bank of the folder; by default DIR/sounds, for a folder DIR/scenes/SPLIT.
    Raises ConfigError for either option with a JSON file.
    """
    if not path.is_dir():
        refuse_options(path, "a scene in JSON", {"--index": index, "--sounds": sounds})
        return read_json(path)
    bank = Bank.load(WorkFolder.around(path).sounds if sounds is None else sounds)
    return scene_of_record(Records(path), index or 0, bank)


def read_json(path: Path) -> SceneSpec:
    """Returns the scene of a JSON file (scenes.to_json); ConfigError names the file."""
    text = text_files.read_text(path, output_of(path, "a SceneSpec in JSON"))
    try:
        return scenes.SceneSpec.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def scene_of_record(data: Records, index: int, bank: Bank) -> SceneSpec:
    """Returns the scene of record `index` (by position) of a data set simulated with `bank`.

    Raises ConfigError for an index out of range, for another bank, and if the scene sampled now
    is not the one that was stored.
    """
    check(0 <= index < len(data), "index", index, f"0 to {len(data) - 1}")
    manifest = data.manifest
    same = bank.digest == manifest.get("bank_digest")
    check(same, f"sounds {bank.folder}", bank.name, f"the bank that {data.folder} was made of")
    # A manifest holds only the ranges of scenes; the number of scenes does not matter here.
    fields = {field.name for field in dataclasses.fields(config.Scenes)}
    ranges = {k: config.tuples(v) for k, v in manifest["scenes"].items() if k in fields}
    settings = config.Scenes(**{"train": 1, "dev": 1, "benchmark": 1} | ranges)
    split = manifest["split"]
    clips = bank.clips(CLIP_SPLITS[split])
    spec = scenes.sample_scene(settings, clips, manifest["seed"], split, index)
    stored = data[index][1]
    pairs = zip(scenes.describe(spec)["sources"], stored["sources"], strict=False)
    for sampled_source, stored_source in pairs:
        for name in ("clip", "azimuth", "distance", "onset"):
            if sampled_source[name] != stored_source[name]:
                raise ConfigError(
                    f"{data.folder}: scene {index} has {name} {stored_source[name]!r}, sampled "
                    f"again {sampled_source[name]!r}: another version of jaxasa made it"
                )
    return spec
