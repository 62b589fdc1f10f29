# SPDX-License-Identifier: Apache-2.0
"""Simulation on Apache Beam: every runner writes the same bytes as the local processes.

Needs `pip install 'jaxasa[beam]'`. A worker renders complete shards and passes on their manifest
entries; the last step writes the manifest, so no machine holds more than that list. Workers must
have jaxasa, and see the sound bank and the data set's folder under the same paths as the launching
machine (a network file system, or a mounted bucket).

    jaxasa simulate --workdir /mnt/shared/run --split train --runner DirectRunner \\
        -- --direct_num_workers=4 --direct_running_mode=multi_processing
    jaxasa simulate --workdir /mnt/shared/run --split train --runner FlinkRunner \\
        -- --flink_master=head:8081 --parallelism=512 --environment_type=LOOPBACK
"""

from collections.abc import Iterable, Sequence

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from jaxasa.config import ConfigError
from jaxasa.data.shard_plan import ShardPlan

_GROUP = 1000  # shards that one element of the first step stands for


def render_shards(plan: ShardPlan, runner: str, options: Sequence[str] = ()) -> None:
    """Renders the missing shards of `plan` and writes its manifest on a Beam runner; blocks.

    options: as on a pipeline's command line ("--direct_num_workers=4"). Raises ConfigError for a
    runner or an option that Beam does not have, and if the pipeline fails because of the user's
    settings.
    """
    parsed = _parse_options(options)
    try:
        pipeline = apache_beam.Pipeline(runner=runner, options=parsed)
    except ValueError as error:
        raise ConfigError(f"--runner {runner}: {error}") from None
    num_shards = plan.num_shards()
    with pipeline:
        entries = (
            pipeline
            # Only the first shard of each group: runners limit the size of a pipeline itself.
            | "groups" >> apache_beam.Create(range(0, num_shards, _GROUP))
            | "shards" >> apache_beam.FlatMap(_group, _GROUP, num_shards)
            # Otherwise a runner may fuse the list with the work, and give it all to one worker.
            | "spread" >> apache_beam.Reshuffle()
            | "render" >> apache_beam.Map(_render_shard, plan)
        )
        _ = (
            pipeline
            | "once" >> apache_beam.Create([plan])
            | "manifest" >> apache_beam.Map(_write_manifest, apache_beam.pvalue.AsList(entries))
        )


def _group(first: int, size: int, num_shards: int) -> Iterable[int]:
    return range(first, min(first + size, num_shards))


def _render_shard(k: int, plan: ShardPlan) -> dict:
    return plan.render_shard(k)


def _write_manifest(plan: ShardPlan, entries: list[dict]) -> None:
    plan.write_manifest(entries)


def _parse_options(flags: Sequence[str]) -> PipelineOptions:
    # Beam ignores unknown options except for a line in its log.
    parsed = PipelineOptions(list(flags))
    options = parsed.get_all_options(retain_unknown_options=True)
    unknown = sorted(set(options) - set(parsed.get_all_options()))
    unknown += [flag for flag in flags[:1] if not flag.startswith("--")]
    if unknown:
        raise ConfigError(f"--runner: {', '.join(unknown)}: Apache Beam has no such option")
    return parsed
