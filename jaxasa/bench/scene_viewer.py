# SPDX-License-Identifier: Apache-2.0
"""Scenes of the suite for the report: plan view, spectrogram, questions, answers, binaural audio.

A few scenes are drawn at random so that each task occurs, if possible once answered correctly and
once not. Audio is embedded as FLAC up to a limit on the size of the page.
"""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from jaxasa.acoustics import foa_decoder
from jaxasa.acoustics.hrtf import Hrtf
from jaxasa.acoustics.sphere_hrtf import SphereHrtf
from jaxasa.bench import figures, suite
from jaxasa.core import keys
from jaxasa.core.audio import SAMPLE_RATE
from jaxasa.data import records, replies, scene_text
from jaxasa.data.questions import LETTERS
from jaxasa.viz import style

SCENES = 40
MAX_AUDIO_CHARS = 5_500_000  # of base64 in a page
PEAK = 0.5  # of each scene's audio after scaling
STEPS = 2048  # levels of the amplitude: finer than the scenes' noise, coarse enough to compress
_PLAN = 100.0  # radius of the plan view, in its own units
_RIM = 112.0  # radius of the arcs that show claims of the reasoning


def scene_cards(
    items: Sequence[suite.Item],
    predictions: Mapping[str, str],
    descriptions: Mapping[str, dict],
    classes: Sequence[str],
    most: int = SCENES,
) -> list[dict]:
    """Contents of the cards of up to `most` scenes, for the template.

    predictions: replies by item id, of one system; may be empty. descriptions: of the slots, by
    file_name.
    """
    answers = {
        i.id: replies.parse_choice(predictions[i.id], i.options)[0]
        for i in items
        if i.id in predictions
    }
    is_correct = {i.id: answers.get(i.id) == i.answer for i in items}
    selection = _select(items, is_correct, most)
    sources = [s for group in selection.values() for s in group[0].scene["sources"]]
    reach = max(2.0, math.ceil(max((s["distance"] or 0.0) for s in sources)))
    hrtf = SphereHrtf()
    cards, size = [], 0
    for file, group in selection.items():
        audio = group[0].audio() if file.is_file() else None
        sound = picture = None
        if audio is not None:
            sound = _flac(_ears(audio, hrtf)) if size < MAX_AUDIO_CHARS else None
            picture = _uri("image/png", figures.spectrogram_png(_level(audio)))
        size += len(sound or "")
        name = suite.name_of(file)
        questions = [_question(i, predictions.get(i.id), answers.get(i.id)) for i in group]
        card = _scene(group[0].scene, descriptions.get(name), reach)
        card |= {"name": name, "sound": sound, "picture": picture, "questions": questions}
        _add_claims(card, classes)
        cards.append(card)
    return cards


def _select(items: Sequence[suite.Item], is_correct: Mapping[str, bool], most: int) -> dict:
    """file -> its items: a scene of each task, then one more with the other outcome."""
    rng = keys.rng(0, "report")
    by_task: dict[str, list[suite.Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    files: dict[Path, None] = {}
    for is_second, group in itertools.product((False, True), by_task.values()):
        outcomes = {is_correct[i.id] for i in group if i.file in files}
        candidates = [i for i in group if is_correct[i.id] not in outcomes]
        if len(files) < most and candidates and (is_second or not outcomes):
            files[candidates[rng.integers(len(candidates))].file] = None
    return {file: [i for i in items if i.file == file] for file in files}


def _question(item: suite.Item, reply: str | None, letter: str | None) -> dict:
    return {
        "item": item,
        "reply": reply,
        "reasoning": replies.split_reply(reply or "")[0],
        "letter": letter,
        "is_correct": letter == item.answer,
        "options": list(zip(LETTERS, item.options, strict=True)),
    }


def _scene(scene: Mapping, description: Mapping | None, reach: float) -> dict:
    """Sources and slots as marks of the plan (x right, y down) and bars of activity in time."""
    slots = description["sources"] if description else []
    names = dict.fromkeys(s["class"] for s in (*scene["sources"], *slots))
    colours = {name: style.source_colour(n) for n, name in enumerate(names)}
    marks, seconds = [], scene["seconds"]
    for kind, sources in (("source", scene["sources"]), ("slot", slots)):
        for s in sources:
            # Without a known distance, at the rim.
            has_distance = s["distance"] is not None
            flat = s["distance"] * math.cos(math.radians(s["elevation"])) if has_distance else reach
            label = f"{s['class']}, azimuth {s['azimuth']:.0f}°, elevation {s['elevation']:.0f}°"
            label += f", {s['distance']:.1f}\u00a0m" if has_distance else ""
            begin = min(max(s["onset"] / seconds, 0.0), 1.0)
            end = min(max(s["offset"] / seconds, begin), 1.0)
            marks.append(
                {
                    "kind": kind,
                    "colour": colours[s["class"]],
                    "label": label,
                    "begin": round(100 * begin, 1),
                    "width": round(100 * (end - begin), 1),
                    **_point(s["azimuth"], min(flat / reach, 1.0) * _PLAN),
                }
            )
    facts = [f"{len(scene['sources'])} source{'s' * (len(scene['sources']) != 1)}"]
    facts += [f"RT60 {scene['rt60']:.2f} s"] if "rt60" in scene else []
    facts += [f"SNR {scene['snr']:.0f} dB"] if "snr" in scene else []
    near = round(scene_text.NEAR_M / reach * _PLAN, 1)
    return {
        "marks": marks, "colours": colours, "facts": ", ".join(facts), "reach": reach, "near": near,
        "seconds": seconds,
    }  # fmt: skip


def _add_claims(card: dict, classes: Sequence[str]) -> None:
    """Adds to each question of a card the bearings that its reasoning claims, as arcs."""
    half = scene_text.SECTOR_WIDTH / 2 - 2
    for question in card["questions"]:
        question["claims"] = []
        for claim in scene_text.parse_caption(question["reasoning"], classes):
            if claim["sector"] is None:
                continue
            azimuth = scene_text.SECTORS.index(claim["sector"]) * scene_text.SECTOR_WIDTH
            a, b = _point(azimuth + half, _RIM), _point(azimuth - half, _RIM)
            words = (claim["class"], claim["sector"], claim["distance"])
            question["claims"].append(
                {
                    "label": " ".join(word for word in words if word),
                    "colour": card["colours"].get(claim["class"], figures.COLOURS["chance"]),
                    "arc": f"M{a['x']} {a['y']}A{_RIM} {_RIM} 0 0 1 {b['x']} {b['y']}",
                }
            )


def _point(azimuth: float, radius: float) -> dict:
    """Coordinates in the plan: front is up, left is left."""
    angle = math.radians(azimuth)
    x, y = -math.sin(angle) * radius, -math.cos(angle) * radius
    return {"x": round(x, 1) + 0.0, "y": round(y, 1) + 0.0}


def _level(audio: np.ndarray) -> np.ndarray:
    """The spectrogram of W, or of the mean of both ears."""
    return style.spectrogram(audio[:, 0] if audio.shape[1] == 4 else audio.mean(1))


def _ears(audio: np.ndarray, hrtf: Hrtf) -> np.ndarray:
    """Binaural audio [N, 2] of a render, int16 FOA [N, 4] or binaural, scaled to PEAK."""
    sound = records.to_float(audio)
    ears = foa_decoder.decode(sound, hrtf) if sound.shape[1] == 4 else sound
    return ears * (PEAK / max(float(np.abs(ears).max(initial=0.0)), 1e-6))


def _flac(ears: np.ndarray) -> str:
    out = io.BytesIO()
    coarse = np.rint(ears * STEPS) / STEPS
    soundfile.write(out, coarse, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    return _uri("audio/flac", out.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
