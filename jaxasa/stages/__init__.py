"""The curriculum: text (tiny only), spatial, align, sft, grpo. `train` runs one of them.

Each stage is a file with `task(context) -> common.Task`: its batches, its step, its evaluation.
"""

import dataclasses
import shutil
from pathlib import Path

import jax

from jaxasa import config, loop, mesh, state
from jaxasa.config import ConfigError
from jaxasa.data.mixing import Mixed
from jaxasa.data.records import Records
from jaxasa.data.sounds import Bank
from jaxasa.models.asa import ASA
from jaxasa.stages import align, grpo, sft, spatial, start, text
from jaxasa.stages.common import Context

TASKS = {
    "text": text.task,
    "spatial": spatial.task,
    "align": align.task,
    "sft": sft.task,
    "grpo": grpo.task,
}


def train(run: config.Run, stage: str, workdir: str | Path, config_text: str) -> state.State:
    """Trains `stage` in `workdir`, from where stages/start.py says.

    Raises ConfigError where the sounds, scenes or checkpoints that it builds on are missing.
    """
    folder = Path(workdir)
    options: config.Stage = getattr(run, stage)
    bank = Bank.load(folder / "sounds")
    most = run.model.spatial.classes
    if len(bank.classes) > most:
        raise ConfigError(f"Spatial.classes is {most}, expected at least {len(bank.classes)}")
    needs_scenes = stage != "text"
    context = Context(
        run=run,
        stage=options,
        asa=ASA(run.model),
        mesh=mesh.make(run.mesh),
        text=start.tokenizer(run, bank, folder),
        classes=bank.classes,
        clips=bank.clips("train"),
        train=_train_scenes(run, folder) if needs_scenes else None,
        dev=Records(folder / "scenes" / "dev") if needs_scenes else None,
    )
    out = folder / "checkpoints" / stage
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    meta = {
        "stage": stage,
        "classes": list(bank.classes),
        "seconds": run.scenes.seconds,
        "sounds": bank.name,
        "model": dataclasses.asdict(run.model),
        "tokenizer": "tokenizer.json",
    }
    with jax.set_mesh(context.mesh):
        return loop.train(
            TASKS[stage](context),
            start.at(run, stage, folder, context.asa, context.mesh, bank.classes),
            options,
            folder=out,
            logs=folder / "logs" / stage,
            meta=meta,
            config_text=config_text,
            seed=run.seed,
        )


def _train_scenes(run: config.Run, folder: Path) -> Records | Mixed:
    """The scenes of train: stored, or mixed from DIR/responses where Scenes.responses is set."""
    if run.scenes.responses:
        return Mixed(run.scenes, folder / "sounds", folder / "responses", run.seed)
    return Records(folder / "scenes" / "train")
