"""The sound bank: mono clips at 16 kHz with a class, split by source recording.

A bank is a folder: audio.i16 (all clips end to end, int16, little-endian, 1/32767 a step),
bank.json (clips, splits, what was refused and why), credits.csv (packages and licences). The
JSON file is written last: without it the bank is not complete and is built again.

Clips under half a second (a key stroke, a step) are too short to find and name in a room: each
is repeated with clips of its own recording, with random gaps, to about 1.5 s.

    from jaxasa import config
    from jaxasa.data import sounds

    bank = sounds.build(config.Sounds("folder:my_sounds"), "runs/mine/sounds", seed=0)
    print(bank.table())
    clip = bank.clips("train")[0]
    print(clip.label, clip.recording_id, bank.audio(clip.id).shape)
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
from jaxasa.data import corpora, debian, dedup, procedural
from jaxasa.data.debian import SoundsUnavailable  # noqa: F401  (what callers of build catch)
from jaxasa.data.decode import LOUDNESS, Recording, Unusable, pieces, read

FORMAT = 3
BEFORE = "bank.before.json"  # the bank that is being built anew
SHORT, STRUNG = 0.5, 1.5
# Recording ids of these banks are read from file names, so copies under other names are looked for.
BANKS_WITH_GUESSED_RECORDINGS = (*debian.BANKS, "folder")


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A clip while the bank is built; `start`, `count` are samples of the raw file."""

    id: str
    label: str
    recording_id: str
    start: int
    count: int
    recording: Recording


class Bank:
    """A complete bank, opened with `Bank.load`; its audio is mapped when first asked for.

    Attributes: folder, name, classes (sorted tuple), digest (sha256 of audio and splits),
    settings and files (hashes of what it was made of),
    report (refused clips by reason, recordings and seconds per split and class, classes left out).
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
        self._where: dict[str, tuple[int, int]] = {}
        self._audio: np.ndarray | None = None
        for row in meta["clips"]:
            clip = Clip(row["id"], row["label"], row["recording_id"], row["count"] / SAMPLE_RATE)
            self._clips[row["split"]].append(clip)
            self._where[row["id"]] = (row["start"], row["count"])

    @classmethod
    def load(cls, folder: Path | str) -> "Bank":
        """Opens the bank in `folder`; raises `ConfigError` when it is not complete."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / "bank.json").read_text("utf-8"))
            size = (folder / "audio.i16").stat().st_size
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: not a complete sound bank ({error})") from error
        if meta.get("format") != FORMAT or size != 2 * sum(c["count"] for c in meta["clips"]):
            raise ConfigError(f"{folder}: a damaged sound bank, or one of another version")
        return cls(folder, meta)

    def __reduce__(self):
        return (Bank.load, (self.folder,))

    def clips(self, split: str) -> list[Clip]:
        """The clips of "train", "dev" or "test"."""
        return self._clips[split]

    def audio(self, clip_id: str) -> np.ndarray:
        """A clip as mono float32 `[n]` at 16 kHz."""
        if self._audio is None:
            self._audio = np.memmap(self.folder / "audio.i16", "<i2", mode="r")
        start, count = self._where[clip_id]
        return self._audio[start : start + count].astype(np.float32) / FULL_SCALE

    def table(self) -> str:
        """Recordings, clips and seconds per class and split, then what was not done, as text."""
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


def build(sounds: Sounds, folder: Path | str, seed: int) -> Bank:
    """Builds the bank of `sounds` in `folder`, or opens it if it is there, made of the same.

    The same: equal settings, and files of equal names, sizes and times. A bank whose own files
    are gone, as on another machine, is opened too, and a line on stderr says so.
    Where files were added, recordings of before keep their splits (dedup.assign).
    What does not decode, is silent, clipped, too short or heard before is refused, named and
    counted. Raises `SoundsUnavailable` when the debian bank cannot be fetched, `ConfigError`
    for a bank that is not there or leaves fewer than two classes.
    """
    folder = Path(folder)
    settings = _hash([FORMAT, dataclasses.asdict(sounds), seed])
    try:
        bank = Bank.load(folder)
        before = bank if bank.settings == settings else None
    except ConfigError:
        before = None
    wanted = _classes_by_label(sounds)
    if before is not None and not _has_files(sounds):
        return before
    try:
        recordings = _recordings(sounds, wanted, seed)
    except ConfigError as error:
        if before is None:
            raise
        print(f"{error}; the sound bank in {folder} was made of it, and is kept", file=sys.stderr)
        return before
    files = _hash([(r.name, r.labels, r.recording_id, r.stamp) for r in recordings])
    if before is not None and before.files == files:
        return before
    folder.mkdir(parents=True, exist_ok=True)
    known = _known_splits(folder, settings)
    if before is not None:
        # Out of the way, for the audio is about to change; not gone, should this be interrupted.
        (folder / "bank.json").replace(folder / BEFORE)
    (folder / "bank.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
        raw_path = Path(work) / "raw.i16"
        found, refused = _decode(recordings, wanted, sounds.max_seconds, raw_path)
        if not found:
            raise ConfigError(f"Sounds.bank {sounds.bank!r}: no usable recording")
        raw = np.memmap(raw_path, "<i2", mode="r")
        found = _one_class_per_recording(found, refused)
        unmerged = {}
        if sounds.bank.partition(":")[0] in BANKS_WITH_GUESSED_RECORDINGS:
            clips_of = Counter(piece.label for piece in found)
            unmerged = {c: n for c, n in clips_of.items() if n > dedup.MAX_COMPARED_CLIPS}
            found = _merge_recordings(found, raw, known, refused)
        found, split, left_out = _split(found, sounds, seed, known)
        clips = _write_audio(found, split, raw, folder, seed, sounds.max_seconds)
        del raw
    _write_credits(found, folder)
    meta = {
        "format": FORMAT,
        "name": "debian recordings" if sounds.bank in debian.BANKS else sounds.bank,
        "settings": settings,
        "files": files,
        "loudness": LOUDNESS,
        "classes": sorted({p.label for p in found}),
        "digest": _digest(folder / "audio.i16", clips),
        "report": {
            "classes": _count(clips),
            "left_out": left_out,
            "unmerged": dict(sorted(unmerged.items())),
            "reasons": dict(sorted(Counter(refused.values()).items())),
            "refused": refused,
        },
        "clips": clips,
    }
    atomic_write_json(folder / "bank.json", meta)
    (folder / BEFORE).unlink(missing_ok=True)
    return Bank.load(folder)


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _known_splits(folder: Path, settings: str) -> dict[str, str]:
    """{recording id: split} of the bank in `folder` with `settings`, or of the one it replaces."""
    for name in ("bank.json", BEFORE):
        try:
            meta = json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if meta.get("settings") == settings:
            return {row["recording_id"]: row["split"] for row in meta["clips"]}
    return {}


def _has_files(sounds: Sounds) -> bool:
    """Whether the bank is made of files of the user's, which may change."""
    return sounds.bank not in (*debian.BANKS, "procedural")


def _classes_by_label(sounds: Sounds) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for name, labels in sounds.classes.items():
        for label in (labels,) if isinstance(labels, str) else labels:
            if wanted.setdefault(label, name) != name:
                raise ConfigError(
                    f"Sounds.classes has {label!r} in {wanted[label]!r} and {name!r}, "
                    "expected one class a label"
                )
    return wanted


def _recordings(sounds: Sounds, wanted: dict[str, str], seed: int) -> list[Recording]:
    kind, _, place = sounds.bank.partition(":")
    if kind in debian.BANKS:
        return debian.recordings(wanted, debian.cache_folder(), more=kind == "debian_more")
    if kind == "procedural":
        listed = procedural.recordings(seed)
    else:
        lister = {
            "folder": corpora.folder,
            "esc50": corpora.esc50,
            "fsd50k": corpora.fsd50k,
            "manifest": corpora.manifest,
        }[kind]
        listed = lister(Path(place).expanduser())
    known = {label for recording in listed for label in recording.labels}
    for label in wanted:
        if label not in known:
            raise ConfigError(
                f"Sounds.classes has the label {label!r}, expected one of {sorted(known)}"
            )
    return listed


def _decode(
    recordings: Sequence[Recording], wanted: dict[str, str], max_seconds: float, path: Path
) -> tuple[list[_Piece], dict[str, str]]:
    """Decodes to a raw file; returns the pieces in it and {name: reason} of the refused."""
    found: list[_Piece] = []
    refused: dict[str, str] = {}
    heard: dict[bytes, str] = {}
    at = 0
    with progress("sounds", len(recordings), "files") as advance, open(path, "wb") as raw:
        for recording in recordings:
            advance(1)
            names = {wanted[x] for x in recording.labels if x in wanted}
            names = names if wanted else {recording.labels[0]}
            if not names:
                continue
            try:
                if len(names) > 1:
                    raise Unusable("labels of several classes")
                parts = [
                    np.rint(part * FULL_SCALE).astype("<i2")
                    for part in pieces(read(recording.open()), max_seconds)
                ]
                mark = hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
                if mark in heard:
                    raise Unusable("the same audio as another file")
            except Unusable as reason:
                refused[recording.name] = str(reason)
                continue
            heard[mark] = recording.name
            (label,) = names
            for k, part in enumerate(parts):
                name = recording.name if len(parts) == 1 else f"{recording.name}#{k}"
                found.append(_Piece(name, label, recording.recording_id, at, len(part), recording))
                raw.write(part.tobytes())
                at += len(part)
    return found, refused


def _one_class_per_recording(found: list[_Piece], refused: dict[str, str]) -> list[_Piece]:
    # Classes are split apart from each other, so a recording in two of them could reach two splits.
    counts: dict[str, Counter] = defaultdict(Counter)
    for piece in found:
        counts[piece.recording_id][piece.label] += 1
    home = {name: min(c, key=lambda label: (-c[label], label)) for name, c in counts.items()}
    for piece in found:
        if piece.label != home[piece.recording_id]:
            refused[piece.id] = "its recording is in another class"
    return [piece for piece in found if piece.label == home[piece.recording_id]]


def _training_only(found: list[_Piece]) -> set[str]:
    return {p.recording_id for p in found} - {
        p.recording_id for p in found if not p.recording.training_only
    }


def _merge_recordings(
    found: list[_Piece], raw: np.ndarray, known: dict[str, str], refused: dict[str, str]
) -> list[_Piece]:
    only = _training_only(found)
    merged = []
    for label in sorted({piece.label for piece in found}):
        mine = [piece for piece in found if piece.label == label]
        audio = [raw[p.start : p.start + p.count].astype(np.float32) for p in mine]
        names = dedup.merge_duplicates([piece.recording_id for piece in mine], audio, known, only)
        for piece, name in zip(mine, names, strict=True):
            if piece.recording_id in only and name not in only:
                refused[piece.id] = f"the same recording as {name}"
            else:
                merged.append(dataclasses.replace(piece, recording_id=name))
    return merged


def _split(
    found: list[_Piece], sounds: Sounds, seed: int, known: dict[str, str]
) -> tuple[list[_Piece], dict[str, str], dict[str, int]]:
    """Returns the clips in use, {recording id: split}, {class left out: number of recordings}."""
    only = _training_only(found)
    by_class: dict[str, set[str]] = defaultdict(set)
    for piece in found:
        if piece.recording_id not in only:
            by_class[piece.label].add(piece.recording_id)
    left_out = {c: 0 for c in sounds.classes if c not in by_class}
    left_out |= {c: len(t) for c, t in by_class.items() if len(t) < sounds.min_recordings}
    kept = sorted(set(by_class) - set(left_out))
    if len(kept) < 2:
        raise ConfigError(
            f"Sounds.bank {sounds.bank!r}: {len(kept)} classes have Sounds.min_recordings "
            f"{sounds.min_recordings} recordings, expected at least 2 (left out: {left_out})"
        )
    split = dict.fromkeys(only, "train")
    for label in kept:
        split |= dedup.assign_splits(by_class[label], sounds.splits, label, seed, known)
    pieces_kept = sorted((p for p in found if p.label in kept), key=lambda p: (p.label, p.id))
    return pieces_kept, split, dict(sorted(left_out.items()))


def _write_audio(
    found: list[_Piece],
    split: dict[str, str],
    raw: np.ndarray,
    folder: Path,
    seed: int,
    max_seconds: float,
) -> list[dict]:
    short: dict[str, list[_Piece]] = defaultdict(list)
    for piece in found:
        if piece.count < SHORT * SAMPLE_RATE:
            short[piece.recording_id].append(piece)
    rows, at = [], 0
    with atomic_path(folder / "audio.i16") as temporary, open(temporary, "wb") as out:
        for piece in found:
            samples = raw[piece.start : piece.start + piece.count]
            if piece in short[piece.recording_id]:
                others = [raw[p.start : p.start + p.count] for p in short[piece.recording_id]]
                samples = string(samples, others, keys.rng(seed, "string", piece.id), max_seconds)
            out.write(samples.tobytes())
            rows.append(
                {
                    "id": piece.id,
                    "label": piece.label,
                    "recording_id": piece.recording_id,
                    "split": split[piece.recording_id],
                    "start": at,
                    "count": len(samples),
                }
            )
            at += len(samples)
    return rows


def string(
    first: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator, max_seconds: float
) -> np.ndarray:
    """Repeats a short clip int16 `[n]` with `distractors` of its recording, to about 1.5 s.

    Gaps are 80 to 300 ms; repetitions are up to 3 dB softer. Never longer than `max_seconds`.
    """
    parts, length = [first], len(first)
    while length < min(STRUNG, max_seconds) * SAMPLE_RATE:
        gap = np.zeros(int(rng.uniform(0.08, 0.3) * SAMPLE_RATE), "<i2")
        gain = 10 ** (-rng.uniform(0, 3) / 20)
        again = (others[rng.integers(len(others))] * gain).astype("<i2")
        length += len(gap) + len(again)
        if length > max_seconds * SAMPLE_RATE:
            break
        parts += [gap, again]
    return np.concatenate(parts)


def _count(clips: list[dict]) -> dict[str, dict[str, dict]]:
    table: dict[str, dict[str, dict]] = {}
    for label in sorted({row["label"] for row in clips}):
        table[label] = {}
        for split in dedup.SPLITS:
            mine = [row for row in clips if (row["label"], row["split"]) == (label, split)]
            table[label][split] = {
                "recordings": len({row["recording_id"] for row in mine}),
                "clips": len(mine),
                "seconds": round(sum(row["count"] for row in mine) / SAMPLE_RATE, 1),
            }
    return table


def _digest(audio: Path, clips: list[dict]) -> str:
    with open(audio, "rb") as data:
        digest = hashlib.file_digest(data, "sha256")
    digest.update(json.dumps(clips, sort_keys=True).encode())
    return digest.hexdigest()


def _write_credits(found: list[_Piece], folder: Path) -> None:
    credited = {p.recording.name: p for p in found if p.recording.package}
    if not credited:
        return
    with (
        atomic_path(folder / "credits.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as out,
    ):
        writer = csv.writer(out)
        writer.writerow(("package", "licence", "member", "class"))
        for name, piece in credited.items():
            package = piece.recording.package
            member = name.removeprefix(f"{package}:")
            writer.writerow((package, piece.recording.licence, member, piece.label))
