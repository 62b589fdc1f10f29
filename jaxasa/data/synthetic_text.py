"""Drills of stage 0: what a decoder that knows nothing must be able to do before it can reason.

    copy    says random words again
    recall  says triples of random words again, in any order, each forwards or backwards
    places  asked by nothing but the order, says where a class is and what is in a sector
    facing  names the sector of one sound for who faces another

Without them a small decoder learns early what the answer must look like, and late, if at all, to
look up in the scene what it depends on (the heads that find what stood beside a word before form
late: Olsson et al., arXiv:2209.11895). Each drill asks for many such look-ups in one reply.
"""

from collections.abc import Sequence

import numpy as np

from jaxasa.data import scene_text, tokens
from jaxasa.data.tokens import Text

Pair = tuple[list[int], list[int]]
_LETTERS = 256  # bytes, which come before the words in a tokenizer trained here


def draw(
    text: Text, classes: Sequence[str], rng: np.random.Generator, prompt_room: int, reply_room: int
) -> Pair:
    """Ids of a prompt of at most `prompt_room` and of a reply of at most `reply_room`.

    Where a prompt is longer another drill is drawn ("facing" has room anywhere). A longer reply is
    cut; others end with the end of sequence.
    """
    while True:
        drill = (_copy, _recall, _places, _facing)[rng.choice(4, p=(0.05, 0.25, 0.5, 0.2))]
        prompt, reply = drill(text, classes, rng)
        if len(prompt) <= prompt_room:
            return prompt, [*reply, text.eos][:reply_room]


def _words(text: Text, count: int, rng) -> list[int]:
    """Ids of so many different words."""
    first = len(tokens.SPECIAL) + _LETTERS
    return (first + rng.permutation(text.size - first)[:count]).tolist()


def _copy(text: Text, classes, rng) -> Pair:
    ids = _words(text, int(rng.integers(4, 20)), rng)
    return ids, ids


def _recall(text: Text, classes, rng) -> Pair:
    count = int(rng.integers(2, 5))
    rows = np.reshape(_words(text, 3 * count, rng), (-1, 3)).tolist()
    said = [rows[k][:: 1 if rng.random() < 0.5 else -1] for k in rng.integers(len(rows), size=6)]
    comma = text.encode(" ,")
    return _joined(rows, comma), _joined(said, comma)


def _joined(rows: Sequence[list[int]], between: list[int]) -> list[int]:
    return [i for row in rows for i in (*row, *between)][: -len(between)]


def _places(text: Text, classes, rng) -> Pair:
    most = min(len(classes), len(scene_text.SECTORS))
    count = int(rng.integers(min(3, most), min(6, most) + 1))
    names = [classes[i] for i in rng.permutation(len(classes))[:count]]
    places = [scene_text.SECTORS[i] for i in rng.permutation(len(scene_text.SECTORS))[:count]]
    far = rng.choice(scene_text.DISTANCES, count)
    scene = " , ".join(" ".join(clause) for clause in zip(names, places, far, strict=True))
    said = [
        f"{names[k]} {places[k]}" if rng.random() < 0.5 else f"{places[k]} {names[k]}"
        for k in rng.integers(count, size=7)
    ]
    return text.encode(f" {scene} ."), text.encode(" " + " ".join(said))


def _facing(text: Text, classes, rng) -> Pair:
    said = []
    for _ in range(4):
        (a, b), (one, two) = (
            rng.permutation(n)[:2] for n in (len(scene_text.SECTORS), len(classes))
        )
        seen = scene_text.SECTORS[(b - a) % len(scene_text.SECTORS)]
        said.append(
            f"{classes[one]} {scene_text.SECTORS[a]} {classes[two]} {scene_text.SECTORS[b]} so {seen}"
        )
    return text.encode(" ."), text.encode(" " + " ".join(said))
