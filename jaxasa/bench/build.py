# SPDX-License-Identifier: Apache-2.0
"""Building of a suite: selects its items and writes them with their audio.

Items are selected from scene specs, which are double precision throughout, so the questions are
the same on every machine; only quantities measured on renders (RT60, DRR) and the last bits of
renders depend on it. A question is rejected if the measured scene gives another answer.
"""

import collections
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import soundfile

from jaxasa import config
from jaxasa.acoustics import scenes
from jaxasa.bench import audit, card, external_suite, shortcut_probe
from jaxasa.bench.select_items import MIN_DIRECTION_SHARE, select_items
from jaxasa.bench.suite import Item, load, manifest
from jaxasa.config import ConfigError
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.core.files import atomic_path
from jaxasa.core.progress import progress
from jaxasa.core.provenance import made_by
from jaxasa.data import questions, records, sounds, specs


def build(
    run: config.Run,
    bank_folder: str | Path,
    records_folder: str | Path,
    folder: str | Path,
    split: str = "benchmark",
) -> list[Item]:
    """Writes the suite of `split` ("benchmark" or "dev") into `folder` and returns its items.

    bank_folder: the sound bank, for class names and the recordings of each split. records_folder:
    the rendered scenes of `split`, or an imported data set (external_suite.py), which needs no
    bank and may give fewer items than the config says. An existing suite of the same config and
    scenes is kept. Raises ConfigError if the scenes are too few, or contain source recordings of
    another split.
    """
    folder = Path(folder)
    config.check(split in config.SUITES, "split", split, " or ".join(config.SUITES))
    source = records.Records(records_folder)
    stamp = _stamp(run, Path(records_folder), split, len(source))
    if (folder / "manifest.json").is_file() and manifest(folder).get("made_from") == stamp:
        return load(folder)
    layout = external_suite.layout(source)
    bank = external_suite.bank(source) if layout else sounds.Bank.load(bank_folder)
    records_used = external_suite.usable_records(source) if layout else range(len(source))
    measured = [source[i][1] for i in records_used]
    if layout:
        recordings = external_suite.recordings_by_split(measured, bank.classes)
    else:
        recordings = bank_recordings(bank)
        _check_split(measured, recordings, "test" if split == "benchmark" else "dev")

    def accept(index: int, q: questions.Question) -> bool:
        return audit.answer_in_scene(q, measured[index], bank.classes) == q.answer_text

    selection, left_out = select_items(
        _spec_descriptions(source, measured, bank),
        bank.classes,
        run.bench,
        run.questions,
        run.seed,
        split,
        accept,
        allow_fewer=bool(layout),
    )

    with atomic_path(folder) as temporary:
        (temporary / "audio").mkdir(parents=True)
        used = sorted({index for index, _ in selection})
        with progress(f"writing the {split} suite", len(used), "scenes") as advance:
            for index in used:
                path = temporary / _file_name(measured[index])
                audio = source[records_used[index]][0]
                soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
                advance(1)
        items = _items(selection, measured, temporary)
        if not layout:
            _check_direction(items)
        lines = "".join(json.dumps(_line(item)) + "\n" for item in items)
        (temporary / "metadata.jsonl").write_text(lines, encoding="utf-8")
        report = audit.audit(run, bank, items)
        facts = {
            "split": split,
            "seed": run.seed,
            "scene_source": layout or source.manifest.get("engine", "jaxasa"),
            "sounds": bank.name,
            "items": len(items),
            "levels": dict(collections.Counter(i.level for i in items)),
            "scenes": len(used),
            "seconds": measured[used[0]]["seconds"],
            "channels": int(source[records_used[used[0]]][0].shape[1]),
            "classes": list(bank.classes),
            "recordings": {s: {c: len(r) for c, r in by.items()} for s, by in recordings.items()},
            "left_out": left_out,
            "margin": run.questions.margin,
            "shortcut_probe": {
                kind: {level: s.get(f"{kind}_only") for level, s in report["levels"].items()}
                for kind in shortcut_probe.TEXT_FEATURES
            },
            "made_from": stamp,
            "made_by": made_by(),
        }
        (temporary / "card.md").write_text(card.text(items, facts, report), encoding="utf-8")
        facts["files"] = {
            str(p.relative_to(temporary)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(temporary.rglob("*"))
            if p.is_file()
        }
        facts["sha256_of"] = {
            "audio": _digest([h for p, h in facts["files"].items() if p.endswith(".flac")]),
            "questions": _digest([[i.id, i.question, i.options, i.answer] for i in items]),
        }
        facts["sha256"] = _digest(facts["files"])
        (temporary / "manifest.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        # Not among the files with a checksum: scores of systems are added to it.
        (temporary / audit.FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return load(folder)


def _spec_descriptions(source: records.Records, measured: Sequence[dict], bank) -> Sequence[dict]:
    """Descriptions of the scene specs; the measured ones if the scenes were rendered elsewhere."""
    if "scenes" not in source.manifest:
        return measured
    return [scenes.describe(specs.scene_of_record(source, i, bank)) for i in range(len(source))]


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _stamp(run: config.Run, records_folder: Path, split: str, count: int) -> str:
    path = records_folder / records.MANIFEST
    manifest = records.read_manifest(records_folder) if path.is_file() else {}
    manifest.pop("made_by", None)
    return _digest(
        {
            "bench": config.settings(run.bench, "data"),
            "questions": config.settings(run.questions, "data"),
            "seed": run.seed,
            "split": split,
            "scenes": count,
            "records": manifest,
        }
    )


def bank_recordings(bank) -> dict[str, dict[str, set[str]]]:
    """The source recordings of a sound bank: split -> class -> recording ids."""
    recordings: dict[str, dict[str, set[str]]] = {}
    for split in ("train", "dev", "test"):
        by_class = recordings.setdefault(split, {c: set() for c in bank.classes})
        for clip in bank.clips(split):
            by_class[clip.label].add(clip.recording_id)
    return recordings


def _check_split(scenes, recordings, own: str) -> None:
    """Raises ConfigError if a source recording of the suite is in another split."""
    for scene in scenes:
        for s in scene["sources"]:
            for split, by_class in recordings.items():
                if (s["recording_id"] in by_class.get(s["class"], ())) != (split == own):
                    raise ConfigError(
                        f"scene {scene['id']}: recording {s['recording_id']!r} of {s['class']} is "
                        f"{'in' if split != own else 'not in'} the {split} split of the sound "
                        f"bank, expected only recordings of {own}"
                    )


def _check_direction(items: Sequence[Item]) -> None:
    """Raises ConfigError if too few items of a level depend on direction."""
    for level in config.LEVELS:
        directions = [i.direction for i in items if i.level == level]
        share = sum(directions) / len(directions)
        expected = f"at least {MIN_DIRECTION_SHARE} of the items of {level}"
        config.check(share >= MIN_DIRECTION_SHARE, "direction", share, expected)


def _file_name(scene: dict) -> str:
    return f"audio/{scene['id'].replace('/', '-')}.flac"


def _items(selection, scenes: Sequence[dict], folder: Path) -> list[Item]:
    counters: collections.Counter[str] = collections.Counter()
    items = []
    for index, q in selection:
        counters[q.task] += 1
        items.append(
            Item(
                id=f"{q.level}-{q.task}-{counters[q.task]:03d}",
                level=q.level,
                task=q.task,
                question=q.question,
                options=q.options,
                answer=q.answer,
                direction=q.direction,
                scene=scenes[index],
                template_args=q.template_args or {},
                open_answer=_open_answer(q),
                file=folder / _file_name(scenes[index]),
            )
        )
    return items


def _line(item: Item) -> dict:
    names = (
        *("id", "level", "task", "question", "direction", "options", "answer", "scene"),
        *("template_args", "open_answer"),
    )
    return {"file_name": _file_name(item.scene)} | {n: getattr(item, n) for n in names}


def _open_answer(q: questions.Question) -> dict | None:
    """Key to an answer without options (bench/open_ended.py)."""
    if q.open_answer is None:
        return None
    kind, value = q.open_answer
    return {"kind": kind, "value": value, "text": q.answer_text}
