"""Simulation on Apache Beam: every runner writes the bytes that the local pool writes.

Needs `pip install 'jaxasa[beam]'`. A worker makes whole shards and hands on their manifest
entries; the last step writes the manifest, so no machine holds more than that list. Workers must
have jaxasa, and see the sound bank and the data set's folder under the paths that the launching
machine sees (a network file system, or a mounted bucket).

    jaxasa simulate --workdir /mnt/shared/run --split train --runner DirectRunner \\
        -- --direct_num_workers=4 --direct_running_mode=multi_processing
    jaxasa simulate --workdir /mnt/shared/run --split train --runner FlinkRunner \\
        -- --flink_master=head:8081 --parallelism=512 --environment_type=LOOPBACK
"""

from collections.abc import Iterable, Sequence

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from jaxasa.config import ConfigError
from jaxasa.data.simulate import Plan

_STEP = 1000


def run(plan: Plan, runner: str, options: Sequence[str] = ()) -> None:
    """Makes the missing shards of `plan` on a Beam runner, and its manifest; waits for the end.

    options: as on a pipeline's command line ("--direct_num_workers=4"). Raises `ConfigError`
    for a runner or an option that Beam does not know, and where the pipeline fails for a reason
    that is the user's.
    """
    parsed = _options(options)
    try:
        pipeline = apache_beam.Pipeline(runner=runner, options=parsed)
    except ValueError as error:
        raise ConfigError(f"--runner {runner}: {error}") from None
    with pipeline:
        entries = (
            pipeline
            # The first shard of each thousand: runners limit how much a pipeline itself may hold.
            | "thousands" >> apache_beam.Create(range(0, plan.shards(), _STEP))
            | "shards" >> apache_beam.FlatMap(_following, _STEP, plan.shards())
            # Without it a runner may fuse the list with the work, and give it all to one worker.
            | "spread" >> apache_beam.Reshuffle()
            | "render" >> apache_beam.Map(_make, plan)
        )
        _ = (
            pipeline
            | "once" >> apache_beam.Create([plan])
            | "manifest" >> apache_beam.Map(_close, apache_beam.pvalue.AsList(entries))
        )


def _following(first: int, step: int, shards: int) -> Iterable[int]:
    return range(first, min(first + step, shards))


def _make(k: int, plan: Plan) -> dict:
    return plan.make(k)


def _close(plan: Plan, entries: list[dict]) -> None:
    plan.close(entries)


def _options(flags: Sequence[str]) -> PipelineOptions:
    # Beam drops what it does not know with no more than a line in its log.
    parsed = PipelineOptions(list(flags))
    kept = parsed.get_all_options(retain_unknown_options=True)
    unknown = sorted(set(kept) - set(parsed.get_all_options()))
    unknown += [flag for flag in flags[:1] if not flag.startswith("--")]
    if unknown:
        raise ConfigError(f"--runner: {', '.join(unknown)}: Apache Beam has no such option")
    return parsed
