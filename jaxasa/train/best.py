# SPDX-License-Identifier: Apache-2.0
"""The checkpoint of the best evaluation, separate from the latest ones.

It is a folder of its own (`checkpoints/STAGE/best`), which export and benchmark can read like any
checkpoint. A preservation policy of orbax would leave it among the latest steps, from which
training resumes.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.train import checkpoint
from jaxasa.train.state import TrainState

# Evaluations whose names end so; of all others, such as losses and angles, lower is better.
HIGHER_IS_BETTER = ("accuracy", "recall", "L1", "L2", "L3")


class BestCheckpoint:
    """Keeps the state of the best evaluation of `metric` in `folder`; does nothing for "".

    A context manager. Raises ConfigError if `folder` is of another metric.
    """

    def __init__(self, metric: str, folder: Path):
        self._metric, self._folder = metric, folder
        self._manager: checkpoint.CheckpointManager | None = None
        self._best = -math.inf

    def __enter__(self) -> "BestCheckpoint":
        if self._metric:
            self._manager = checkpoint.CheckpointManager(self._folder, keep=1)
            if self._manager.latest_step() is not None:
                saved = self._manager.meta()["best"]
                expected = f"{saved['name']!r}, the metric of {self._folder}; or remove that folder"
                ok = saved["name"] == self._metric
                config.check(ok, "Stage.best_metric", self._metric, expected)
                self._best = self._goodness(saved["value"])
        return self

    def __exit__(self, *_) -> None:
        if self._manager is not None:
            self._manager.__exit__(None, None, None)

    def _goodness(self, value: float) -> float:
        return value if self._metric.endswith(HIGHER_IS_BETTER) else -value

    def update(
        self,
        step: int,
        evaluation: Mapping[str, float] | None,
        state: TrainState,
        data_state: Mapping,
        meta: Mapping,
        config_text: str,
    ) -> None:
        """Saves `state` if its `evaluation` is the best so far.

        Raises ConfigError if `evaluation` lacks the metric.
        """
        if self._manager is None:
            return
        if evaluation is None or self._metric not in evaluation:
            raise ConfigError(
                f"Stage.best_metric is {self._metric!r}, expected one of the evaluations "
                f"{', '.join(evaluation or ['(none)'])}"
            )
        value = float(evaluation[self._metric])
        if self._goodness(value) > self._best:
            self._best = self._goodness(value)
            best = {"name": self._metric, "value": value, "step": step}
            self._manager.save(step, state, data_state, {**meta, "best": best}, config_text)
            # Complete before the loop's own checkpoint of this step: a kill in between would lose
            # it, since the resumed run does not evaluate that step again.
            self._manager.wait()
