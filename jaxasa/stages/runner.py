"""The curriculum: text (tiny only), spatial, align, sft, grpo. `train` runs one of them.

Each stage is a file with `task(context) -> common.Task`: its batches, its step, its evaluation.
"""

import dataclasses
import shutil
from pathlib import Path

import jax

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core import keys
from jaxasa.core.workdir import scenes_of
from jaxasa.data import pipeline
from jaxasa.data.dynamic_mixing import Mixed
from jaxasa.data.records import Records
from jaxasa.data.sounds import Bank
from jaxasa.models import flops
from jaxasa.models.asa import ASA
from jaxasa.parallel import chips, mesh
from jaxasa.stages import align, grpo, initial_state, sft, spatial, text
from jaxasa.stages.common import Context
from jaxasa.train import loop, state

TASKS = {
    "text": text.task,
    "spatial": spatial.task,
    "align": align.task,
    "sft": sft.task,
    "grpo": grpo.task,
}
BALANCED = ("sft", "grpo")  # stages that weigh their questions


def train(
    run: config.Run, stage: str, workdir: str | Path, config_text: str, profile: int = 0
) -> state.State:
    """Trains `stage` in `workdir`, from where stages/initial_state.py says.

    profile: steps to trace (loop.train).
    Raises ConfigError where the sounds, scenes or checkpoints that it builds on are missing.
    """
    folder = Path(workdir)
    context = prepare(run, stage, folder)
    with jax.set_mesh(context.mesh):
        task = TASKS[stage](context)
        return fit(context, task, context.stage, folder, config_text, profile)


def prepare(run: config.Run, stage: str, folder: Path) -> Context:
    """What `stage` builds its task from, out of a work folder. Raises ConfigError as `train`."""
    bank = Bank.load(folder / "sounds")
    most = run.model.spatial.num_classes
    if len(bank.classes) > most:
        raise ConfigError(f"Spatial.num_classes is {most}, expected at least {len(bank.classes)}")
    options = getattr(run, stage)
    needs_scenes, clips, asking = stage != "text", bank.clips("train"), None
    if stage in BALANCED:
        asking = pipeline.balanced(run.scenes, clips, bank.classes, run.seed, run.questions)
    dev = None
    if needs_scenes:
        dev = pipeline.Readable(Records(scenes_of(run, folder, "dev")), options.max_damaged_records)
    return Context(
        run=run,
        stage=options,
        asa=ASA(run.model),
        mesh=mesh.make(run.mesh),
        text=initial_state.tokenizer(run, bank, folder),
        classes=bank.classes,
        clips=clips,
        train=_train_scenes(run, folder, stage) if needs_scenes else None,
        dev=dev,
        asking=asking,
    )


def fit(
    context: Context,
    task: loop.Task,
    options: config.Stage,
    folder: Path,
    config_text: str,
    profile: int = 0,
) -> state.State:
    """Trains `task` as `options` say, in a mesh that is set; see `train`."""
    run, stage = context.run, task.name
    out = folder / "checkpoints" / stage
    for place in [out, out / "best"] if options.best_metric else [out]:
        place.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            shutil.copyfile(folder / "tokenizer.json", place / "tokenizer.json")
    meta = {
        "stage": stage,
        "classes": list(context.classes),
        "seconds": run.scenes.seconds,
        "sounds": Bank.load(folder / "sounds").name,
        "model": dataclasses.asdict(run.model),
        "tokenizer": "tokenizer.json",
        "pretrained": {k: v for k, v in dataclasses.asdict(run.pretrained).items() if v},
    }
    return loop.train(
        task,
        initial_state.at(run, stage, folder, context.asa, context.mesh, context.classes),
        options,
        folder=out,
        logs=folder / "logs" / stage,
        meta=meta,
        config_text=config_text,
        seed=run.seed,
        profile=profile,
        full=_full_speed(context, stage),
    )


def _full_speed(context: Context, stage: str) -> float | None:
    """Steps a second if every device did nothing but the model's own products, at its peak.

    None where the chip is not known.
    """
    peak = chips.peak(jax.devices()[0].device_kind)
    if peak is None:
        return None
    run = context.run
    shapes = jax.eval_shape(lambda key: context.asa.init(key), jax.random.key(0))
    work = flops.model_flops(run, stage, shapes)
    if stage == "grpo":
        work = run.grpo.num_iterations * work + flops.model_flops(run, "rollout", shapes)
    return peak * context.mesh.size / work


def _train_scenes(run: config.Run, folder: Path, stage: str) -> Records | Mixed:
    """The scenes of train: stored, or mixed from DIR/responses where Scenes.rir_rooms is set.

    Stored ones are the same in all stages. Each stage mixes its own: what hears is then asked about
    scenes that it was not trained on.
    """
    if run.scenes.rir_rooms:
        own = int(keys.rng(run.seed, "mixed scenes", stage).integers(2**31))
        return Mixed(run.scenes, folder / "sounds", folder / "responses", own)
    return Records(scenes_of(run, folder, "train"))
