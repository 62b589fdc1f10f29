# SPDX-License-Identifier: Apache-2.0
"""Reads and writes data sets in the layout of DCASE task 3 (STARSS23 and the years around it).

    foa/fold1_room000000_mix001.wav         W Y Z X (ACN, SN3D), 24 kHz, 16 bit
    metadata/fold1_room000000_mix001.csv    frame, class, source, azimuth, elevation, distance

The metadata files are described in data/dcase_csv.py: distances in centimetres; older sets have
none. On reading, foa_dev/ and metadata_dev/ with subfolders, as published, are accepted as well.

Folds that `write_shard` uses: train is 1, dev 4, benchmark 5. The public baselines train on 1 to 3
and select models on 4.

>>> events = dcase_csv.parse("10,0,0,30,0,150\\n11,0,0,30,0,150\\n", "x.csv", "cm")
>>> (source,) = sources_of_events(events, ["bell"], seconds=2.0)
>>> source["class"], source["onset"], source["offset"], source["distance"]
('bell', 1.0, 1.2, 1.5)
"""

import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.optimize import linear_sum_assignment

from jaxasa.acoustics import foa
from jaxasa.config import ConfigError, check
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_write_bytes
from jaxasa.core.walk import list_files, text_of_name
from jaxasa.data import dcase_csv, records
from jaxasa.data.dcase_csv import FRAME_S, Event

DCASE_SAMPLE_RATE = 24_000
FOLDS = {"train": 1, "dev": 4, "benchmark": 5}
MAX_PEAK = 0.99
MAX_STEP_DEG = 45.0  # in a frame of 100 ms; what jumps farther is another sound
# The classes of STARSS23 by number, one word each.
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


@dataclass(frozen=True)
class DcaseRecording:
    """A sound file of a DCASE set. metadata: None if the set has none for it."""

    name: str
    audio: Path
    metadata: Path | None


def events_of_scene(scene: dict, classes: Sequence[str]) -> list[Event]:
    """The events of a scene description, by frame, rounded to is_complete degrees and centimetres.

    Sources are numbered as in scene["sources"]. A source is active from the frame of its onset to
    that of its offset, both rounded, and in at least one. If it moves, "doa_trajectory" gives its
    position in each frame.
    """
    last = max(round(scene["seconds"] / FRAME_S), 1)
    events = []
    for number, source in enumerate(scene["sources"]):
        label = classes.index(source["class"])
        first = min(round(source["onset"] / FRAME_S), last - 1)
        for frame in range(first, max(min(round(source["offset"] / FRAME_S), last), first + 1)):
            azimuth, elevation, distance = _position(source, frame)
            events.append(
                Event(
                    frame,
                    label,
                    number,
                    round(foa.wrap_azimuth(round(azimuth))),
                    round(elevation),
                    round(100 * distance) / 100,
                )
            )
    return sorted(events)


def _position(source: dict, frame: int) -> Sequence[float]:
    path = source.get("doa_trajectory")
    if path is None:
        return source["azimuth"], source["elevation"], source["distance"]
    return path[min(frame, len(path) - 1)]


def sources_of_events(
    events: Sequence[Event], classes: Sequence[str], seconds: float
) -> list[dict]:
    """The sources of a scene description of `seconds`, by onset, from the events of a recording.

    A source is a run of frames of one class and source number, see `_tracks`. Its azimuth and
    elevation are those of the mean direction, its distance (m; None if there is none) the mean. If
    they change, it has a "doa_trajectory" as in scenes.describe: [azimuth, elevation, distance] for
    each 100 ms of the scene, constant before and after the run. Raises ConfigError for a class
    without a name, and for a distance that is not positive.
    """
    runs: dict[tuple[int, int], list[Event]] = {}
    for e in events:
        check(e.label < len(classes), "class", e.label, f"below {len(classes)} (names)")
        is_positive = e.distance is None or e.distance > 0
        check(is_positive, f"distance in frame {e.frame}", e.distance, "more than 0")
        runs.setdefault((e.label, e.source), []).append(e)
    frames = math.ceil(seconds / FRAME_S - 1e-6)
    sources = [
        _source(track, classes[label], frames)
        for (label, _), own in runs.items()
        for track in _tracks(own)
    ]
    return sorted(sources, key=lambda s: (s["onset"], s["class"], s["azimuth"]))


def _tracks(events: Iterable[Event]) -> list[list[Event]]:
    """Runs of consecutive frames from the events of one class and source number, in any order.

    Sounds without an actor share the number 0 in STARSS23, so a frame may have several events:
    each continues the nearest track of the frame before, within MAX_STEP_DEG, or begins one.
    Repeated lines count once.
    """
    tracks: list[list[Event]] = []
    open_tracks: list[list[Event]] = []
    by_frame: dict[int, list[Event]] = {}
    for e in dict.fromkeys(events):
        by_frame.setdefault(e.frame, []).append(e)
    for frame, here in sorted(by_frame.items()):
        open_tracks = [track for track in open_tracks if track[-1].frame == frame - 1]
        if len(open_tracks) == len(here) == 1 and open_tracks[0][-1][3:5] == here[0][3:5]:
            open_tracks[0].append(here[0])
            continue
        directions = foa.encode(*np.array([e[3:5] for e in here], float).T)[:, 1:]
        if open_tracks:
            ends = np.array([track[-1][3:5] for track in open_tracks], float)
            cosine = foa.encode(*ends.T)[:, 1:] @ directions.T
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        else:
            angle = np.zeros((0, len(here)))
        pairs = zip(*linear_sum_assignment(angle), strict=True)
        near = {j: open_tracks[i] for i, j in pairs if angle[i, j] <= MAX_STEP_DEG}
        for j, e in enumerate(here):
            if j in near:
                near[j].append(e)
            else:
                open_tracks.append([e])
                tracks.append(open_tracks[-1])
    return tracks


def _source(run: Sequence[Event], name: str, frames: int) -> dict:
    path = [[float(foa.wrap_azimuth(e.azimuth)), float(e.elevation), e.distance] for e in run]
    azimuth, elevation, distance = zip(*path, strict=True)
    gains = foa.encode(np.array(azimuth), np.array(elevation)).mean(0)
    mean = foa.cartesian_to_azel(gains[[3, 1, 2]])
    source = {
        "class": name,
        "azimuth": round(float(mean[0]), 1),
        "elevation": round(float(mean[1]), 1),
        "distance": None if None in distance else round(float(np.mean(distance)), 2),
        "onset": round(run[0].frame * FRAME_S, 1),
        "offset": round((run[-1].frame + 1) * FRAME_S, 1),
    }
    if any(place != path[0] for place in path):
        before, after = run[0].frame, frames - run[-1].frame - 1
        source["doa_trajectory"] = [path[0]] * before + path + [path[-1]] * after
    return source


def list_recordings(root: Path | str) -> list[DcaseRecording]:
    """The recordings of a DCASE set, by name; raises ConfigError if there are none.

    Sound files are below foa/, foa_dev/ or foa_eval/; a metadata file has the same relative path
    below metadata/, metadata_dev/ or metadata_eval/, or the same name in any folder there.
    """
    root = Path(root)
    recordings = []
    for part in ("", "_dev", "_eval"):
        sounds, texts = root / f"foa{part}", root / f"metadata{part}"
        by_name = {path.stem: path for path in list_files(texts) if path.suffix == ".csv"}
        for audio in (path for path in list_files(sounds) if path.suffix == ".wav"):
            name = audio.relative_to(sounds).with_suffix("").as_posix()
            same_path = texts / f"{name}.csv"
            metadata = same_path if same_path.is_file() else by_name.get(audio.stem)
            recordings.append(DcaseRecording(text_of_name(name), audio, metadata))
    if not recordings:
        raise ConfigError(f"{root}: no sound files, expected foa_dev/**/*.wav or foa/*.wav")
    return recordings


def class_names(root: Path | str) -> tuple[str, ...]:
    """Class names by number: of the manifest if `write_shard` made the set, else STARSS23's."""
    path = Path(root) / records.MANIFEST
    manifest = records.read_manifest(root) if path.is_file() else {}
    return tuple(manifest.get("classes", STARSS23))


def write_shard(
    path: Path, scenes: Iterable[tuple[np.ndarray, dict]], classes: Sequence[str]
) -> dict:
    """Writes the sound and metadata files of scenes: int16 [N, 4] at 16 kHz and description.

    They go to foa/ and metadata/ next to `path`, which lists them with their SHA-256 and is
    written last. Returns the shard's entry in the manifest (formats.Format).
    """
    files: dict[str, str] = {}
    size, count = 0, 0
    for audio, scene in scenes:
        split, _, index = scene["id"].partition("/")
        name = f"fold{FOLDS[split]}_room{index}_mix001"
        for file, content in (
            (f"foa/{name}.wav", _wav(audio)),
            (
                f"metadata/{name}.csv",
                dcase_csv.format_events(events_of_scene(scene, classes)).encode(),
            ),
        ):
            target = path.parent / file
            target.parent.mkdir(exist_ok=True)
            atomic_write_bytes(target, content)
            files[file] = hashlib.sha256(content).hexdigest()
            size += len(content)
        count += 1
    file_list = json.dumps({"count": count, "bytes": size, "files": files}, indent=1).encode()
    atomic_write_bytes(path, file_list)
    return _entry(path, count, size, file_list)


def _entry(path: Path, count: int, size: int, file_list: bytes) -> dict:
    digest = hashlib.sha256(file_list).hexdigest()
    return {"file": path.name, "count": count, "bytes": size, "sha256": digest}


def _wav(audio: np.ndarray) -> bytes:
    wave = soxr.resample(records.to_float(audio), SAMPLE_RATE, DCASE_SAMPLE_RATE, "HQ")
    # Between the samples at 16 kHz a wave may be higher than at them.
    wave *= min(1.0, MAX_PEAK / max(float(np.abs(wave).max(initial=0.0)), 1e-9))
    out = io.BytesIO()
    soundfile.write(out, wave, DCASE_SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return out.getvalue()


def read_entry(path: Path, count: int) -> dict | None:
    """The manifest entry of a shard written earlier; None if a file is missing or changed."""
    try:
        file_list = path.read_bytes()
        shard = json.loads(file_list)
        is_complete = shard["count"] == count and all(
            hashlib.sha256((path.parent / file).read_bytes()).hexdigest() == digest
            for file, digest in shard["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return None
    return _entry(path, count, shard["bytes"], file_list) if is_complete else None


def open_complete(folder: Path | str) -> list[DcaseRecording]:
    """The recordings of a set that `write_shard` made; raises ConfigError if it is not complete."""
    manifest, recordings = records.read_manifest(folder), list_recordings(folder)
    expected = f"{manifest['count']} recordings with metadata, as {records.MANIFEST} says"
    count = sum(recording.metadata is not None for recording in recordings)
    check(count == manifest["count"], str(folder), count, expected)
    return recordings
