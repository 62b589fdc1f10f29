# SPDX-License-Identifier: Apache-2.0
"""Input pipeline of training, on grain: data set -> examples -> batches of this process.

    source            random-access data set; source[i] is an element, such as a stored scene
      | SkipDamaged   a record that cannot be read is replaced by the next one
      | make_example  the stage's transform (data/transforms.py): element -> example
      | mixture       part of the examples come from other data sets
    example           dict of numpy arrays
      | batch         examples stacked along a new axis B; each process reads its own rows
    batch             dict of numpy arrays [B, ...]

Given its data and options, example i of a stage is a function of (seed, purpose, i): the same for
any number of processes and threads, and after a restart. So the state of the iterator, which
checkpoints store, is a position.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.data.records import DamagedRecord

GOLDEN_RATIO = (5**0.5 - 1) / 2
MAX_SKIPPED = 1000  # elements in a row of which no example can be made

Example = dict[str, np.ndarray]
# (element, random generator, progress from 0 to 1) -> example
MakeExample = Callable[[Any, np.random.Generator, float], Example | None]


class MixtureComponent(NamedTuple):
    """A further data set in the mixture: it gives the fraction `weight` of the examples.

    source, make_example: as for `Batches`. Its examples must have the same arrays as the others,
    and make_example must not return None. start: fraction of training after which it is used.
    """

    source: Any
    make_example: MakeExample
    weight: float
    start: float = 0.0


class Batches:
    """Endless iterator over training batches, with a state for checkpoints.

    source: the main data set. make_example(element, rng, progress): returns the example of an
        element, or None to use the next element instead; progress is the fraction of training
        done, 0 to 1.
    seed, purpose: with the number of an example, the key of its random generator.
    batch_size: b, of all processes together. Process p of n reads rows [p b / n, (p + 1) b / n) of
        each batch; concatenated, they are the batch of a single process.
    total_examples: of the whole training, to compute `progress`.
    shuffle: in a new order in each epoch; otherwise in the order of `source`.
    mixture: other data sets; the main one gives what is left of the examples.
    max_damaged: number of records of each data set that may be damaged, see `SkipDamaged`.

    Raises ConfigError if the batch size is not a multiple of the number of processes; later, if
    no example can be made of `MAX_SKIPPED` elements in a row, or for too many damaged records.
    """

    def __init__(
        self,
        source: Sequence,
        make_example: MakeExample,
        seed: int,
        purpose: str,
        batch_size: int,
        *,
        total_examples: int,
        shuffle: bool = True,
        mixture: Sequence[MixtureComponent] = (),
        max_damaged: int = 0,
    ):
        processes = jax.process_count()
        if batch_size % processes:
            raise ConfigError(f"batch_size is {batch_size}, expected a multiple of {processes}")
        self._source = SkipDamaged(source, max_damaged)
        self._make_example = make_example
        self._key = seed, purpose
        self._total_examples = total_examples
        self._mixture = [c._replace(source=SkipDamaged(c.source, max_damaged)) for c in mixture]

        positions = grain.MapDataset.range(len(source)).seed(seed)
        positions = positions.shuffle() if shuffle else positions
        data = positions.repeat(None).map_with_index(self._example)
        if processes > 1:
            data = _ProcessRows(data, batch_size, jax.process_index(), processes)
            data = grain.MapDataset.source(data)
        data = data.batch(batch_size // processes, drop_remainder=True)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._iterator = iter(data.to_iter_dataset(options))

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        return next(self._iterator)

    def get_state(self) -> Mapping[str, Any]:
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._iterator.set_state(state)

    def _example(self, index: int, position: int) -> Example | None:
        """Example `index` of the training; `position` is where shuffling takes it from."""
        rng = keys.rng(*self._key, index)
        progress = min(1.0, index / self._total_examples)
        component = self._component(index, progress)
        if component is not None:
            element = component.source[int(rng.integers(len(component.source)))]
            return component.make_example(element, rng, progress)
        for step in range(MAX_SKIPPED):
            element = self._source[(position + step) % len(self._source)]
            example = self._make_example(element, rng, progress)
            if example is not None:
                return example
        raise _no_example(MAX_SKIPPED)

    def _component(self, index: int, progress: float) -> MixtureComponent | None:
        """The mixture component that gives example `index`; None for the main data set."""
        # Multiples of the golden ratio modulo 1 are spread more evenly than random numbers: any
        # run of examples has nearly the right number from each component.
        u = (index * GOLDEN_RATIO + 0.5) % 1.0
        for component in self._mixture:
            if progress >= component.start:
                if u < component.weight:
                    return component
                u -= component.weight
        return None


class _ProcessRows:
    """The examples that one process reads: its rows of each batch of `data`, one after another."""

    def __init__(self, data, batch_size: int, process: int, processes: int):
        self._examples, self._batch_size, self._processes = data, batch_size, processes
        self._rows = batch_size // processes
        self._first_row = process * self._rows

    def __len__(self) -> int:
        return sys.maxsize // self._processes  # endless

    def __getitem__(self, index: int):
        batch, row = divmod(index.__index__(), self._rows)
        return self._examples[batch * self._batch_size + self._first_row + row]


class SkipDamaged:
    """A view of `source` with the next readable element in place of a damaged one.

    Each damaged record is reported on stderr once. Raises ConfigError at the first one beyond
    `max_damaged`, and if all are damaged.
    """

    def __init__(self, source: Sequence, max_damaged: int):
        self._source, self._max_damaged = source, max_damaged
        self._damaged: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        for step in range(self._max_damaged + 1):
            position = (index + step) % len(self)
            try:
                return self._source[position]
            except DamagedRecord as error:
                self._count(position, error)
        raise AssertionError("unreachable: _count raises first")

    def _count(self, position: int, error: DamagedRecord) -> None:
        with self._lock:
            is_new = position not in self._damaged
            self._damaged.add(position)
            count = len(self._damaged)
        limit = self._max_damaged
        if count > limit or count == len(self):
            expected = f"expected at most {limit} (Stage.max_damaged_records)"
            raise ConfigError(f"{error}; {count} damaged, {expected}") from error
        if is_new:
            print(f"skipped {count} of at most {limit}: {error}", file=sys.stderr, flush=True)


def eval_batch(
    source: Sequence, make_example: MakeExample, seed: int, purpose: str, count: int
) -> Example:
    """The fixed batch for evaluation: the first `count` examples of `source`, at progress 1.

    count: capped at len(source). If no example can be made of some elements, the batch is filled up
    with further examples of the others, with new random numbers. Raises ConfigError if no example
    can be made at all.
    """
    count = min(count, len(source))
    examples: list[Example] = []
    for i in range(MAX_SKIPPED * count):
        example = make_example(source[i % len(source)], keys.rng(seed, purpose, i), 1.0)
        if example is not None:
            examples.append(example)
        if len(examples) == count or (not examples and i >= max(len(source), MAX_SKIPPED)):
            break
    if not examples:
        raise _no_example(len(source))
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _no_example(count: int) -> ConfigError:
    return ConfigError(
        f"Questions.tasks: {count} scenes in a row support no question of these types, expected "
        "more types, such as class_present"
    )
