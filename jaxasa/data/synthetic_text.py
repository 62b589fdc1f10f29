# SPDX-License-Identifier: Apache-2.0
"""Synthetic text tasks of stage 0: look-up skills that a decoder needs before it can reason.

    copy    repeat random words
    recall  repeat random triples of words, in any order, each forwards or backwards
    places  from a list of class, sector and distance, give the sector of a class or the reverse
    facing  give the sector of one sound for a listener who faces another

Without them a small decoder learns early what an answer must look like, but late, if at all, to
look up in the scene what it depends on (induction heads form late: Olsson et al.,
arXiv:2209.11895). Each reply needs many such look-ups.
"""

from collections.abc import Sequence

import numpy as np

from jaxasa.data import scene_text, tokens
from jaxasa.data.tokens import TextTokenizer

Pair = tuple[list[int], list[int]]  # ids of a prompt, ids of its reply
_NUM_BYTES = 256  # ids of single bytes, which precede those of words in a tokenizer trained here


def sample_pair(
    tokenizer: TextTokenizer,
    classes: Sequence[str],
    rng: np.random.Generator,
    max_prompt: int,
    max_reply: int,
) -> Pair:
    """Ids of a prompt and of its reply for a random task.

    If the prompt is longer than `max_prompt`, another task is drawn ("facing" always fits). The
    reply ends with the end of sequence, or is cut at `max_reply`.
    """
    while True:
        task = (_copy, _recall, _places, _facing)[rng.choice(4, p=(0.05, 0.25, 0.5, 0.2))]
        prompt, reply = task(tokenizer, classes, rng)
        if len(prompt) <= max_prompt:
            return prompt, [*reply, tokenizer.eos_id][:max_reply]


def _random_words(tokenizer: TextTokenizer, count: int, rng) -> list[int]:
    """Ids of different words."""
    first = len(tokens.SPECIAL) + _NUM_BYTES
    return (first + rng.permutation(tokenizer.vocab_size - first)[:count]).tolist()


def _copy(tokenizer: TextTokenizer, classes, rng) -> Pair:
    ids = _random_words(tokenizer, int(rng.integers(4, 20)), rng)
    return ids, ids


def _recall(tokenizer: TextTokenizer, classes, rng) -> Pair:
    count = int(rng.integers(2, 5))
    rows = np.reshape(_random_words(tokenizer, 3 * count, rng), (-1, 3)).tolist()
    reply = [rows[k][:: 1 if rng.random() < 0.5 else -1] for k in rng.integers(len(rows), size=6)]
    comma = tokenizer.encode(" ,")
    return _join(rows, comma), _join(reply, comma)


def _join(rows: Sequence[list[int]], separator: list[int]) -> list[int]:
    return [i for row in rows for i in (*row, *separator)][: -len(separator)]


def _places(tokenizer: TextTokenizer, classes, rng) -> Pair:
    most = min(len(classes), len(scene_text.SECTORS))
    count = int(rng.integers(min(3, most), min(6, most) + 1))
    names = [classes[i] for i in rng.permutation(len(classes))[:count]]
    sectors = [scene_text.SECTORS[i] for i in rng.permutation(len(scene_text.SECTORS))[:count]]
    distances = rng.choice(scene_text.DISTANCE_NAMES, count)
    scene = " , ".join(" ".join(clause) for clause in zip(names, sectors, distances, strict=True))
    reply = [
        f"{names[k]} {sectors[k]}" if rng.random() < 0.5 else f"{sectors[k]} {names[k]}"
        for k in rng.integers(count, size=7)
    ]
    return tokenizer.encode(f" {scene} ."), tokenizer.encode(" " + " ".join(reply))


def _facing(tokenizer: TextTokenizer, classes, rng) -> Pair:
    sectors, reply = scene_text.SECTORS, []
    for _ in range(4):
        (a, b), (one, two) = (rng.permutation(n)[:2] for n in (len(sectors), len(classes)))
        answer = sectors[(b - a) % len(sectors)]
        reply.append(f"{classes[one]} {sectors[a]} {classes[two]} {sectors[b]} so {answer}")
    return tokenizer.encode(" ."), tokenizer.encode(" " + " ".join(reply))
