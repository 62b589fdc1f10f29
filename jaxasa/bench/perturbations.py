"""What controls do to a suite's sound, and which answers are then right.

A change gives each item the sound that a system hears in its place, and the item that this
sound supports: where the field is turned or mirrored, the scene's description is too, and the
answer follows from it anew. The answer before the change stays among the options, so that a
system that does not listen to direction can be told by it.
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

NUM_YAWS = 12  # random yaws of a scene, of which the one that keeps the most of its items is taken


@dataclass(frozen=True)
class PerturbedSuite:
    """items: those that the changed sound supports, in the suite's order, under their ids.

    sound(item): int16 [N, C] for the item of that id. before: id -> letter of the answer before
    the change, for items whose question is the same and whose answer is not.
    """

    items: Sequence[Item]
    sound: Callable[[Item], np.ndarray]
    before: Mapping[str, str] = dataclasses.field(default_factory=dict)


def identity(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """Nothing is changed."""
    return PerturbedSuite(items, Item.audio)


def shuffle_channels(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """The channels of direction are exchanged: Z, X, Y stand where Y, Z, X are expected."""
    return PerturbedSuite(items, lambda item: item.audio()[:, [0, 2, 3, 1]])


def swap_scenes(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """Every scene is heard in place of another one."""
    files = sorted({item.file for item in items})
    order = keys.rng(0, "other audio").permutation(len(files))
    # The next in a random circle: never its own.
    instead = {files[a]: files[b] for a, b in zip(order, np.roll(order, 1), strict=True)}
    return PerturbedSuite(items, lambda item: dataclasses.replace(item, file=instead[item.file]).audio())


def rotation(yaw: float | None) -> Callable[[Sequence[Item], Sequence[str]], PerturbedSuite]:
    """The field is turned by `yaw` degrees; None: by a random yaw of each scene."""

    def change(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
        by_scene: dict[str, list[Item]] = {}
        for item in items:
            by_scene.setdefault(item.scene["id"], []).append(item)
        yaws: dict[str, float] = {}
        made: dict[str, tuple[Item, str | None]] = {}
        for name, group in by_scene.items():
            rng = keys.rng(0, "turned", name)
            angles = [yaw] if yaw is not None else rng.uniform(-180, 180, NUM_YAWS).tolist()
            best: dict[str, tuple[Item, str | None]] = {}
            for angle in angles:
                scene = scenes.turn(group[0].scene, angle)
                found = _anew(group, scene, classes)
                if name not in yaws or len(found) > len(best):
                    yaws[name], best = angle, found
                if len(best) == len(group):
                    break
            made |= best

        def sound(item: Item) -> np.ndarray:
            return _int16(foa.rotate(item.audio().astype(float), yaws[item.scene["id"]]))

        return _changed(items, made, sound)

    return change


def mirror(items: Sequence[Item], classes: Sequence[str]) -> PerturbedSuite:
    """Left and right are exchanged."""
    made: dict[str, tuple[Item, str | None]] = {}
    for item in items:
        made |= _anew([item], _mirror(item.scene), classes)
    flip = np.array([1, -1, 1, 1], np.int16)
    # -32767 is the lowest value of a render, so that its mirror image fits.
    return _changed(items, made, lambda item: item.audio() * flip)


def _mirror(scene: dict) -> dict:
    sources = []
    for source in scene["sources"]:
        flipped = {"azimuth": foa.wrap(-source["azimuth"])}
        if "trajectory" in source:
            flipped["trajectory"] = [[foa.wrap(-a), *rest] for a, *rest in source["trajectory"]]
        sources.append({**source, **flipped})
    if "yaw" in scene:
        scene = {**scene, "yaw": [foa.wrap(-yaw) for yaw in scene["yaw"]]}
    return {**scene, "sources": sources}


def _anew(group: Sequence[Item], scene: dict, classes: Sequence[str]) -> dict:
    """id -> (item on the changed `scene`, letter of the answer before, None where it is the same).

    Items that the scene does not support without ambiguity are left out.
    """
    found: dict[str, tuple[Item, str | None]] = {}
    for item in group:
        rng = keys.rng(0, "anew", item.id)
        asked = questions.again(item.task, item.about, scene, classes, rng)
        if asked is None:
            continue
        kept = [asked.answer_text, item.answer_text]
        # Of claims about the scene, those that were wrong may be true now.
        others = asked.options if item.task == "claim" else item.options
        kept += [o for o in others if o not in kept]
        kept = list(dict.fromkeys(kept))[:4]
        options = tuple(kept[i] for i in rng.permutation(4))
        letter = questions.LETTERS[options.index(asked.answer_text)]
        is_other = asked.question == item.question and asked.answer_text != item.answer_text
        before = questions.LETTERS[options.index(item.answer_text)] if is_other else None
        now = dataclasses.replace(
            item, question=asked.question, options=options, answer=letter, scene=scene
        )
        found[item.id] = now, before
    return found


def _changed(items: Sequence[Item], made: Mapping, sound) -> PerturbedSuite:
    kept = [made[item.id] for item in items if item.id in made]
    before = {item.id: letter for item, letter in kept if letter is not None}
    return PerturbedSuite([item for item, _ in kept], sound, before)


def _int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(audio), -FULL_SCALE, FULL_SCALE).astype(np.int16)
