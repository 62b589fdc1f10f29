"""What jobs have taken, and what those that are left will take by that measure.

Each job's folder has a job.json: {"kind", "rate", "units", "seconds", "done"}; seconds add up
over interruptions.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jaxasa.config import ConfigError
from jaxasa.core.files import write_text
from jaxasa.pipeline.ablation.plan import Job


class Log:
    """The job.json files of an ablation in `folder`.

    given: seconds for each unit of a rate that nothing has been measured of yet.
    """

    def __init__(self, folder: Path, given: Mapping[str, float]):
        self._folder, self._given = folder, given

    def of(self, job: Job) -> dict:
        """What is known of a job, {} for nothing. Read anew: another process may have done it."""
        path = job.place(self._folder) / "job.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{path}: {error}, expected JSON; remove it to go on") from None

    def is_done(self, job: Job) -> bool:
        return self.of(job).get("done", False) and job.output(self._folder).exists()

    def seconds(self, job: Job) -> float:
        return self.of(job).get("seconds", 0.0)

    @contextlib.contextmanager
    def timed(self, job: Job) -> Iterator[None]:
        """Around the job's work: its time counts even when it is interrupted or fails."""
        before, begun = self.seconds(job), time.monotonic()
        # What is there may be of an earlier time, or appear long before it is whole.
        self._write(job, before, done=False)
        done = False
        try:
            yield
            done = True
        finally:
            self._write(job, before + time.monotonic() - begun, done)

    def _write(self, job: Job, seconds: float, done: bool) -> None:
        known = {"kind": job.kind, "rate": job.rate, "units": job.units}
        path = job.place(self._folder) / "job.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(known | {"seconds": seconds, "done": done}) + "\n")

    def rates(self, jobs: Iterable[Job]) -> dict[str, float]:
        """Seconds a unit, measured over those of `jobs` that are done."""
        spent: dict[str, list[float]] = {}
        for job in jobs:
            if self.is_done(job):
                total = spent.setdefault(job.rate, [0.0, 0])
                total[0] += self.seconds(job)
                total[1] += job.units
        return {rate: seconds / units for rate, (seconds, units) in spent.items()}

    def expected(self, job: Job, rates: Mapping[str, float]) -> float | None:
        """Seconds that a job will take, less those that it has had; None where nothing tells.

        rates: as `rates` gives them.
        """
        if self.is_done(job):
            return 0.0
        each = rates.get(job.rate, self._given.get(job.rate))
        return None if each is None else max(each * job.units - self.seconds(job), 0.0)
