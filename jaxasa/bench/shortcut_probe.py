# SPDX-License-Identifier: Apache-2.0
"""Shortcut probe: classifiers that answer from the text of the questions alone.

Logistic regression on hashed features of each option takes the option with the highest score.
It is trained on items selected like the suite's, of other scenes, and tested on yet others.
Chance is a quarter; an accuracy above it is a shortcut.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from jaxasa.data.questions import LETTERS

NUM_HASHES = 2**16


def ngrams(text: str) -> list[str]:
    """Words and pairs of neighbouring words."""
    words = text.split()
    return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]


def text_features(item, option: str) -> Iterator[str]:
    """Features of question and option, and of their combination."""
    yield option
    question, answer = ngrams(item.question), [option, *ngrams(option)]
    for a in answer:
        yield f"option {a}"
        yield from (f"{q} / {a}" for q in question)
    yield f"named {sum(w in item.question.split() for w in option.split())}"


def option_features(item, option: str) -> Iterator[str]:
    """Features of the four options, without the question."""
    yield option
    for other in item.options:
        if other != option:
            yield f"{option} / {other}"
            yield from (f"{a} / {b}" for a in ngrams(option) for b in ngrams(other))


def position_features(item, option: str) -> Iterator[str]:
    """The letter of the option alone."""
    yield LETTERS[item.options.index(option)]


TEXT_FEATURES: dict[str, Callable] = {
    "text": text_features,
    "options": option_features,
    "position": position_features,
}


def _matrix(items: Sequence, features: Callable) -> scipy.sparse.csr_matrix:
    """[4 items, NUM_HASHES]: one row per option, each of its n features being n**-0.5."""
    columns: list[int] = []
    values: list[float] = []
    ends = [0]
    for item in items:
        for option in item.options:
            hashes = {zlib.crc32(f.encode()) % NUM_HASHES for f in features(item, option)}
            columns += hashes
            values += [len(hashes) ** -0.5] * len(hashes)
            ends.append(len(columns))
    shape = (len(ends) - 1, NUM_HASHES)
    return scipy.sparse.csr_matrix((values, columns, ends), shape, dtype=np.float32)


def fit(items: Sequence, features: Callable) -> Callable[[Sequence], np.ndarray]:
    """Trains a classifier; returns hits(items) -> bool [items], whether it answers each correctly.

    Items have `question`, `options` and `answer`, a letter.
    """
    is_answer = np.array([i.answer == letter for i in items for letter in LETTERS])
    model = LogisticRegression(C=10.0, max_iter=100).fit(_matrix(items, features), is_answer)

    def hits(test: Sequence) -> np.ndarray:
        scores = model.decision_function(_matrix(test, features)).reshape(-1, len(LETTERS))
        answers = np.array([LETTERS.index(i.answer) for i in test])
        return scores.argmax(1) == answers

    return hits


def measure(train: Sequence, test: Sequence) -> dict[str, np.ndarray]:
    """Hits on `test`, bool [items], for each of TEXT_FEATURES after training on `train`."""
    return {name: fit(train, features)(test) for name, features in TEXT_FEATURES.items()}
