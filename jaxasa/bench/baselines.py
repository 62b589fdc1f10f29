# SPDX-License-Identifier: Apache-2.0
"""Baselines of the benchmark: answers by rules, from a description of the scene.

    oracle    reads the metadata; its answers must all be correct
    slots     reads the slots and room heads of the spatial encoder, without the decoder
    cascade   reads the sound classes that the semantic encoder's tagger detects, and the directions
              of the peaks of intensity histograms over the frames of each (bench/classical.py); it
              does not estimate distance, and takes the geometric mean of the distance range

A question that a description does not support, or whose answer is not among the options, is
answered at random.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxasa.acoustics import foa
from jaxasa.bench import classical, run, suite
from jaxasa.core import keys
from jaxasa.core.files import atomic_write_text
from jaxasa.core.progress import progress
from jaxasa.data import questions

TAG_THRESHOLD = 0.5  # probability from which a class counts as present
MAX_SOURCES = 3
_BATCH = 32


def description_baseline(
    describe: Callable[[np.ndarray], list[dict]],
    classes: Sequence[str],
    title: str,
    out: Path | None = None,
) -> run.Baseline:
    """A baseline that answers from describe(audio [B, N, C]) -> descriptions of the scenes.

    out: a file to write the descriptions to, {"file_name", "scene"} a line.
    """

    def answers(items: Sequence[suite.Item]) -> dict[str, str]:
        files = sorted({item.file for item in items})
        by_file = {item.file: item for item in items}
        descriptions: dict[Path, dict] = {}
        with progress(f"answering: {title}", len(files), "scenes") as advance:
            for start in range(0, len(files), _BATCH):
                part = files[start : start + _BATCH]
                padded = part + [part[-1]] * (_BATCH - len(part))
                batch = describe(np.stack([by_file[file].audio() for file in padded]))
                descriptions |= dict(zip(part, batch, strict=False))
                advance(len(part))
        if out is not None:
            rows = ({"file_name": suite.name_of(f), "scene": descriptions[f]} for f in files)
            out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
        return {item.id: answer_by_rule(item, descriptions[item.file], classes) for item in items}

    return answers


def oracle(classes: Sequence[str]) -> run.Baseline:
    """The baseline that reads the metadata."""
    return lambda items: {item.id: answer_by_rule(item, item.scene, classes) for item in items}


def answer_by_rule(item: suite.Item, scene: Mapping, classes: Sequence[str]) -> str:
    """The letter of the answer that a description gives, or a random one.

    The class among an item's template arguments may be the answer itself. So all classes are
    tried, and those count that lead to the same question. Of several answers that fit, one is
    drawn at random.
    """
    rng = keys.rng(0, "guess", item.rng_key)
    has_class = "class" in item.template_args
    candidates = [{"class": name} for name in classes] if has_class else [{}]
    answers = set()
    for candidate in candidates:
        args = {**item.template_args, **candidate}
        question = questions.reinstantiate(item.task, args, dict(scene), classes, rng, lenient=True)
        if question is not None and question.question == item.question:
            answers.add(question.answer_text)
    places = [i for i, option in enumerate(item.options) if option in answers] or range(4)
    return questions.LETTERS[rng.choice(places)]


def cascade(
    tagger: Callable[[np.ndarray], tuple[np.ndarray, float]],
    classes: Sequence[str],
    distance: tuple[float, float],
) -> Callable[[np.ndarray], list[dict]]:
    """describe(audio) of the cascade, for `description_baseline`.

    tagger(audio [B, N, C]) -> (probabilities [B, T, classes], seconds of the clips). distance: of
    the scenes, (least, most) in metres.
    """
    metres = math.sqrt(distance[0] * distance[1])

    def describe(audio: np.ndarray) -> list[dict]:
        tags, seconds = tagger(audio)
        return [
            _describe_clip(clip, t, classes, seconds, metres)
            for clip, t in zip(audio, tags, strict=True)
        ]

    return describe


def _describe_clip(
    audio: np.ndarray, tags: np.ndarray, classes: Sequence[str], seconds: float, metres: float
) -> dict:
    peaks = tags[:, : len(classes)].max(0)
    order = np.argsort(-peaks)[:MAX_SOURCES]
    present = [k for k in order if peaks[k] >= TAG_THRESHOLD] or [order[0]]
    sources = []
    for k in present:
        active = tags[:, k] >= 0.5 * peaks[k]
        frames = np.flatnonzero(active)
        (peak,) = classical.histogram_peaks(audio, 1, tags[:, k] * active)
        azimuth, elevation = foa.cartesian_to_azel(peak)
        step = seconds / len(tags)
        sources.append(
            {
                "class": classes[k],
                "azimuth": float(azimuth),
                "elevation": float(elevation),
                "distance": metres,
                "onset": float(frames[0] * step),
                "offset": float((frames[-1] + 1) * step),
            }
        )
    return {"seconds": seconds, "sources": sorted(sources, key=lambda s: s["onset"])}
