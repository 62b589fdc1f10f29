# SPDX-License-Identifier: Apache-2.0
"""Perturbations of a suite: changed audio, and the answers that are correct for it.

A perturbation gives each item other audio. If it is geometric (the sound field is rotated or
mirrored), it also transforms the description of the scene and derives the answer from it again.
The original answer stays among the options, so that a system that ignores direction can be
detected: it keeps choosing the original answer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxasa.acoustics import foa, scenes
from jaxasa.bench.suite import Item
from jaxasa.core import keys
from jaxasa.core.audio import FULL_SCALE
from jaxasa.data import questions

NUM_YAWS = 12  # random yaws tried for a scene; the one that keeps the most of its items is used


@dataclass(frozen=True)
class PerturbedSuite:
    """A suite with other audio.

    items: those that the perturbed scenes support, in the suite's order and under their ids.
    audio(item): the perturbed audio of an item, int16 [N, C].
    original_answer: id -> letter of the item's original answer among the new options, for items
        whose answer the perturbation changes while the question stays the same.
    """

    items: Sequence[Item]
    audio: Callable[[Item], np.ndarray]
    original_answer: Mapping[str, str] = dataclasses.field(default_factory=dict)


# (items, class names) -> the perturbed suite
Perturbation = Callable[[Sequence[Item], Sequence[str]], PerturbedSuite]


def identity(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """The suite as it is."""
    return PerturbedSuite(items, Item.audio)


def shuffle_channels(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """Exchanges the directional channels: Z, X, Y in place of Y, Z, X."""
    return PerturbedSuite(items, lambda item: item.audio()[:, [0, 2, 3, 1]])


def swap_scenes(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """Replaces the audio of every scene by that of another scene."""
    files = sorted({item.file for item in items})
    order = keys.rng(0, "other audio").permutation(len(files))
    # Each file is replaced by its neighbour in a random cycle, hence never by itself.
    substitute = {files[a]: files[b] for a, b in zip(order, np.roll(order, 1), strict=True)}

    def audio(item: Item) -> np.ndarray:
        return dataclasses.replace(item, file=substitute[item.file]).audio()

    return PerturbedSuite(items, audio)


def rotation(yaw: float | None) -> Perturbation:
    """A rotation of the sound field by `yaw` degrees; None: by a random yaw for each scene."""

    def rotate(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
        by_scene: dict[str, list[Item]] = {}
        for item in items:
            by_scene.setdefault(item.scene["id"], []).append(item)
        yaws: dict[str, float] = {}
        rekeyed: Rekeyed = {}
        for name, group in by_scene.items():
            rng = keys.rng(0, "turned", name)
            angles = [yaw] if yaw is not None else rng.uniform(-180, 180, NUM_YAWS).tolist()
            best: Rekeyed = {}
            for angle in angles:
                scene = scenes.rotate_scene(group[0].scene, angle)
                candidate = _rekey(group, scene, classes)
                if name not in yaws or len(candidate) > len(best):
                    yaws[name], best = angle, candidate
                if len(best) == len(group):
                    break
            rekeyed |= best

        def audio(item: Item) -> np.ndarray:
            return _int16(foa.rotate(item.audio().astype(float), yaws[item.scene["id"]]))

        return _perturbed_suite(items, rekeyed, audio)

    return rotate


def mirror(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """Exchanges left and right."""
    rekeyed: Rekeyed = {}
    for item in items:
        rekeyed |= _rekey([item], _mirror_scene(item.scene), classes)
    flip = np.array([1, -1, 1, 1], np.int16)
    # Renders stay within -32767 to 32767, so negation cannot overflow.
    return _perturbed_suite(items, rekeyed, lambda item: item.audio() * flip)


def _mirror_scene(scene: dict) -> dict:
    sources = []
    for source in scene["sources"]:
        flipped = {"azimuth": foa.wrap_azimuth(-source["azimuth"])}
        if "doa_trajectory" in source:
            flipped["doa_trajectory"] = [
                [foa.wrap_azimuth(-a), *rest] for a, *rest in source["doa_trajectory"]
            ]
        sources.append({**source, **flipped})
    if "yaw" in scene:
        scene = {**scene, "yaw": [foa.wrap_azimuth(-yaw) for yaw in scene["yaw"]]}
    return {**scene, "sources": sources}


# id -> (item with the answer of the transformed scene, letter of its original answer or None)
Rekeyed = dict[str, tuple[Item, str | None]]


def _rekey(group: Sequence[Item], scene: dict, classes: Sequence[str]) -> Rekeyed:
    """The items with the answers that the transformed `scene` gives to their questions.

    Items that the scene does not support without ambiguity are left out. The letter is None if
    the answer, or the question itself, does not allow a comparison with the original.
    """
    rekeyed: Rekeyed = {}
    for item in group:
        rng = keys.rng(0, "anew", item.rng_key)
        question = questions.reinstantiate(item.task, item.template_args, scene, classes, rng)
        if question is None:
            continue
        candidates = [question.answer_text, item.answer_text]
        # For "true_statement", original distractors may be true of the transformed scene.
        distractors = question.options if item.task == "true_statement" else item.options
        candidates += [option for option in distractors if option not in candidates]
        candidates = list(dict.fromkeys(candidates))[:4]
        options = tuple(candidates[i] for i in rng.permutation(4))
        letter = questions.LETTERS[options.index(question.answer_text)]
        is_same_question = question.question == item.question
        original = None
        if is_same_question and question.answer_text != item.answer_text:
            original = questions.LETTERS[options.index(item.answer_text)]
        new_item = dataclasses.replace(
            item, question=question.question, options=options, answer=letter, scene=scene
        )
        rekeyed[item.id] = new_item, original
    return rekeyed


def _perturbed_suite(
    items: Sequence[Item], rekeyed: Rekeyed, audio: Callable[[Item], np.ndarray]
) -> PerturbedSuite:
    pairs = [rekeyed[item.id] for item in items if item.id in rekeyed]
    original_answer = {item.id: letter for item, letter in pairs if letter is not None}
    return PerturbedSuite([item for item, _ in pairs], audio, original_answer)


def _int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(audio), -FULL_SCALE, FULL_SCALE).astype(np.int16)
