"""Scenes to look at and listen to: plan, spectrogram, questions, answers, and sound for two ears.

A few scenes of the suite are drawn by chance so that each task is there, and where it can be, once
answered right and once wrong. Sound goes into the page as FLAC, until it is heavy enough.
"""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from jaxasa.acoustics import foa_decoder, hrtf
from jaxasa.bench import figures, score, suite
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import records, scene_text
from jaxasa.viz import style

SCENES = 40
MOST = 5_500_000  # characters of sound in a page
PEAK = 0.5  # to which each scene's sound is brought for the page
STEPS = 2048  # of its amplitude: finer than the scenes' noise, and FLAC stores no more
_PLAN = 100.0  # radius of the plan view, in its own units
_RIM = 112.0  # of the arcs that show what the reasoning claims


def scenes(
    items: Sequence[suite.Item],
    predictions: Mapping[str, str],
    heard: Mapping[str, dict],
    classes: Sequence[str],
    most: int = SCENES,
) -> list[dict]:
    """What the page shows of up to `most` scenes.

    predictions: replies by id, of one system, or none. heard: file_name -> the slots' description.
    """
    read = {i.id: score.parse_answer(predictions[i.id], i.options) for i in items if i.id in predictions}
    right = {i.id: i.id in read and read[i.id][0] == i.answer for i in items}
    chosen = _choose(items, right, most)
    sources = [s for file in chosen for s in chosen[file][0].scene["sources"]]
    reach = max(2.0, math.ceil(max((s["distance"] or 0.0) for s in sources)))
    head = hrtf.Sphere()
    cards, size = [], 0
    for file, asked in chosen.items():
        there = file.is_file()
        audio = asked[0].audio() if there else None
        sound = _flac(_ears(audio, head)) if there and size < MOST else None
        size += len(sound or "")
        name = suite.name_of(file)
        questions = [_question(item, predictions.get(item.id), read.get(item.id)) for item in asked]
        cards.append(
            _scene(asked[0].scene, heard.get(name), reach)
            | {"name": name, "sound": sound, "questions": questions}
            | {"picture": _uri("image/png", figures.png(_level(audio))) if there else None}
        )
        _claims(cards[-1], classes)
    return cards


def _choose(items: Sequence[suite.Item], right: Mapping[str, bool], most: int) -> dict:
    """file -> its items: a scene of each task, then one more where the outcome was the other."""
    rng = keys.rng(0, "report")
    by_task: dict[str, list[suite.Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    chosen: dict[Path, None] = {}
    for is_second, group in itertools.product((False, True), by_task.values()):
        seen = {right[i.id] for i in group if i.file in chosen}
        left = [i for i in group if right[i.id] not in seen]
        if len(chosen) < most and left and (is_second or not seen):
            chosen[left[rng.integers(len(left))].file] = None
    return {file: [i for i in items if i.file == file] for file in chosen}


def _question(item: suite.Item, text: str | None, read: tuple | None) -> dict:
    return {
        "item": item,
        "text": text,
        "reasoning": score.reasoning_of(text or ""),
        "letter": read[0] if read else None,
        "right": read is not None and read[0] == item.answer,
        "options": list(zip(score.LETTERS, item.options, strict=True)),
    }


def _scene(scene: Mapping, heard: Mapping | None, reach: float) -> dict:
    """Sources and slots as marks of the plan (x right, y down) and bars of activity in time."""
    said = heard["sources"] if heard else []
    names = dict.fromkeys(s["class"] for s in (*scene["sources"], *said))
    colours = {name: style.source_colour(n) for n, name in enumerate(names)}
    marks, seconds = [], scene["seconds"]
    for kind, found in (("true", scene["sources"]), ("slot", said)):
        for s in found:
            # At the rim, where how far it is is not known.
            known = s["distance"] is not None
            flat = s["distance"] * math.cos(math.radians(s["elevation"])) if known else reach
            up = f"{s['elevation']:+.0f}°\u00a0up"
            far = f", {s['distance']:.1f}\u00a0m" if known else ""
            begin = min(max(s["onset"] / seconds, 0.0), 1.0)
            end = min(max(s["offset"] / seconds, begin), 1.0)
            marks.append(
                {
                    "kind": kind,
                    "colour": colours[s["class"]],
                    "label": f"{s['class']} {s['azimuth']:.0f}°, {up}{far}",
                    "begin": round(100 * begin, 1),
                    "width": round(100 * (end - begin), 1),
                    **_place(s["azimuth"], min(flat / reach, 1.0) * _PLAN),
                }
            )
    facts = [f"{len(scene['sources'])} source{'s' * (len(scene['sources']) != 1)}"]
    facts += [f"RT60 {scene['rt60']:.2f} s"] if "rt60" in scene else []
    facts += [f"SNR {scene['snr']:.0f} dB"] if "snr" in scene else []
    near = round(scene_text.NEAR / reach * _PLAN, 1)
    return {
        "marks": marks, "colours": colours, "facts": ", ".join(facts), "reach": reach, "near": near,
        "seconds": seconds,
    }  # fmt: skip


def _claims(card: dict, classes: Sequence[str]) -> None:
    """Adds to each question of a card the arcs of what its reasoning claims."""
    half = scene_text.SECTOR_WIDTH / 2 - 2
    for question in card["questions"]:
        question["claims"] = []
        for claim in scene_text.claims(question["reasoning"], classes):
            if claim["sector"] is None:
                continue
            azimuth = scene_text.SECTORS.index(claim["sector"]) * scene_text.SECTOR_WIDTH
            a, b = _place(azimuth + half, _RIM), _place(azimuth - half, _RIM)
            said = " ".join(v for v in (claim["class"], claim["sector"], claim["distance"]) if v)
            question["claims"].append(
                {
                    "label": said,
                    "colour": card["colours"].get(claim["class"], figures.COLOURS["chance"]),
                    "arc": f"M{a['x']} {a['y']}A{_RIM} {_RIM} 0 0 1 {b['x']} {b['y']}",
                }
            )


def _place(azimuth: float, radius: float) -> dict:
    """Front is up, left is left."""
    angle = math.radians(azimuth)
    x, y = -math.sin(angle) * radius, -math.cos(angle) * radius
    return {"x": round(x, 1) + 0.0, "y": round(y, 1) + 0.0}


def _level(audio: np.ndarray) -> np.ndarray:
    """The spectrogram of W, or of the mean of two ears."""
    return style.spectrogram(audio[:, 0] if audio.shape[1] == 4 else audio.mean(1))


def _ears(audio: np.ndarray, head: hrtf.Hrtf) -> np.ndarray:
    """Two ears [N, 2] of a render, int16 FOA [N, 4] or ears, brought to PEAK."""
    sound = records.to_float(audio)
    ears = foa_decoder.decode(sound, head) if sound.shape[1] == 4 else sound
    return ears * (PEAK / max(float(np.abs(ears).max(initial=0.0)), 1e-6))


def _flac(ears: np.ndarray) -> str:
    out = io.BytesIO()
    coarse = np.rint(ears * STEPS) / STEPS
    soundfile.write(out, coarse, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    return _uri("audio/flac", out.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
