"""The course of a stage: which scenes and which levels of questions come early, and which late.

All of it follows from how much of the stage is done, `done` from 0 to 1, and so from the index of
an example: what is read ahead, and what a resumed run reads, is the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxasa.config import check
from jaxasa.core import keys


def between(ends: Sequence, done: float) -> np.ndarray:
    """What lies between the two `ends` (numbers or rows of them) when `done` of the way is past."""
    first, last = np.asarray(ends[0], float), np.asarray(ends[1], float)
    return first + (last - first) * done


def overlap(scene: Mapping) -> float:
    """Share of the time with any source in which two or more are heard, 0 to 1."""
    edges = [(s["onset"], 1) for s in scene["sources"]]
    edges += [(s["offset"], -1) for s in scene["sources"]]
    sounding = [0.0, 0.0]
    count, before = 0, 0.0
    for time, change in sorted(edges):
        if count:
            sounding[count > 1] += time - before
        count, before = count + change, time
    return sounding[1] / max(sum(sounding), 1e-9)


# How hard a scene is in one respect: more is harder.
FACETS = {
    "sources": lambda scene: len(scene["sources"]),
    "overlap": overlap,
    "rt60": lambda scene: scene["rt60"],
    "snr": lambda scene: -scene["snr"],
}


def easiest_first(scenes: Sequence[Mapping], facets: Sequence[str]) -> np.ndarray:
    """Indices of `scenes` from easy to hard: by the mean of their ranks in each of `facets`."""
    ranks = np.zeros(len(scenes))
    for facet in facets:
        _, place = np.unique([FACETS[facet](scene) for scene in scenes], return_inverse=True)
        ranks += place / max(place.max(), 1)
    return np.argsort(ranks, kind="stable")


def pick(rows: Mapping[str, np.ndarray], levels: Sequence[int]) -> dict[str, np.ndarray]:
    """Of examples with a question of each level, the one of the level that each row is to have.

    rows: "prompt", "reply", "level" [B, Q, ...] and others [B, ...]; levels: [B], indices.
    Where a scene has no question of a level, the first of the others stands for it.
    """
    wanted = (rows["level"] == np.asarray(levels)[:, None]).argmax(1)
    chosen = {
        name: np.take_along_axis(
            rows[name], wanted.reshape(-1, *[1] * (rows[name].ndim - 1)), axis=1
        )
        for name in ("prompt", "reply", "level")
    }
    return {**rows, **chosen}


class Promotion:
    """Batches whose mix of levels moves on with success instead of with steps.

    batches: examples with a question of each level. levels: shares at the beginning and at the
    end. After every `window` steps in which at least `promote` of the answers were right on
    average, the mix moves by `STRIDE` of the way. Where it stands is part of its state.
    """

    STRIDE = 0.2

    def __init__(self, batches, levels: Sequence, promote: float, window: int, seed: int):
        self._batches, self._levels, self._seed = batches, levels, seed
        self._promote, self._window = promote, window
        self._drawn, self.done, self._successes = 0, 0.0, []

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rows = next(self._batches)
        shares = between(self._levels, self.done)
        rng = keys.rng(self._seed, "levels", self._drawn)
        self._drawn += 1
        # Those of all processes, so that each row has its level however many share the batch.
        own, count = len(rows["level"]), jax.process_count()
        levels = rng.choice(len(shares), own * count, p=shares / shares.sum())
        return pick(rows, levels[own * jax.process_index() :][:own])

    def report(self, success: float) -> None:
        """Takes note of the share of right answers in a step."""
        self._successes.append(float(success))
        if len(self._successes) >= self._window:
            if np.mean(self._successes) >= self._promote:
                self.done = min(1.0, self.done + self.STRIDE)
            self._successes = []

    def get_state(self) -> dict:
        own = {"drawn": self._drawn, "done": self.done, "successes": list(self._successes)}
        return {"examples": self._batches.get_state(), "promotion": own}

    def set_state(self, state: Mapping) -> None:
        saved = "promotion" in state
        expected = "0, with which the checkpoint was made: or another --workdir"
        check(saved, "GrpoStage.promote", self._promote, expected)
        self._batches.set_state(state["examples"])
        own = state["promotion"]
        self._drawn, self.done = own["drawn"], own["done"]
        self._successes = list(own["successes"])


@dataclass(frozen=True)
class Pace:
    """From easy scenes to all of them.

    order: indices of the scenes, the easiest first. shares: of them that are drawn from at the
    beginning and at the end of a stage.
    """

    order: np.ndarray
    shares: tuple[float, float]

    def __call__(self, index: int, done: float) -> int:
        """The scene that stands for `index`, drawn uniformly among all."""
        count = max(1, round(float(between(self.shares, done)) * len(self.order)))
        return int(self.order[index * count // len(self.order)])
