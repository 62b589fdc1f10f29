"""Baselines of the benchmark: answers by rules, from a description of the scene.

    oracle    reads the metadata; it must be always right
    slots     reads what the spatial encoder's slots and room heads say, without a decoder
    cascade   names what the tagger of the semantic encoder hears and when, and points to where an
              intensity histogram of those moments has its peak (bench/classical.py); distance is
              not estimated: the geometric mean of the range of distances stands for it

A description that does not support the question, or whose answer is not among the options, is
answered by a guess.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.acoustics import foa
from jaxasa.bench import classical, run, suite
from jaxasa.core import keys
from jaxasa.core.files import write_text
from jaxasa.core.progress import progress
from jaxasa.data import questions

TAGGED = 0.5  # probability from which a class counts as heard
MOST = 3


def reader(describe, classes: Sequence[str], title: str, out: Path | None = None) -> run.Reader:
    """A baseline that answers from describe(audio [B, N, C]) -> descriptions of the scenes.

    out: the descriptions go to this file, {"file_name", "scene"} a line.
    """

    def answers(items: Sequence[suite.Item]) -> dict[str, str]:
        files = sorted({item.file for item in items})
        first = {item.file: item for item in items}
        found: dict[Path, dict] = {}
        with progress(f"answering: {title}", len(files), "scenes") as advance:
            for start in range(0, len(files), 32):
                part = files[start : start + 32]
                padded = part + [part[-1]] * (32 - len(part))
                heard = describe(np.stack([first[file].audio() for file in padded]))
                found |= dict(zip(part, heard, strict=False))
                advance(len(part))
        if out is not None:
            rows = ({"file_name": suite.name_of(f), "scene": found[f]} for f in files)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
        return {item.id: by_rule(item, found[item.file], classes) for item in items}

    return answers


def oracle(classes: Sequence[str]) -> run.Reader:
    """The baseline that reads the metadata."""
    return lambda items: {item.id: by_rule(item, item.scene, classes) for item in items}


def by_rule(item: suite.Item, scene: Mapping, classes: Sequence[str]) -> str:
    """The letter of the answer that a description gives, or a guess.

    The class that an item is about may be what it asks for. So any is tried, and those count with
    which the question would read as it does. Where several answers fit, one is guessed.
    """
    rng = keys.rng(0, "guess", item.id)
    tried = [{"class": name} for name in classes] if "class" in item.about else [{}]
    fitting = set()
    for one in tried:
        about = {**item.about, **one}
        asked = questions.again(item.task, about, dict(scene), classes, rng, lenient=True)
        if asked is not None and asked.question == item.question:
            fitting.add(asked.answer_text)
    places = [i for i, option in enumerate(item.options) if option in fitting] or range(4)
    return questions.LETTERS[rng.choice(places)]


def cascade(hear, classes: Sequence[str], distance: tuple[float, float]):
    """describe(audio) of the cascade. hear(audio) -> (tags [B, T, classes] as probabilities,
    seconds); distance: range in metres."""
    metres = math.sqrt(distance[0] * distance[1])

    def describe(audio: np.ndarray) -> list[dict]:
        tags, seconds = hear(audio)
        return [
            _tagged(clip, t, classes, seconds, metres) for clip, t in zip(audio, tags, strict=True)
        ]

    return describe


def _tagged(
    audio: np.ndarray, tags: np.ndarray, classes: Sequence[str], seconds: float, metres: float
) -> dict:
    peaks = tags[:, : len(classes)].max(0)
    order = np.argsort(-peaks)[:MOST]
    named = [k for k in order if peaks[k] >= TAGGED] or [order[0]]
    sources = []
    for k in named:
        active = tags[:, k] >= 0.5 * peaks[k]
        where = np.flatnonzero(active)
        azimuth, elevation = foa.direction(classical.histogram(audio, 1, tags[:, k] * active)[0])
        step = seconds / len(tags)
        sources.append(
            {
                "class": classes[k],
                "azimuth": float(azimuth),
                "elevation": float(elevation),
                "distance": metres,
                "onset": float(where[0] * step),
                "offset": float((where[-1] + 1) * step),
            }
        )
    return {"seconds": seconds, "sources": sorted(sources, key=lambda s: s["onset"])}
