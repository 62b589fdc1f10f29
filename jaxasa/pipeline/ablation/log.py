# SPDX-License-Identifier: Apache-2.0
"""What the jobs of an ablation have taken, and estimates of those that are left.

Each job's folder has a job.json: {"kind", "units", "seconds", "done"}; seconds add up over
interruptions.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping

from jaxasa.config import ConfigError
from jaxasa.core.files import atomic_write_json
from jaxasa.core.workdir import WorkFolder
from jaxasa.pipeline.ablation.plan import Job


class Log:
    """The job.json files of an ablation.

    estimates: kind of job -> seconds a unit, until one of that kind has been measured.
    """

    def __init__(self, whole: WorkFolder, estimates: Mapping[str, float]):
        self._whole, self._estimates = whole, estimates

    def read(self, job: Job) -> dict:
        """The job.json of a job, {} if it has none. Read anew: another process may have done it."""
        path = job.work(self._whole).path / "job.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ConfigError(
                f"{path}: {error}, expected JSON; remove the file and run again"
            ) from None

    def is_done(self, job: Job) -> bool:
        return self.read(job).get("done", False) and job.output(self._whole).exists()

    def seconds(self, job: Job) -> float:
        return self.read(job).get("seconds", 0.0)

    @contextlib.contextmanager
    def record(self, job: Job) -> Iterator[None]:
        """Around the job's work: its time counts even if it is interrupted or fails."""
        before, start = self.seconds(job), time.monotonic()
        # Its output may be of an earlier time, or appear long before it is whole.
        self._write(job, before, is_done=False)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            self._write(job, before + time.monotonic() - start, is_done)

    def _write(self, job: Job, seconds: float, is_done: bool) -> None:
        path = job.work(self._whole).path / "job.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"kind": job.kind, "units": job.units, "seconds": seconds, "done": is_done}
        atomic_write_json(path, entry)

    def seconds_per_unit(self, jobs: Iterable[Job]) -> dict[str, float]:
        """kind -> seconds a unit, measured over those of `jobs` that are done."""
        sums: dict[str, list[float]] = {}
        for job in jobs:
            if self.is_done(job):
                total = sums.setdefault(job.kind, [0.0, 0])
                total[0] += self.seconds(job)
                total[1] += job.units
        return {kind: seconds / units for kind, (seconds, units) in sums.items()}

    def remaining(self, job: Job, measured: Mapping[str, float]) -> float | None:
        """Estimated seconds that a job will still take; None without any estimate of its kind.

        measured: of `seconds_per_unit`.
        """
        if self.is_done(job):
            return 0.0
        each = measured.get(job.kind, self._estimates.get(job.kind))
        return None if each is None else max(each * job.units - self.seconds(job), 0.0)
