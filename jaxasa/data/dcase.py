"""The DCASE layout of task 3 (STARSS23 and the years around it), written and read.

    foa/fold1_room000000_mix001.wav         W Y Z X (ACN, SN3D), 24 kHz, 16 bit
    metadata/fold1_room000000_mix001.csv    frame, class, source, azimuth, elevation, distance

A row says that a source sounds in a frame of 100 ms: whole numbers, angles in degrees (azimuth
counter-clockwise, front 0, left +90), distance in centimetres; older sets have no distance. On
reading, foa_dev/ and metadata_dev/ with folders in them, as published, serve as well.

Folds of what we write: train is 1, dev 4, benchmark 5. The public baselines train on 1 to 3 and
choose on 4.

>>> lines = "10,0,0,30,0,150\\n11,0,0,30,0,150\\n"
>>> found = events(parse(lines, "x.csv"), ["bell"], seconds=2.0)
>>> [(e["class"], e["onset"], e["offset"], e["distance"]) for e in found]
[('bell', 1.0, 1.2, 1.5)]
"""

import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from jaxasa.acoustics import foa
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_write_bytes
from jaxasa.data import records

RATE = 24_000
FRAME = 0.1  # seconds
FOLDS = {"train": 1, "dev": 4, "benchmark": 5}
PEAK = 0.99
# The classes of STARSS23 in their order, a word each.
STARSS23 = (
    "woman",
    "man",
    "clapping",
    "telephone",
    "laughter",
    "housework",
    "footsteps",
    "door",
    "music",
    "instrument",
    "tap",
    "bell",
    "knock",
)


class Row(NamedTuple):
    """A line of a metadata file: 100 ms of one source. Degrees; distance in cm, or None."""

    frame: int
    label: int
    source: int
    azimuth: int
    elevation: int
    distance: int | None


@dataclass(frozen=True)
class Recording:
    """A sound file of a DCASE set. metadata: None where the set has none for it."""

    name: str
    audio: Path
    metadata: Path | None


def rows(scene: dict, classes: Sequence[str]) -> list[Row]:
    """The rows of a scene description, by frame; a source is numbered as in scene["sources"].

    A source sounds in the frames from its onset to its offset, both rounded to a frame, and in
    one at least. One that moves has its place in each of them in "trajectory".
    """
    last = max(round(scene["seconds"] / FRAME), 1)
    found = []
    for number, source in enumerate(scene["sources"]):
        label = classes.index(source["class"])
        first = min(round(source["onset"] / FRAME), last - 1)
        for frame in range(first, max(min(round(source["offset"] / FRAME), last), first + 1)):
            azimuth, elevation, distance = _place(source, frame)
            found.append(
                Row(
                    frame,
                    label,
                    number,
                    round(foa.wrap(round(azimuth))),
                    round(elevation),
                    round(100 * distance),
                )
            )
    return sorted(found)


def _place(source: dict, frame: int) -> Sequence[float]:
    path = source.get("trajectory")
    if path is None:
        return source["azimuth"], source["elevation"], source["distance"]
    return path[min(frame, len(path) - 1)]


def text(found: Iterable[Row]) -> str:
    """The text of a metadata file; rows without distance have five columns."""
    return "".join(",".join(str(v) for v in row if v is not None) + "\n" for row in found)


def read(path: Path | str) -> list[Row]:
    """The rows of a metadata file; raises `ConfigError` naming the file and line."""
    try:
        return parse(Path(path).read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}), expected a CSV file") from None


def parse(content: str, name: str) -> list[Row]:
    """Rows from a metadata file's text, sorted; a first line of column names is passed over."""
    found = []
    for number, line in enumerate(content.splitlines(), 1):
        cells = [cell.strip() for cell in line.split(",")]
        if not any(cells) or (number == 1 and cells[0].lower() == "frame"):
            continue
        try:
            frame, label, source, azimuth, elevation, *rest = (_whole(cell) for cell in cells)
            (distance,) = rest or (None,)
            row = Row(frame, label, source, azimuth, elevation, distance)
        except ValueError:
            raise ConfigError(
                f"{name}:{number} is {line[:60]!r}, expected frame, class, source, azimuth, "
                "elevation and perhaps distance as numbers"
            ) from None
        ok = row.frame >= 0 and row.label >= 0 and abs(row.azimuth) <= 360
        ok = ok and abs(row.elevation) <= 90 and (row.distance is None or row.distance > 0)
        check(ok, f"{name}:{number}", line[:60], "a frame and class of at least 0, angles, cm > 0")
        found.append(row)
    return sorted(found, key=lambda r: r[:5])


def _whole(cell: str) -> int:
    value = float(cell)
    if not abs(value) < 1e9:
        raise ValueError
    return round(value)


def events(found: Sequence[Row], classes: Sequence[str], seconds: float) -> list[dict]:
    """The sources of a scene description of `seconds`, by onset, from the rows of a recording.

    An event is a run of frames of one class and source. Its azimuth and elevation are those of
    the mean direction, its distance (m; None where not given) the mean; where they change it
    has a "trajectory" as in scenes.describe: [azimuth, elevation, distance] for each 100 ms of
    the scene, held before and after the event. Raises `ConfigError` for a class beyond `num_classes`.
    """
    runs: dict[tuple[int, int], list[list[Row]]] = {}
    for row in found:
        check(row.label < len(classes), "class", row.label, f"below {len(classes)}, as many names")
        mine = runs.setdefault((row.label, row.source), [])
        if mine and row.frame <= mine[-1][-1].frame + 1:
            if row.frame > mine[-1][-1].frame:  # a frame given twice is heard once
                mine[-1].append(row)
        else:
            mine.append([row])
    frames = math.ceil(seconds / FRAME - 1e-6)
    made = [
        _event(run, classes[label], frames) for (label, _), mine in runs.items() for run in mine
    ]
    return sorted(made, key=lambda e: (e["onset"], e["class"], e["azimuth"]))


def _event(run: Sequence[Row], name: str, frames: int) -> dict:
    path = [
        [
            float(foa.wrap(r.azimuth)),
            float(r.elevation),
            None if r.distance is None else r.distance / 100,
        ]
        for r in run
    ]
    azimuth, elevation, distance = zip(*path, strict=True)
    gains = foa.encode(np.array(azimuth), np.array(elevation)).mean(0)
    mean = foa.direction(gains[[3, 1, 2]])
    event = {
        "class": name,
        "azimuth": round(float(mean[0]), 1),
        "elevation": round(float(mean[1]), 1),
        "distance": None if None in distance else round(float(np.mean(distance)), 2),
        "onset": round(run[0].frame * FRAME, 1),
        "offset": round((run[-1].frame + 1) * FRAME, 1),
    }
    if any(place != path[0] for place in path):
        before, after = run[0].frame, frames - run[-1].frame - 1
        event["trajectory"] = [path[0]] * before + path + [path[-1]] * after
    return event


def listing(root: Path | str) -> list[Recording]:
    """The recordings of a DCASE set, by name; raises `ConfigError` where there are none.

    Sound files are those below foa/, foa_dev/ or foa_eval/; a metadata file has the same place
    below metadata/, metadata_dev/ or metadata_eval/, or the same name in any folder there.
    """
    root = Path(root)
    found = []
    for part in ("", "_dev", "_eval"):
        sounds, texts = root / f"foa{part}", root / f"metadata{part}"
        by_name = {path.stem: path for path in sorted(texts.rglob("*.csv"))}
        for audio in sorted(sounds.rglob("*.wav")):
            place = audio.relative_to(sounds).with_suffix("")
            beside = texts / f"{place}.csv"
            metadata = beside if beside.is_file() else by_name.get(audio.stem)
            found.append(Recording(place.as_posix(), audio, metadata))
    if not found:
        raise ConfigError(f"{root}: no sound files, expected foa_dev/**/*.wav or foa/*.wav")
    return found


def classes_of(root: Path | str) -> tuple[str, ...]:
    """Class names by number: those of the manifest of a set that we wrote, else STARSS23's."""
    path = Path(root) / records.MANIFEST
    manifest = records.read_manifest(root) if path.is_file() else {}
    return tuple(manifest.get("classes", STARSS23))


def write_shard(
    path: Path, scenes: Iterable[tuple[np.ndarray, dict]], classes: Sequence[str]
) -> dict:
    """Writes the sound and metadata files of (int16 `[T, 4]` at 16 kHz, description) pairs.

    They go to foa/ and metadata/ beside `path`, which lists them with their SHA-256 and is
    written last. Returns the manifest entry of formats.Format.
    """
    files: dict[str, str] = {}
    size, count = 0, 0
    for audio, scene in scenes:
        split, _, index = scene["id"].partition("/")
        name = f"fold{FOLDS[split]}_room{index}_mix001"
        for file, content in (
            (f"foa/{name}.wav", _wav(audio)),
            (f"metadata/{name}.csv", text(rows(scene, classes)).encode()),
        ):
            target = path.parent / file
            target.parent.mkdir(exist_ok=True)
            atomic_write_bytes(target, content)
            files[file] = hashlib.sha256(content).hexdigest()
            size += len(content)
        count += 1
    listed = json.dumps({"count": count, "bytes": size, "files": files}, indent=1).encode()
    atomic_write_bytes(path, listed)
    return _entry(path, count, size, listed)


def _entry(path: Path, count: int, size: int, listed: bytes) -> dict:
    digest = hashlib.sha256(listed).hexdigest()
    return {"file": path.name, "count": count, "bytes": size, "sha256": digest}


def _wav(audio: np.ndarray) -> bytes:
    wave = soxr.resample(records.to_float(audio), SAMPLE_RATE, RATE, "HQ")
    # Between the samples of 16 kHz a wave may be higher than at them.
    wave *= min(1.0, PEAK / max(float(np.abs(wave).max(initial=0.0)), 1e-9))
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format="WAV", subtype="PCM_16")
    return out.getvalue()


def read_entry(path: Path, count: int) -> dict | None:
    """The manifest entry of a shard written earlier; None if a file of it is absent or altered."""
    try:
        listed = path.read_bytes()
        shard = json.loads(listed)
        whole = shard["count"] == count and all(
            hashlib.sha256((path.parent / file).read_bytes()).hexdigest() == digest
            for file, digest in shard["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return None
    return _entry(path, count, shard["bytes"], listed) if whole else None


def open_complete(folder: Path | str) -> list[Recording]:
    """The recordings of a set that we wrote; raises `ConfigError` if it is not complete."""
    manifest, found = records.read_manifest(folder), listing(folder)
    expected = f"{manifest['count']} recordings with metadata, as {records.MANIFEST} says"
    whole = [r for r in found if r.metadata is not None]
    check(len(whole) == manifest["count"], str(folder), len(whole), expected)
    return found
