# SPDX-License-Identifier: Apache-2.0
"""Commands that train, or try a training first: demo, train, preflight, plan."""

import argparse

from jaxasa.cli import options
from jaxasa.cli.options import Result
from jaxasa.config import STAGES, ConfigError
from jaxasa.core.workdir import WorkFolder


def add_commands(commands) -> None:
    _add_demo(commands)
    _add_train(commands)
    _add_preflight(commands)
    _add_plan(commands)


def _add_demo(commands) -> None:
    command = options.add_command(
        commands,
        "demo",
        run_demo,
        "Run the whole pipeline, from sounds to report; finished steps are kept.",
        reads="nothing; resumes what is in DIR",
        writes="DIR: sounds, scenes, checkpoints, logs, benchmark, results.json, report, export",
        examples=["jaxasa demo --workdir runs/smoke --gin_file gin/run/smoke.gin"],
    )
    options.add_workdir(command)
    options.add_gin(command)


def run_demo(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline import demo

    run, text = options.load_config(args)
    return demo.run_demo(run, args.workdir, text)


def _add_train(commands) -> None:
    command = options.add_command(
        commands,
        "train",
        train,
        "Train one stage, from its last checkpoint if there is one.",
        reads="DIR/sounds, DIR/scenes (except stage text) and the checkpoint of the stage before",
        writes="DIR/checkpoints/STAGE and DIR/logs/STAGE",
        examples=[
            "jaxasa train text --workdir runs/mine",
            "jaxasa train spatial --workdir runs/mine --gin.SpatialStage.steps=300",
        ],
    )
    command.add_argument("stage", choices=STAGES, metavar="STAGE", help="one of: %(choices)s")
    command.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="trace N steps into DIR/logs/STAGE/profile, for TensorBoard",
    )
    options.add_workdir(command)
    options.add_gin(command)


def train(args: argparse.Namespace) -> Result:
    from jaxasa.parallel import distributed

    distributed.initialize()
    run, text, work = options.open_workdir(args)
    if args.stage not in run.stages:
        raise ConfigError(
            f"stage is {args.stage!r}, expected one of Run.stages ({', '.join(run.stages)})"
        )
    from jaxasa.pipeline import steps

    steps.train(run, work, args.stage, text, args.profile)
    checkpoint = work.checkpoint(args.stage)
    print(f"stage {args.stage} is trained: {checkpoint}")
    return {"stage": args.stage, "checkpoint": str(checkpoint)}


def _add_preflight(commands) -> None:
    command = options.add_command(
        commands,
        "preflight",
        run_preflight,
        "Try every stage of a run: two steps with evaluation, save and restore between them.",
        reads="sounds and scenes of DIR if it has them; otherwise it uses synthetic ones",
        writes="nothing but the file of --json",
        examples=["jaxasa preflight --gin_file gin/run/demo.gin"],
    )
    options.add_workdir(command, required=False)
    options.add_gin(command)


def run_preflight(args: argparse.Namespace) -> Result:
    from jaxasa.pipeline import preflight

    run, text = options.load_config(args)
    source = WorkFolder(args.workdir) if args.workdir else None
    return preflight.run_preflight(run, source, text)


def _add_plan(commands) -> None:
    command = options.add_command(
        commands,
        "plan",
        plan,
        "Compile a stage's step for TPUs that need not be there: does it fit, and how fast is it?",
        reads="gin files alone; whether it fits is known with libtpu (pip install 'jaxasa[plan]')",
        writes="nothing but the file of --json; exit code 3 if the step does not fit",
        examples=[
            "jaxasa plan --gin_file gin/run/base.gin --stage sft --topology v5e:16x16 "
            "\"--gin.Model.remat='dots'\"",
            "jaxasa plan --gin_file gin/run/base.gin --stage rollout --topology v5e:16x16",
        ],
    )
    command.add_argument("--topology", required=True, metavar="CHIP:AxBxC", help="e.g. v5e:16x16")
    command.add_argument(
        "--stage",
        metavar="STAGE",
        help="a training stage, or rollout (the sampling of stage grpo); default: the last of "
        "Run.stages",
    )
    options.add_gin(command)


def plan(args: argparse.Namespace) -> Result:
    from jaxasa.plan import planner

    run, _ = options.load_config(args)
    result = planner.plan(run, args.topology, args.stage)
    print(planner.format_table(result))
    return result
