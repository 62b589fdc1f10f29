"""From what a user names to a scene as data: a record of a data set, or a SceneSpec in JSON.

A data set stores sound and descriptions. What a scene is made of is drawn again from the
manifest, and holds only if the description that follows from it is the one stored.
"""

import dataclasses
from pathlib import Path

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.acoustics.scenes import SceneSpec
from jaxasa.config import ConfigError, check
from jaxasa.data import simulate
from jaxasa.data.records import Records
from jaxasa.data.sounds import Bank


def refuse(source: Path, what: str, given: dict) -> None:
    """Raises ConfigError for the first of the options `given` that is not None."""
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} {value}: {source} is {what}, expected none with it")


def find(path: Path, index: int | None, sounds: Path | None) -> SceneSpec:
    """Returns the scene of a JSON file, or scene `index` (0) of a folder of records.

    sounds: the folder's bank; by default DIR/sounds, for a folder DIR/scenes/SPLIT. Raises
    ConfigError for either beside a JSON file.
    """
    if not path.is_dir():
        refuse(path, "a scene in JSON", {"--index": index, "--sounds": sounds})
        return read(path)
    bank = Bank.load(path.parent.parent / "sounds" if sounds is None else sounds)
    return of_record(Records(path), index or 0, bank)


def read(path: Path) -> SceneSpec:
    """Returns the scene of a JSON file (scenes.to_json); ConfigError names the file."""
    try:
        return scenes.from_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"{path}: {problem}, expected a SceneSpec in JSON") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def of_record(data: Records, index: int, bank: Bank) -> SceneSpec:
    """Returns the scene of record `index` (by position) of a data set made with `bank`.

    Raises ConfigError for an index that is not there, for another bank, and where what is drawn
    today is not what was stored.
    """
    check(0 <= index < len(data), "index", index, f"0 to {len(data) - 1}")
    manifest = data.manifest
    same = bank.digest == manifest.get("bank_digest")
    check(same, f"sounds {bank.folder}", bank.name, f"the bank that {data.folder} was made of")
    # Only ranges of scenes are in a manifest; how many there were to be does not matter here.
    known = {field.name for field in dataclasses.fields(config.Scenes)}
    ranges = {k: config.tuples(v) for k, v in manifest["scenes"].items() if k in known}
    settings = config.Scenes(**{"train": 1, "dev": 1, "benchmark": 1} | ranges)
    split = manifest["split"]
    clips = bank.clips(simulate.CLIPS[split])
    spec = scenes.draw(settings, clips, manifest["seed"], split, index)
    stored = data[index][1]
    for now, then in zip(scenes.describe(spec)["sources"], stored["sources"], strict=False):
        for name in ("clip", "azimuth", "distance", "onset"):
            if now[name] != then[name]:
                raise ConfigError(
                    f"{data.folder}: scene {index} has {name} {then[name]!r}, drawn again "
                    f"{now[name]!r}: it was made by another version of jaxasa"
                )
    return spec
