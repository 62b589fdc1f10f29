# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the only use of orbax.

A folder (`checkpoints/STAGE`) holds a folder per step, each one composite of
    state   step, parameters, optimizer state, reference parameters if any (arrays),
    data    state of the data iterator, which is the same in every process (JSON),
    about   meta and resolved config (JSON),
and also `meta.json` and `config.gin` of the latest step. A step appears under its number only when
it is complete (written under a temporary name, then renamed).
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxasa import config
from jaxasa.config import ConfigError
from jaxasa.core.files import atomic_write_json, atomic_write_text, folder_rename_errors
from jaxasa.core.workdir import output_of
from jaxasa.train.state import TrainState

META, CONFIG = "meta.json", "config.gin"  # of the latest step
# A file of each item of a complete step.
_ITEM_FILES = {"state": "_METADATA", "data": "metadata", "about": "metadata"}
_MAX_FAULTS = 4  # in an error message
# Entries of `meta` in which a run may differ from the checkpoint that it resumes from.
_NOT_COMPARED = {"made_by", *config.speed_options(config.Model, "model")}

# Orbax warns of each option that reading only implies, and logs the traceback of an error several
# times before it raises it; its other errors are still logged.
logging.getLogger("absl").addFilter(
    lambda record: (
        "orbax" not in record.pathname or (record.levelno >= logging.ERROR and not record.exc_info)
    )
)


class CheckpointManager:
    """The checkpoints of one stage, around orbax's manager.

    Writing is asynchronous; as a context manager it ends when everything is written. Incomplete
    steps of an earlier run are removed with a warning; the last `keep` complete ones stay.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder).resolve()
        if jax.process_index() == 0:
            for path in _step_folders(self.folder):
                if not _is_complete(path):
                    logging.warning("incomplete checkpoint removed: %s", path)
                    shutil.rmtree(path)
        _sync_processes("checkpoint folder")
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_handlers=_handlers(),
        )

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            with _write_errors(self.folder):
                self._manager.close()
        except ConfigError:
            if kind is None:  # otherwise the error that ended the training matters more
                raise

    def latest_step(self) -> int | None:
        """The last step that is complete or being written."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: TrainState, data_state: Mapping, meta: Mapping, config_text: str
    ) -> None:
        """Starts writing; returns once `state` is copied.

        data_state: JSON-able, the same in every process. meta: JSON-able; meta["model"] holds the
        model's config. Replaces this step and later ones, which a run leaves behind that resumes
        from an earlier step. Raises ConfigError if this step, or an earlier one, cannot be written
        (a full disk): complete steps stay, and training can resume from the last of them.
        """
        with _write_errors(self.folder):
            for later in [n for n in self._manager.all_steps() if n >= step]:
                self._manager.delete(later)
            self._save(step, state, data_state, meta, config_text)

    def _save(
        self, step: int, state: TrainState, data_state, meta: Mapping, config_text: str
    ) -> None:
        meta = json.loads(json.dumps(meta))
        if jax.process_index() == 0:
            atomic_write_json(self.folder / META, meta)
            atomic_write_text(self.folder / CONFIG, config_text)
        is_saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(_tree(state)),
                data=ocp.args.JsonSave(dict(data_state)),
                about=ocp.args.JsonSave({"meta": meta, "config": config_text}),
            ),
        )
        if not is_saved:
            raise RuntimeError(f"{self.folder}: step {step} was not saved")

    def restore(self, template: TrainState, meta: Mapping) -> tuple[TrainState, dict]:
        """(state, data state) of the last step, in the shardings of `template`.

        The mesh and the number of processes may differ from those that saved. Raises ConfigError,
        naming fields and values, if `meta` differs from the saved one (another model config, other
        classes), if parameters or optimizer state differ in name or shape, and if files cannot be
        read.
        """
        self._manager.wait_until_finished()
        step = self.latest_step()
        place = self.folder / str(step)
        with _read_errors(place):
            shapes = self._manager.item_metadata(step)["state"].tree
        faults = list(_differences(_meta(place), json.loads(json.dumps(meta)), ""))
        if faults:
            raise ConfigError(
                f"{self.folder}: a workdir made with another model config: {'; '.join(faults)}"
            )
        tree = _tree(template)
        _check_shapes(place, shapes, tree)
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
            ),
            tree,
        )
        restore = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(item=tree, restore_args=arguments),
            data=ocp.args.JsonRestore(),
        )
        with _read_errors(place):
            restored = self._manager.restore(step, args=restore)
        return TrainState(**restored["state"]), restored["data"]

    def meta(self) -> dict:
        """The meta of the last complete step (meta.json may be of an incomplete one)."""
        return _meta(self.folder / str(self.latest_step()))

    def wait(self) -> None:
        """Waits until everything is written."""
        with _write_errors(self.folder):
            self._manager.wait_until_finished()


def has_checkpoint(folder: str | Path) -> bool:
    """Whether `folder` holds a complete checkpoint."""
    return any(_is_complete(path) for path in _step_folders(Path(folder)))


def load(folder: str | Path) -> tuple[dict, dict]:
    """(parameters as a nested dict of numpy arrays, meta) of the last complete step in `folder`.

    With several processes, all of them must call it. Raises ConfigError if there is none, or if it
    cannot be read.
    """
    folder = Path(folder).resolve()
    steps = [path for path in _step_folders(folder) if _is_complete(path)]
    if not steps:
        expected = output_of(folder, "a folder of `jaxasa train`")
        raise ConfigError(f"{folder}: has no complete checkpoint, expected {expected}")
    place = max(steps, key=lambda path: int(path.name))
    step = int(place.name)
    options = ocp.CheckpointManagerOptions(read_only=True)
    with (
        ocp.CheckpointManager(folder, options=options, item_handlers=_handlers()) as manager,
        _read_errors(place),
    ):
        item = {"params": manager.item_metadata(step)["state"].tree["params"]}
        host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        arguments = ocp.args.PyTreeRestore(item=item, restore_args=host, partial_restore=True)
        restored = manager.restore(step, args=ocp.args.Composite(state=arguments))
    return restored["state"]["params"], _meta(place)


def _handlers() -> dict:
    return {
        "state": ocp.PyTreeCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "about": ocp.JsonCheckpointHandler(),
    }


def _tree(state: TrainState) -> dict:
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return tree | ({"ref_params": state.ref_params} if state.ref_params else {})


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()]


def _is_complete(path: Path) -> bool:
    """Whether orbax committed this step and each of its items is there."""
    try:
        about = json.loads((path / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = all((path / name / file).is_file() for name, file in _ITEM_FILES.items())
    return parts and about.get("commit_timestamp_nsecs") is not None


def _meta(place: Path) -> dict:
    """The meta saved with the step in `place`."""
    with _read_errors(place):
        return json.loads((place / "about" / "metadata").read_text(encoding="utf-8"))["meta"]


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        with folder_rename_errors(folder):
            yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        # The end of "Error writing NAME: Failed writing: PATH: No space left on device [code]".
        reason = str(error).strip().splitlines()[0].partition(" [os_error")[0].rpartition('": ')[2]
        raise ConfigError(
            f"{folder}: a checkpoint cannot be written ({reason}); the one before is kept: "
            "make room and run the same command again"
        ) from error


@contextlib.contextmanager
def _read_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].partition(" [tensorstore_spec")[0]
        raise ConfigError(
            f"{place}: checkpoint cannot be read ({reason}); "
            "remove that folder to resume from the one before"
        ) from error


def _differences(saved, now, name: str) -> Iterator[str]:
    """ "decoder.width was 64, is 128" for each value in which two JSON trees differ."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted({*saved, *now}):
            inner = f"{name}.{key}" if name else key
            if inner in _NOT_COMPARED:
                continue
            yield from _differences(saved.get(key), now.get(key), inner)
    elif saved != now:
        yield f"{name.removeprefix('model.')} was {saved!r}, is {now!r}"


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """{"params.decoder.norm.scale": shape}; keys named alike for tuples, dicts, dataclasses."""

    def name(key) -> str:
        for field in ("name", "key", "idx"):
            if hasattr(key, field):
                return str(getattr(key, field))
        raise TypeError(f"unknown key {key!r}")

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(map(name, keys)): tuple(leaf.shape) for keys, leaf in leaves}


def _check_shapes(place: Path, saved_tree, tree) -> None:
    saved, now = _shapes(saved_tree), _shapes(tree)
    faults = [
        f"{name} has shape {saved.get(name, 'none')} there, {now.get(name, 'none')} here"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if faults:
        more = f" and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise ConfigError(
            f"{place}: another model or optimizer: {'; '.join(faults[:_MAX_FAULTS])}{more}"
        )


def _sync_processes(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
