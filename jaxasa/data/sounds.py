# SPDX-License-Identifier: Apache-2.0
"""The sound bank: mono clips at 16 kHz with a class, split by source recording.

A bank is a folder: audio.i16 (all clips end to end, int16, little-endian, 32767 being 1.0),
bank.json (clips, splits, refused files with reasons), credits.csv (packages and licences).
bank.json is written last: a folder without it is incomplete and is built again.

Clips under half a second (a key stroke, a step) are too short to localise and name in a room: each
is repeated with other short clips of its source recording, with random gaps, to about 1.5 s.

    from jaxasa import config
    from jaxasa.data import sounds

    bank = sounds.build(config.Sounds("folder:my_sounds"), "runs/mine/sounds", seed=0)
    print(bank.table())
    clip = bank.clips("train")[0]
    print(clip.label, clip.recording_id, bank.audio(clip.id).shape)

Shapes: N samples
"""

import csv
import dataclasses
import hashlib
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxasa.acoustics.scenes import Clip
from jaxasa.config import ConfigError, Sounds
from jaxasa.core import keys
from jaxasa.core.audio import FULL_SCALE, SAMPLE_RATE
from jaxasa.core.files import atomic_path, atomic_write_json
from jaxasa.core.progress import progress
from jaxasa.core.workdir import output_of
from jaxasa.data import corpora, debian, dedup, procedural
from jaxasa.data.debian import SoundsUnavailable  # noqa: F401  (callers of build catch it)
from jaxasa.data.decode import (
    LOUDNESS_DBFS,
    SoundFile,
    UnusableSound,
    read_mono,
    split_into_clips,
)

FORMAT = 3
BANK_FILE = "bank.json"
PREVIOUS_BANK_FILE = "bank.before.json"  # of the bank that is being replaced
SHORT_CLIP_S = 0.5  # shorter clips are repeated
REPEATED_CLIP_S = 1.5  # to about this length
# Their recording ids come from file names, so duplicates under other names are searched for.
BANKS_WITH_GUESSED_RECORDINGS = (*debian.BANKS, "folder")


class Bank:
    """A complete bank, opened with `Bank.load`; its audio is memory-mapped at first use.

    Attributes: folder, name, classes (sorted tuple), digest (SHA-256 of audio and splits),
    settings and files (hashes of the settings and files that it was built from), report (refused
    files by reason, recordings and seconds per split and class, classes left out).
    """

    def __init__(self, folder: Path, meta: dict):
        self.folder = folder
        self.name: str = meta["name"]
        self.classes: tuple[str, ...] = tuple(meta["classes"])
        self.digest: str = meta["digest"]
        self.report: dict = meta["report"]
        self.settings: str = meta["settings"]
        self.files: str = meta["files"]
        self._clips: dict[str, list[Clip]] = {split: [] for split in dedup.SPLITS}
        self._spans: dict[str, tuple[int, int]] = {}
        self._audio: np.ndarray | None = None
        for row in meta["clips"]:
            seconds = row["count"] / SAMPLE_RATE
            clip = Clip(row["id"], row["label"], row["recording_id"], seconds)
            self._clips[row["split"]].append(clip)
            self._spans[row["id"]] = (row["start"], row["count"])

    @classmethod
    def load(cls, folder: Path | str) -> "Bank":
        """Opens the bank in `folder`; raises ConfigError if it is not complete."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / BANK_FILE).read_text("utf-8"))
            size = (folder / "audio.i16").stat().st_size
        except (OSError, ValueError) as error:
            reason = "" if isinstance(error, FileNotFoundError) else f" ({error})"
            expected = output_of(folder, "the output of `jaxasa sounds`")
            raise ConfigError(
                f"{folder}: not a complete sound bank{reason}, expected {expected}"
            ) from error
        if meta.get("format") != FORMAT or size != 2 * sum(c["count"] for c in meta["clips"]):
            raise ConfigError(f"{folder}: a damaged sound bank, or one of another version")
        return cls(folder, meta)

    def __reduce__(self):
        return (Bank.load, (self.folder,))

    def clips(self, split: str) -> list[Clip]:
        """The clips of "train", "dev" or "test"."""
        return self._clips[split]

    def audio(self, clip_id: str) -> np.ndarray:
        """The audio of a clip: mono float32 [N] at 16 kHz."""
        if self._audio is None:
            self._audio = np.memmap(self.folder / "audio.i16", "<i2", mode="r")
        start, count = self._spans[clip_id]
        return self._audio[start : start + count].astype(np.float32) / FULL_SCALE

    def table(self) -> str:
        """Text: recordings and seconds per class and split, then everything left out."""
        titles = (f"{split + ' recordings':>18}{'s':>6}" for split in dedup.SPLITS)
        rows = [f"{'class':<12}" + "".join(titles)]
        for label, splits in self.report["classes"].items():
            cells = (f"{c['recordings']:>18}{c['seconds']:>6.0f}" for c in splits.values())
            rows.append(f"{label:<12}" + "".join(cells))
        for label, count in self.report["left_out"].items():
            rows.append(f"left out: {label} ({count} recordings)")
        for label, count in self.report.get("unmerged", {}).items():
            limit = f"{count} clips, at most {dedup.MAX_COMPARED_CLIPS} are compared"
            rows.append(f"not searched for duplicates: {label} ({limit})")
        for reason, count in self.report["reasons"].items():
            rows.append(f"refused: {count} x {reason}")
        return "\n".join([f"sound bank: {self.name}", *rows])


@dataclasses.dataclass(frozen=True)
class _ClipDraft:
    """A clip while the bank is built. start, count: its samples in the raw file."""

    id: str
    label: str
    recording_id: str
    start: int
    count: int
    file: SoundFile


def build(sounds: Sounds, folder: Path | str, seed: int) -> Bank:
    """Builds the bank of `sounds` in `folder`, or opens it if it is up to date.

    It is up to date if its settings are equal, and its files have equal names, sizes and times. A
    bank whose source files are gone, as on another machine, is opened too, with a line on stderr.
    If files were added, the recordings that were there keep their splits (`dedup.assign_splits`).

    Files that cannot be decoded, are silent, clipped, too short or duplicates are refused and
    reported. Raises SoundsUnavailable if the Debian packages cannot be downloaded, ConfigError
    for files that are missing or that give fewer than two classes.
    """
    folder = Path(folder)
    settings = _hash([FORMAT, dataclasses.asdict(sounds), seed])
    try:
        bank = Bank.load(folder)
        previous = bank if bank.settings == settings else None
    except ConfigError:
        previous = None
    class_of_label = _class_of_label(sounds)
    if previous is not None and not _has_user_files(sounds):
        return previous
    try:
        files = _list_files(sounds, class_of_label, seed)
    except ConfigError as error:
        if previous is None:
            raise
        print(f"{error}; keeping the sound bank in {folder} that it gave", file=sys.stderr)
        return previous
    stamp = _hash([(f.name, f.labels, f.recording_id, f.stamp) for f in files])
    if previous is not None and previous.files == stamp:
        return previous
    folder.mkdir(parents=True, exist_ok=True)
    previous_splits = _previous_splits(folder, settings)
    if previous is not None:
        # The audio is about to change; an interrupted build still finds the splits here.
        (folder / BANK_FILE).replace(folder / PREVIOUS_BANK_FILE)
    (folder / BANK_FILE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
        raw_path = Path(work) / "raw.i16"
        drafts, refused = _decode(files, class_of_label, sounds.max_seconds, raw_path)
        if not drafts:
            raise ConfigError(f"Sounds.bank {sounds.bank!r}: no usable sound file")
        raw = np.memmap(raw_path, "<i2", mode="r")
        drafts = _one_class_per_recording(drafts, refused)
        unmerged = {}
        if sounds.bank.partition(":")[0] in BANKS_WITH_GUESSED_RECORDINGS:
            num_clips = Counter(draft.label for draft in drafts)
            unmerged = {c: n for c, n in num_clips.items() if n > dedup.MAX_COMPARED_CLIPS}
            drafts = _merge_duplicates(drafts, raw, previous_splits, refused)
        drafts, split, left_out = _split(drafts, sounds, seed, previous_splits)
        clips = _write_audio(drafts, split, raw, folder, seed, sounds.max_seconds)
        del raw
    _write_credits(drafts, folder)
    meta = {
        "format": FORMAT,
        "name": "debian recordings" if sounds.bank in debian.BANKS else sounds.bank,
        "settings": settings,
        "files": stamp,
        "loudness": LOUDNESS_DBFS,
        "classes": sorted({draft.label for draft in drafts}),
        "digest": _digest(folder / "audio.i16", clips),
        "report": {
            "classes": _sizes(clips),
            "left_out": left_out,
            "unmerged": dict(sorted(unmerged.items())),
            "reasons": dict(sorted(Counter(refused.values()).items())),
            "refused": refused,
        },
        "clips": clips,
    }
    atomic_write_json(folder / BANK_FILE, meta)
    (folder / PREVIOUS_BANK_FILE).unlink(missing_ok=True)
    return Bank.load(folder)


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _previous_splits(folder: Path, settings: str) -> dict[str, str]:
    """{recording id: split} of the bank in `folder` with `settings`, or of the one it replaces."""
    for name in (BANK_FILE, PREVIOUS_BANK_FILE):
        try:
            meta = json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if meta.get("settings") == settings:
            return {row["recording_id"]: row["split"] for row in meta["clips"]}
    return {}


def _has_user_files(sounds: Sounds) -> bool:
    """True if the bank is built from files of the user, which may change."""
    return sounds.bank not in (*debian.BANKS, "procedural")


def _class_of_label(sounds: Sounds) -> dict[str, str]:
    class_of_label: dict[str, str] = {}
    for name, labels in sounds.classes.items():
        for label in (labels,) if isinstance(labels, str) else labels:
            other = class_of_label.setdefault(label, name)
            if other != name:
                raise ConfigError(
                    f"Sounds.classes has {label!r} in {other!r} and {name!r}, expected one class "
                    "for each label"
                )
    return class_of_label


def _list_files(sounds: Sounds, class_of_label: dict[str, str], seed: int) -> list[SoundFile]:
    kind, _, path = sounds.bank.partition(":")
    if kind in debian.BANKS:
        folder = debian.cache_folder()
        return debian.list_files(class_of_label, folder, kind == "debian_more")
    if kind == "procedural":
        files = procedural.list_files(seed)
    else:
        files = corpora.LISTERS[kind](Path(path).expanduser())
    labels = {label for file in files for label in file.labels}
    for label in class_of_label:
        if label not in labels:
            raise ConfigError(
                f"Sounds.classes has the label {label!r}, expected one of {sorted(labels)}"
            )
    return files


def _decode(
    files: Sequence[SoundFile], class_of_label: dict[str, str], max_seconds: float, path: Path
) -> tuple[list[_ClipDraft], dict[str, str]]:
    """Decodes to a raw file; returns the clips in it, and {file name: reason} of those refused."""
    drafts: list[_ClipDraft] = []
    refused: dict[str, str] = {}
    digests: set[bytes] = set()
    start = 0
    with progress("sounds", len(files), "files") as advance, open(path, "wb") as raw:
        for file in files:
            advance(1)
            classes = {class_of_label[x] for x in file.labels if x in class_of_label}
            classes = classes if class_of_label else {file.labels[0]}
            if not classes:
                continue
            try:
                if len(classes) > 1:
                    raise UnusableSound("labels of several classes")
                clips = [
                    np.rint(clip * FULL_SCALE).astype("<i2")
                    for clip in split_into_clips(read_mono(file.open()), max_seconds)
                ]
                digest = hashlib.sha256(b"".join(clip.tobytes() for clip in clips)).digest()
                if digest in digests:
                    raise UnusableSound("the same audio as another file")
            except UnusableSound as reason:
                refused[file.name] = str(reason)
                continue
            digests.add(digest)
            (label,) = classes
            for k, clip in enumerate(clips):
                name = file.name if len(clips) == 1 else f"{file.name}#{k}"
                drafts.append(_ClipDraft(name, label, file.recording_id, start, len(clip), file))
                raw.write(clip.tobytes())
                start += len(clip)
    return drafts, refused


def _one_class_per_recording(drafts: list[_ClipDraft], refused: dict[str, str]) -> list[_ClipDraft]:
    # Each class is split by itself, so a recording with two classes could get into two splits.
    counts: dict[str, Counter] = defaultdict(Counter)
    for draft in drafts:
        counts[draft.recording_id][draft.label] += 1
    main = {name: min(c, key=lambda label: (-c[label], label)) for name, c in counts.items()}
    for draft in drafts:
        if draft.label != main[draft.recording_id]:
            refused[draft.id] = "its recording_id has more clips of another class"
    return [draft for draft in drafts if draft.label == main[draft.recording_id]]


def _training_only(drafts: list[_ClipDraft]) -> set[str]:
    """The recordings of which all files are for training only."""
    shared = {draft.recording_id for draft in drafts if not draft.file.training_only}
    return {draft.recording_id for draft in drafts} - shared


def _merge_duplicates(
    drafts: list[_ClipDraft],
    raw: np.ndarray,
    previous_splits: dict[str, str],
    refused: dict[str, str],
) -> list[_ClipDraft]:
    training_only = _training_only(drafts)
    merged = []
    for label in sorted({draft.label for draft in drafts}):
        of_class = [draft for draft in drafts if draft.label == label]
        audio = [raw[d.start : d.start + d.count].astype(np.float32) for d in of_class]
        ids = [draft.recording_id for draft in of_class]
        ids = dedup.merge_duplicates(ids, audio, previous_splits, training_only)
        for draft, name in zip(of_class, ids, strict=True):
            if draft.recording_id in training_only and name not in training_only:
                refused[draft.id] = f"the same recording as {name}"
            else:
                merged.append(dataclasses.replace(draft, recording_id=name))
    return merged


def _split(
    drafts: list[_ClipDraft], sounds: Sounds, seed: int, previous_splits: dict[str, str]
) -> tuple[list[_ClipDraft], dict[str, str], dict[str, int]]:
    """Returns the clips to use, {recording id: split}, {class left out: number of recordings}."""
    training_only = _training_only(drafts)
    by_class: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        if draft.recording_id not in training_only:
            by_class[draft.label].add(draft.recording_id)
    left_out = {c: 0 for c in sounds.classes if c not in by_class}
    left_out |= {c: len(r) for c, r in by_class.items() if len(r) < sounds.min_recordings}
    classes = sorted(set(by_class) - set(left_out))
    if len(classes) < 2:
        raise ConfigError(
            f"Sounds.bank {sounds.bank!r}: {len(classes)} classes have at least "
            f"{sounds.min_recordings} source recordings (Sounds.min_recordings), expected at "
            f"least 2 classes (left out: {left_out})"
        )
    split = dict.fromkeys(training_only, "train")
    for label in classes:
        split |= dedup.assign_splits(by_class[label], sounds.splits, label, seed, previous_splits)
    drafts = sorted((d for d in drafts if d.label in classes), key=lambda d: (d.label, d.id))
    return drafts, split, dict(sorted(left_out.items()))


def _write_audio(
    drafts: list[_ClipDraft],
    split: dict[str, str],
    raw: np.ndarray,
    folder: Path,
    seed: int,
    max_seconds: float,
) -> list[dict]:
    """Writes audio.i16; returns the rows of bank.json."""
    short: dict[str, list[_ClipDraft]] = defaultdict(list)
    for draft in drafts:
        if draft.count < SHORT_CLIP_S * SAMPLE_RATE:
            short[draft.recording_id].append(draft)
    rows, start = [], 0
    with atomic_path(folder / "audio.i16") as temporary, open(temporary, "wb") as out:
        for draft in drafts:
            samples = raw[draft.start : draft.start + draft.count]
            if draft in short[draft.recording_id]:
                clips = [raw[d.start : d.start + d.count] for d in short[draft.recording_id]]
                rng = keys.rng(seed, "string", draft.id)
                samples = fill_with_repeats(samples, clips, rng, max_seconds)
            out.write(samples.tobytes())
            rows.append(
                {
                    "id": draft.id,
                    "label": draft.label,
                    "recording_id": draft.recording_id,
                    "split": split[draft.recording_id],
                    "start": start,
                    "count": len(samples),
                }
            )
            start += len(samples)
    return rows


def fill_with_repeats(
    first: np.ndarray, clips: Sequence[np.ndarray], rng: np.random.Generator, max_seconds: float
) -> np.ndarray:
    """Appends random `clips` of the same recording to a short clip int16 [N], to about 1.5 s.

    Gaps are 80 to 300 ms; repeats are up to 3 dB softer. Never longer than `max_seconds`.
    """
    parts, length = [first], len(first)
    while length < min(REPEATED_CLIP_S, max_seconds) * SAMPLE_RATE:
        gap = np.zeros(int(rng.uniform(0.08, 0.3) * SAMPLE_RATE), "<i2")
        gain = 10 ** (-rng.uniform(0, 3) / 20)
        repeat = (clips[rng.integers(len(clips))] * gain).astype("<i2")
        length += len(gap) + len(repeat)
        if length > max_seconds * SAMPLE_RATE:
            break
        parts += [gap, repeat]
    return np.concatenate(parts)


def _sizes(clips: list[dict]) -> dict[str, dict[str, dict]]:
    """{class: {split: number of recordings and clips, seconds}}."""
    table: dict[str, dict[str, dict]] = {}
    for label in sorted({row["label"] for row in clips}):
        table[label] = {}
        for split in dedup.SPLITS:
            rows = [row for row in clips if (row["label"], row["split"]) == (label, split)]
            table[label][split] = {
                "recordings": len({row["recording_id"] for row in rows}),
                "clips": len(rows),
                "seconds": round(sum(row["count"] for row in rows) / SAMPLE_RATE, 1),
            }
    return table


def _digest(audio: Path, clips: list[dict]) -> str:
    with open(audio, "rb") as data:
        digest = hashlib.file_digest(data, "sha256")
    digest.update(json.dumps(clips, sort_keys=True).encode())
    return digest.hexdigest()


def _write_credits(drafts: list[_ClipDraft], folder: Path) -> None:
    credited = {draft.file.name: draft for draft in drafts if draft.file.package}
    if not credited:
        return
    with (
        atomic_path(folder / "credits.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as out,
    ):
        writer = csv.writer(out)
        writer.writerow(("package", "licence", "member", "class"))
        for name, draft in credited.items():
            package = draft.file.package
            member = name.removeprefix(f"{package}:")
            writer.writerow((package, draft.file.licence, member, draft.label))
