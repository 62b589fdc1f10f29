"""Whether questions give themselves away: classifiers that read words and never hear a scene.

Each scores every option of an item by logistic regression on hashed words and takes the best;
it learns from items drawn like the suite's, of other scenes, and is tested on yet others.
Chance is a quarter: what passes it is a leak.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from jaxasa.data.questions import LETTERS

WIDTH = 2**16


def grams(text: str) -> list[str]:
    """Words and pairs of neighbouring words."""
    words = text.split()
    return [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]


def of_text(item, option: str) -> Iterator[str]:
    """What a reader of question and option sees, and how they go together."""
    yield option
    asked, answer = grams(item.question), [option, *grams(option)]
    for a in answer:
        yield f"option {a}"
        yield from (f"{q} / {a}" for q in asked)
    yield f"named {sum(w in item.question.split() for w in option.split())}"


def of_options(item, option: str) -> Iterator[str]:
    """What a reader of the four options alone sees."""
    yield option
    for other in item.options:
        if other != option:
            yield f"{option} / {other}"
            yield from (f"{a} / {b}" for a in grams(option) for b in grams(other))


def of_position(item, option: str) -> Iterator[str]:
    """Which letter the option has."""
    yield LETTERS[item.options.index(option)]


READERS: dict[str, Callable] = {
    "text": of_text,
    "options": of_options,
    "position": of_position,
}


def _matrix(items: Sequence, reader: Callable) -> scipy.sparse.csr_matrix:
    """[4 items, WIDTH]: a row an option, 1 / sqrt(features) at each of its features."""
    columns, values, ends = [], [], [0]
    for item in items:
        for option in item.options:
            found = {zlib.crc32(f.encode()) % WIDTH for f in reader(item, option)}
            columns += found
            values += [len(found) ** -0.5] * len(found)
            ends.append(len(columns))
    shape = (len(ends) - 1, WIDTH)
    return scipy.sparse.csr_matrix((values, columns, ends), shape, dtype=np.float32)


def fit(items: Sequence, reader: Callable) -> Callable[[Sequence], np.ndarray]:
    """Learns from `items`; returns hits(items) -> bool [items].

    Items have `question`, `options` and `answer`, a letter.
    """
    right = np.array([i.answer == letter for i in items for letter in LETTERS])
    model = LogisticRegression(C=10.0, max_iter=100).fit(_matrix(items, reader), right)

    def hits(others: Sequence) -> np.ndarray:
        score = model.decision_function(_matrix(others, reader)).reshape(-1, len(LETTERS))
        keys = np.array([LETTERS.index(i.answer) for i in others])
        return score.argmax(1) == keys

    return hits


def measure(train: Sequence, test: Sequence) -> dict[str, np.ndarray]:
    """Hits on `test`, bool [items], of each of READERS after it learnt from `train`."""
    return {name: fit(train, reader)(test) for name, reader in READERS.items()}
